"""Losses on the Morse structure of the probability map: its lasting ridges, where a tube is or could be."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from models.losses.pixels import checked, foreground, labelled, mean_where, probabilities, true_class_log_probability
from topology.morse import ridges

THREADS = 2


def ridge_persistence(prob, noise=0.0):
    """(N, K, ...) maps to how long the ridge at each pixel lasts; 0 where there is none that lasts longer than `noise`,
    1 at the highest.
    """
    maps = prob.detach().cpu().numpy()
    flat = np.ascontiguousarray(maps).reshape(-1, *maps.shape[2:])
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda values: ridges(values, min_persistence=noise).persistence, flat))
    lasting = np.minimum(np.stack(found), 1).reshape(maps.shape)
    return torch.from_numpy(lasting).to(prob)


def ridge_masks(prob, noise):
    """(N, K, ...) maps to bool: pixels on ridges that last longer than `noise`."""
    return ridge_persistence(prob, noise) > 0


@checked
def dmt_loss(logits, target, *, noise=0.1, ignore=None):
    """Cross-entropy on the lasting ridges of the prediction, mean over their pixels; (N,).

    noise  0 to 1: ridges whose saddle lasts no longer are left out
    The ridges are those of every foreground class together. They run through the gap of a break and over a false
    bridge, so both get a gradient along their whole length; weight it 0.1 to 1 beside an overlap loss. Source: Hu et
    al., ICLR 2021; the mean is over the structure, so that the weight does not depend on the size of the image.
    """
    known = labelled(target, ignore)
    prob = torch.where(known, foreground(probabilities(logits.detach())), 0)
    structure = ridge_masks(prob, noise).any(1, keepdim=True) & known
    return mean_where(-true_class_log_probability(logits, target, known), structure)


def sampled_structure_loss(logits, target, threshold, *, temperature=0.05, ignore=None):
    """How right the map is on the ridges that last longer than a threshold, and how right the threshold is: (structure,
    presence), (N,) each.

    threshold    (N,) persistence that a ridge needs to be a structure
    temperature  > 0: width of the step from not being one to being one
    A ridge pixel of persistence pi is kept with m = sigmoid((pi - threshold) / temperature). structure: cross-entropy
    of the map on the ridges of all foreground classes, weighted by m; it teaches the logits. presence: cross-entropy of
    m with whether the pixel is of its class, mean over the ridges; it teaches the threshold, whose best value is where
    a ridge is as often true as not. Ridges and persistences carry no gradient themselves. Source: Hu et al., ICLR 2023,
    who let a second network grow the sampled ridges to a mask and score that. The weights of `structure` pass no
    gradient on, because it is cheapest with the surest structures alone and would teach the threshold nothing but to
    rise.
    """
    known = labelled(target, ignore)
    with torch.no_grad():
        lasting = ridge_persistence(torch.where(known, foreground(probabilities(logits)), 0)) * known
    sample, channel, *place = lasting.nonzero(as_tuple=True)
    log_odds = _log_odds(logits.movedim(1, -1)[(sample, *place)], channel)
    keep = (lasting[(sample, channel, *place)] - threshold[sample]) / temperature
    sign = 2.0 * (target[(sample, *place)] == channel + 1) - 1
    weight, zeros = keep.detach().sigmoid(), logits.new_zeros(len(logits))

    def mean(cost, weight):
        total, mass = zeros.index_add(0, sample, weight * cost), zeros.index_add(0, sample, weight)
        return total / mass.clamp(min=torch.finfo(mass.dtype).tiny)

    return mean(-F.logsigmoid(sign * log_odds), weight), mean(-F.logsigmoid(sign * keep), torch.ones_like(weight))


def _log_odds(logits, channel):
    """(R,) log(p / (1 - p)) of foreground class `channel` (R,) from the logits (R, C) of R pixels."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    own = F.one_hot(channel + 1, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(1)
