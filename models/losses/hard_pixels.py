"""Losses on the few pixels that decide topology and are on the wrong side of the threshold.

The choice of pixels is discrete and carries no gradient; the loss is the mean squared error on the chosen ones.
Meant for a network that is already trained with an overlap loss: give them a `from_step`.
"""

import numpy as np
import torch

from models.losses.pixels import foreground_pair, mean_where
from topology.skeleton import skeletonize


def skeletons(masks):
    """Exact topology-preserving skeleton of every mask: (N, K, ...) bool tensor to the same, on the same device."""
    arrays = masks.detach().cpu().numpy()
    thinned = np.stack([skeletonize(mask) for mask in arrays.reshape(-1, *arrays.shape[2:])])
    return torch.from_numpy(thinned.reshape(arrays.shape)).to(masks.device)


def _error_on(hard, prob, member):
    """Mean over classes of the mean squared error on the hard pixels; 0 where there are none."""
    per_class = mean_where(((prob - member.to(prob.dtype)) ** 2).flatten(0, 1), hard.flatten(0, 1))
    return per_class.view(prob.shape[:2]).mean(1)


def skeleton_hard_pixels(logits, target, *, threshold=0.6, ignore=None):
    """SHPM: squared error on skeleton pixels that are missed or invented; mean over foreground classes, (N,).

    threshold  in (0, 1); above it a probability counts as predicted
    Hard are the pixels of the target's skeleton that are not predicted (a break) and those of the prediction's skeleton
    that are not in the target (a false branch). No hard pixel costs 0. Unlabelled pixels are background in both maps.
    Source: skeleton-based hard pixel mining (SHPM, 2023), weight 0.5 beside cross-entropy and Dice; our thinning is exact in 3D too.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    predicted = (prob.detach() > threshold) & known
    missed = skeletons(member) & ~predicted
    invented = skeletons(predicted) & ~member
    return _error_on((missed | invented) & known, prob, member)
