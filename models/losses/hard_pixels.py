"""Losses on the few wrong pixels that decide the topology.

The choice of pixels is discrete and carries no gradient; the loss is the mean squared error on the chosen ones.
Meant for a network that is already trained with an overlap loss: give them a `from_step`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from models.losses.persistence import find_bars
from models.losses.pixels import checked, foreground_pair, mean_where
from models.losses.skeletons import skeletons


def _error_on(hard, prob, member):
    """Mean over classes of the mean squared error on the hard pixels; 0 where there are none."""
    per_class = mean_where(((prob - member.to(prob.dtype)) ** 2).flatten(0, 1), hard.flatten(0, 1))
    return per_class.view(prob.shape[:2]).mean(1)


@checked
def skeleton_hard_pixels(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    threshold: float = 0.6,
    thinning: Literal["zhang_suen", "exact"] = "zhang_suen",
    ignore: int | None = None,
) -> torch.Tensor:
    """SHPM: squared error on skeleton pixels that are missed or invented; mean over foreground classes, (N,).

    threshold  in (0, 1); above it a probability counts as predicted
    thinning   "zhang_suen": in the plane as the paper prescribes, which does not always keep the topology; "exact": our
               skeletons, which do. Volumes are thinned exactly either way: the published thinning loses even widths.
    Hard are the pixels of the target's skeleton that are not predicted (a break) and those of the prediction's skeleton
    that are not in the target (a false branch). No hard pixel costs 0. Unlabelled pixels are background in both maps.
    Source: skeleton-based hard pixel mining (SHPM, 2023), weight 0.5 beside cross-entropy and Dice.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    predicted = (prob.detach() > threshold) & known
    missed = skeletons(member, thinning) & ~predicted
    invented = skeletons(predicted, thinning) & ~member
    return _error_on((missed | invented) & known, prob, member)


@checked
def threshold_hard_pixels(
    logits: torch.Tensor, target: torch.Tensor, *, threshold: float = 0.6, ignore: int | None = None
) -> torch.Tensor:
    """THPM: squared error on every pixel that is on the wrong side of the threshold; mean over foreground classes,
    (N,).

    threshold  in (0, 1); above it a probability counts as predicted
    Source: as `skeleton_hard_pixels`, where it is the simplest of three choices.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    hard = ((prob.detach() > threshold) != member) & known
    return _error_on(hard, prob, member)


@checked
def persistence_hard_pixels(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    threshold: float = 0.6,
    dimensions: Sequence[int] | None = None,
    ignore: int | None = None,
) -> torch.Tensor:
    """PHPM: squared error on wrong pixels where a topological feature of the errors is born or dies; mean over classes,
    (N,).

    threshold   in (0, 1); above it a probability counts as predicted
    dimensions  Betti dimensions whose bars are looked at, one after the other; None: loops in the plane, components in
                space, as published
    The bars are those of the map that is the prediction where it is wrong and the target elsewhere. A pixel at which
    several features are born or die counts once in the mean, where the published code counts it for each.
    Source: as `skeleton_hard_pixels`; the published code reads volumes in the wrong order of axes, this one does not.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    wrong = ((prob.detach() > threshold) != member) & known
    mixed = torch.where(wrong, prob.detach(), member.to(prob.dtype))
    dimensions = ([1] if prob.ndim == 4 else [0]) if dimensions is None else dimensions
    total = prob.new_zeros(len(prob))
    for dimension in dimensions:
        bars = find_bars(mixed, [dimension])
        critical = wrong.new_zeros(wrong.numel())  # in C order, as bars count, whatever the order of the logits
        critical[bars.births] = True
        critical[bars.deaths] = True
        total = total + _error_on(critical.view(wrong.shape) & wrong, prob, member)
    return total
