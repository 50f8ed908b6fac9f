"""clDice on grayscale skeletons, whose topology is that of the map at every threshold.

The soft skeleton of clDice keeps no Betti number, that of CSP those of one threshold; grayscale homotopic thinning
(`topology.grayscale_thinning`) keeps those of all. Each of its values is the value of a pixel of the map, so its
gradient is one sum over those pixels.
"""

from __future__ import annotations

import numpy as np
import torch

from models.losses.pixels import checked, foreground_pair, per_class_sum
from models.losses.skeletons import skeletons
from topology.grayscale_thinning import grayscale_thinning
from topology.parallel import side_by_side


def grayscale_skeleton(prob: torch.Tensor, *, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Grayscale skeleton of (N, K, ...) maps in [0, 1], 2 or 3 axes, and its crests: differentiable, and bool.

    noise  0 to 1: crests that stand above their lowest neighbour by no more are left out
    The skeleton of {prob > 0.5} is protected, so that tips of ridges that fall towards their end are kept. Thinned by
    compiled kernels on the CPU, wherever the tensor is.
    """
    maps = np.ascontiguousarray(prob.detach().cpu().numpy()).reshape(-1, *prob.shape[2:])
    lines = skeletons(prob.detach() > 0.5).cpu().numpy().reshape(maps.shape)
    found = side_by_side(lambda pair: grayscale_thinning(pair[0], protect=pair[1]), zip(maps, lines, strict=True))
    donors = torch.from_numpy(np.stack([one.donors for one in found])).to(prob.device).flatten(1)
    crests = torch.from_numpy(np.stack([one.crests(noise) for one in found])).to(prob.device)
    values = prob.reshape(len(maps), -1).gather(1, donors.clamp(min=0)) * (donors >= 0)
    return values.view(prob.shape), crests.view(prob.shape)


@checked
def grayscale_cldice(
    logits: torch.Tensor, target: torch.Tensor, *, noise: float = 0.05, smooth: float = 1.0, ignore: int | None = None
) -> torch.Tensor:
    """1 - harmonic mean of how much of each skeleton lies in the other map, the prediction's one being its grayscale
    skeleton; mean over foreground classes, (N,), each in [0, 1].

    noise   0 to 1: ridges that stand above the lowest pixel beside them by no more do not count
    smooth  > 0; added to numerator and denominator of both ratios
    Every ridge of the prediction counts with its height, so a faint false branch costs a little and a sure one much, at
    all thresholds at once; off its ridges the skeleton is the bottom of the basin and is left out. The target's
    skeleton is exact. Unlabelled pixels are background in both maps. Ours: the form of clDice (Shit et al., CVPR 2021)
    with homotopic thinning (Couprie et al., 2001).
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob = torch.where(known, prob, 0)
    true_skeleton, member = skeletons(member).to(prob.dtype), member.to(prob.dtype)
    skeleton, crests = grayscale_skeleton(prob, noise=noise)
    skeleton = skeleton * crests
    precision = (per_class_sum(skeleton * member) + smooth) / (per_class_sum(skeleton) + smooth)
    sensitivity = (per_class_sum(true_skeleton * prob) + smooth) / (per_class_sum(true_skeleton) + smooth)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean(1)
