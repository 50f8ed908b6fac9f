"""Losses that ask how far a wrong pixel is from where it should be.

Distances come from the label and carry no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.losses.pixels import checked, foreground, labelled, log_probabilities, mean_where, one_hot, probabilities
from topology.distance import distance_to
from topology.parallel import side_by_side


def _each_mask(function, masks, spacing):
    """Apply `function(mask, spacing)` to every (n, k) of an (N, K, ...) bool tensor; float tensor of the same shape and
    device.
    """
    arrays = masks.cpu().numpy()
    spacing = [None] * len(arrays) if spacing is None else spacing
    pairs = [(mask, spacing[n]) for n, sample in enumerate(arrays) for mask in sample]
    maps = side_by_side(lambda pair: function(*pair), pairs)
    return torch.from_numpy(np.stack(maps).reshape(arrays.shape)).to(masks.device)


def _signed_distance(mask, spacing):
    if mask.all() or not mask.any():
        return np.zeros(mask.shape)  # no boundary, nothing to be far from
    return distance_to(mask, spacing=spacing) - distance_to(~mask, spacing=spacing)


@checked
def boundary(
    logits: torch.Tensor, target: torch.Tensor, *, ignore: int | None = None, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """Mean over labelled pixels of probability times signed distance to the boundary; mean over foreground classes,
    (N,).

    The distance is positive outside a class and negative inside, so the least possible value is negative. In pixels, or
    in mm when `spacing` (N, axes) is known. Use it beside Dice with a small weight and a `ramp`: by itself it may fall
    for the empty map. A class that is absent or everywhere has no boundary and costs 0. Source: Kervadec et al., MIDL
    2019; distances to the nearest pixel of the other kind, on both sides alike.
    """
    prob = foreground(probabilities(logits))
    known = labelled(target, ignore)
    distance = _each_mask(_signed_distance, foreground(one_hot(target, logits, ignore)), spacing).to(prob.dtype)
    return mean_where(distance * prob, known)


def _outward(mask, spacing):
    """-1 inside;
    outside the distance to the class as a part of the largest one, 1 everywhere when the class is absent.
    """
    if not mask.any():
        return np.ones(mask.shape)
    distance = distance_to(mask, spacing=spacing)
    return np.where(mask, -1.0, distance / max(distance.max(), 1e-12))


@checked
def region_wise(
    logits: torch.Tensor, target: torch.Tensor, *, ignore: int | None = None, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """Mean over labelled pixels of sum over classes, background too, of probability times region map; (N,), each in
    [-1, 1].

    The map of a class is -1 inside it and rises from 0 to 1 with the distance from it, so the gradient always points at
    the true class, and hardest where the prediction is furthest off. `spacing` (N, axes) makes distances count in mm.
    Source: Valverde and Tohka, Pattern Recognition 2023 (rectified region-wise maps).
    """
    prob = log_probabilities(logits).exp()
    classes = one_hot(target, prob, ignore)
    weight = _each_mask(_outward, classes, spacing).to(prob.dtype)
    return mean_where((prob * weight).sum(1, keepdim=True), labelled(target, ignore))
