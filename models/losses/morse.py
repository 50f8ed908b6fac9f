"""Losses on the Morse structure of the probability map: its lasting ridges, where a tube is or could be."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from models.losses.pixels import foreground, labelled, mean_where, probabilities, true_class_log_probability
from topology.morse import ridges

THREADS = 2


def ridge_masks(prob, noise):
    """(N, K, ...) maps to bool: pixels on ridges that last longer than `noise`."""
    maps = prob.detach().cpu().numpy()
    flat = np.ascontiguousarray(maps).reshape(-1, *maps.shape[2:])
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda values: ridges(values, min_persistence=noise).mask, flat))
    return torch.from_numpy(np.stack(found).reshape(maps.shape)).to(prob.device)


def dmt_loss(logits, target, *, noise=0.1, ignore=None):
    """Cross-entropy on the lasting ridges of the prediction, mean over their pixels; (N,).

    noise  0 to 1: ridges whose saddle lasts no longer are left out
    The ridges are those of every foreground class together. They run through the gap of a break and over a false bridge, so both get a gradient
    along their whole length; weight it 0.1 to 1 beside an overlap loss.
    Source: Hu et al., ICLR 2021; the mean is over the structure, so that the weight does not depend on the size of the image.
    """
    known = labelled(target, ignore)
    prob = torch.where(known, foreground(probabilities(logits.detach())), 0)
    structure = ridge_masks(prob, noise).any(1, keepdim=True) & known
    return mean_where(-true_class_log_probability(logits, target, known), structure)
