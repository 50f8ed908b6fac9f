"""Centreline-boundary Dice: clDice weighted by the radius of the tubes."""

from __future__ import annotations

import numpy as np
import torch

from models.losses.pixels import checked, foreground, labelled, one_hot, per_class_sum, probabilities
from models.losses.skeletons import soft_skeleton
from topology.distance import distance_inside, distance_to
from topology.parallel import side_by_side


def _distances(masks):
    """(N, 1, ...) distance in pixels to the nearest background of bool masks; the border is no background."""
    arrays = masks[:, 0].cpu().numpy()
    found = side_by_side(lambda mask: distance_inside(mask) if mask.all() else distance_to(~mask), arrays)
    return torch.from_numpy(np.stack(found)).to(masks.device).unsqueeze(1)


def _described(mask, iterations):
    """Of a bool mask (N, 1, ...): its skeleton, relative depth, radius on the skeleton, and weight of thinness there;
    all in [0, 1].
    """
    skeleton = soft_skeleton(mask.float(), iterations) * mask  # 0 or 1
    depth = _distances(mask)
    sides = [1] * (mask.ndim - 1)
    largest = (depth * skeleton).flatten(1).amax(1).clamp(min=1).view(-1, *sides)
    relative = torch.minimum(depth, largest) / largest
    thin = ((largest - depth + 1) / largest).clamp(min=0) ** (mask.ndim - 3) * (skeleton > 0)
    return skeleton, relative, relative * (skeleton > 0), thin


@checked
def cbdice(
    logits: torch.Tensor, target: torch.Tensor, *, iterations: int = 10, smooth: float = 1.0, ignore: int | None = None
) -> torch.Tensor:
    """1 - harmonic mean of precision and sensitivity of centrelines, weighted by radius; (N,), about 0 to 1.

    iterations  1 to 50 peeling steps of the soft skeleton, at least the largest radius in pixels
    smooth      > 0; added to numerator and denominator of both ratios
    All foreground classes are one: the probability is that of the largest foreground logit against background. Depths
    and skeletons are those of hard masks and carry no gradient; pixels at 0.5 or below are in no skeleton, so a
    missing branch is not taught by this term: use it beside cross-entropy and Dice. Depths are relative to the largest
    radius of their own mask, so a tube that is too thin or too thick everywhere costs nothing, and values slightly
    below 0 exist. Unlabelled pixels are background in both maps. A mask without background takes the border for one.
    Source: Shi et al., MICCAI 2024 (cbDice), per sample where theirs sums over the batch; theirs is this less 1.
    """
    known = labelled(target, ignore)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    margin = logits if logits.shape[1] == 1 else foreground(logits).amax(1, keepdim=True) - logits[:, :1]
    prob = torch.where(known, margin.sigmoid(), 0)
    truth = foreground(one_hot(target, probabilities(logits.detach()), ignore)).any(1, keepdim=True) & known
    skeleton, depth, radius, thin = (each.to(prob.dtype) for each in _described(prob.detach() > 0.5, iterations))
    true_skeleton, true_depth, true_radius, true_thin = (each.to(prob.dtype) for each in _described(truth, iterations))
    depth, radius, lines = depth * prob, radius * prob, thin * skeleton * prob
    true_lines = true_thin * true_skeleton
    precision = _share(lines, true_depth, torch.where(true_radius != 0, true_radius, radius), smooth)
    sensitivity = _share(true_lines, depth, torch.where(radius != 0, radius, true_radius), smooth)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean(1)


def _share(lines, depth, radius, smooth):
    """(N, 1): how much of some lines lies in a mask, both weighted."""
    return (per_class_sum(lines * depth) + smooth) / (per_class_sum(lines * radius) + smooth)
