"""Differentiable thinning of a probability map by continuous-tone simple points (CSP).

A pixel is removed as far as it is simple (a score near 1) and not the end of a line. The parity classes (4 in the
plane, 8 in space) are thinned one after the other, so neighbours never go together. `topology.soft_thinning` states the
score and thins; here are the loss, and the same sweeps on whole arrays, for what has to leave as a graph of tensors.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.losses.pixels import checked, foreground_pair, per_class_sum
from models.losses.skeletons import skeletons
from topology.loops import ARC_BITS, ARCS, CUBE_ARCS, CUBE_BITS, FACE_BITS
from topology.parallel import side_by_side
from topology.simple import RING_BITS
from topology.soft_thinning import ARC_BETWEEN, LEVEL, SLOPE, WIDTH, Thinning

POOLING = {2: F.avg_pool2d, 3: F.avg_pool3d}
SIDES = {
    "exact": ([7, 1, 1, 3, 3, 5, 5, 7], [1, 1, 3, 3, 5, 5, 7, 7]),
    "published": ([7, 1, 3, 3, 3, 5, 7, 7], [7, 1, 3, 3, 3, 5, 7, 7]),
}
"""Of each pixel of the ring NW N NE E SE S SW W: the two sides that make a corner count, a side itself twice."""
NEXT = [1, 2, 3, 4, 5, 6, 7, 0]


class _Skeleton(torch.autograd.Function):
    """The kernels of `topology.soft_thinning` for every map; a map on a GPU comes to the CPU and its skeleton goes
    back.
    """

    @staticmethod
    def forward(ctx, image, iterations, rule):
        maps = image.detach().cpu().numpy().reshape(-1, *image.shape[2:])
        ctx.thinned = side_by_side(lambda values: Thinning(values, iterations=iterations, rule=rule), maps)
        return torch.from_numpy(np.stack([one.skeleton for one in ctx.thinned])).view_as(image).to(image)

    @staticmethod
    def backward(ctx, gradient):
        maps = gradient.cpu().numpy().reshape(-1, *gradient.shape[2:])
        found = side_by_side(lambda pair: pair[0].back(pair[1]), zip(ctx.thinned, maps, strict=True))
        return torch.from_numpy(np.stack(found)).view_as(gradient).to(gradient), None, None


def _take(stack, places):
    """Rows of the first axis, in one operation that every runtime knows."""
    return stack.index_select(0, torch.as_tensor(places, device=stack.device))


def _windows(image, parity):
    """(9 or 27, N, K, ...) windows in raster order around every pixel of a parity class; sides are even, outside is
    background.
    """
    window = F.pad(image, [1, 1] * len(parity))[None]
    for after, first in enumerate(reversed(parity)):
        rest = [slice(None)] * after
        window = torch.cat(
            [window[(..., slice(start, -2 if start < 2 else None, 2), *rest)] for start in range(first, first + 3)]
        )
    return window


def _plane_excess(window, rule):
    """Background pieces beyond one around pixels with windows (9, ...), and the gate, 0 or 1; the published rule has
    none.
    """
    around = _take(window, RING_BITS)
    empty = (around <= LEVEL).to(around.dtype)
    kept = torch.maximum(*(_take(empty, sides) for sides in SIDES[rule]))
    ring, above = (1 - around) * kept, empty * kept
    crossing = (_take(above, NEXT) - above).abs()
    height = torch.maximum((_take(ring, NEXT) - ring).abs(), crossing)
    gate = crossing.sum(0) == 2 if rule == "exact" else torch.ones_like(crossing[0], dtype=torch.bool)
    return torch.sigmoid(SLOPE * (height - LEVEL)).sum(0) / 2 - 1, gate.to(around.dtype)


def soft_pieces(window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Foreground and background pieces (C, T) around voxels with windows (27, ...) in [0, 1], averaged over all
    thresholds.

    The forest without a sort: at each threshold a piece of background is counted at its first face, so T is the sum
    over faces of their own weight less that of the best path to an earlier face. Faces are taken out from the last to
    the first; paths through them become bonds of the others.
    """
    faces = _take(window, FACE_BITS)
    arcs = torch.maximum(torch.maximum(_take(faces, ARCS[:, 0]), _take(faces, ARCS[:, 1])), _take(window, ARC_BITS))
    cubes = _take(window, CUBE_BITS)
    for corner in range(3):
        cubes = torch.maximum(cubes, _take(arcs, CUBE_ARCS[:, corner]))
    bonds = _take(torch.cat([1 - arcs, torch.zeros_like(arcs[:1])]), ARC_BETWEEN.ravel() % 13).unflatten(0, (6, 6))
    pieces = (1 - faces).sum(0)
    for last in range(5, 0, -1):
        to_last = bonds[last, :last]
        pieces = pieces - to_last.amax(0)
        bonds = torch.maximum(bonds[:last, :last], torch.minimum(to_last[:, None], to_last[None]))
    return faces.sum(0) - arcs.sum(0) + cubes.sum(0) + pieces - 1, pieces


def simplicity(window: torch.Tensor, rule: str = "exact") -> torch.Tensor:
    """How simple pixels and voxels with windows (9 or 27, ...) in raster order are: (...) in [0, 1], as
    `topology.soft_thinning.simple_score`.
    """
    if len(window) == 9:
        excess, gate = _plane_excess(window, rule)
        squares = excess**2
    else:
        solid = (window > LEVEL).to(window.dtype)
        inside, outside = soft_pieces(torch.stack([torch.sigmoid(SLOPE * (window - LEVEL)), solid], 1))
        squares, beyond = (inside - 1) ** 2 + (outside - 1) ** 2
        gate = (beyond < 0.5).to(window.dtype)  # whole numbers: one piece of each
    return gate * torch.exp(squares / (-2 * WIDTH**2))


def _of_parity(image, parity):
    """(1, 1, ...) 1 at the pixels of a parity class."""
    chosen = torch.ones((), dtype=image.dtype, device=image.device)
    for axis, odd in enumerate(parity, start=2):
        places = torch.arange(image.shape[axis], device=image.device) % 2
        chosen = chosen * (places == odd).to(image.dtype).view(-1, *[1] * (image.ndim - 1 - axis))
    return chosen


def thin_everywhere(image: torch.Tensor, iterations: int, rule: str = "exact") -> torch.Tensor:
    """The sweeps of `topology.soft_thinning` on whole arrays, in few operations that every runtime knows: what is
    exported.
    """
    axes, sides = image.ndim - 2, image.shape[2:]
    image = F.pad(image, [part for side in reversed(sides) for part in (0, side % 2)])
    order = [
        tuple(reversed(last)) for last in product((1, 0), repeat=axes)
    ]  # odd first, the first axis alternates fastest
    chosen = [_of_parity(image, parity) for parity in order]
    for _ in range(iterations):
        solid = (image > LEVEL).to(image.dtype)
        inner = (POOLING[axes](F.pad(solid, [1, 1] * axes), 3, 1) * 3**axes - solid > 1.5).to(
            image.dtype
        )  # two neighbours: not an end
        for parity, here in zip(order, chosen, strict=True):
            simple = F.interpolate(simplicity(_windows(image, parity), rule), scale_factor=2, mode="nearest")
            image = image * (1 - simple * here * inner)
    whole: tuple[Any, ...] = (..., *(slice(side) for side in sides))
    return image[whole]


def csp_skeleton(image: torch.Tensor, iterations: int, rule: str = "exact") -> torch.Tensor:
    """Soft skeleton of (N, K, ...) maps in [0, 1], 2 or 3 axes; its 0.5 level has the Betti numbers of the map's (8/4,
    26/6).

    image       float32 or float64
    iterations  sweeps, each peels about one pixel from every side; at least the largest half width
    rule        "exact", or in the plane "published", which keeps Betti numbers on saturated maps only; see
                `topology.soft_thinning`
    Thinned by compiled kernels on the CPU, wherever the tensor is; while a graph is being exported, by whole-array
    operations with the same result. Memory grows with the pixels that are removed, not with iterations times image.
    """
    if torch.compiler.is_exporting():
        return thin_everywhere(image, iterations, rule)
    return _Skeleton.apply(image, iterations, rule)


@checked
def csp_skeleton_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    iterations: int = 10,
    rule: str = "exact",
    smooth: float = 1e-06,
    ignore: int | None = None,
) -> torch.Tensor:
    """1 - harmonic mean of how much of each CSP skeleton lies in the other map; mean over foreground classes, (N,),
    each in [0, 1].

    iterations  1 to 50 sweeps; at least the largest half width in pixels
    rule        which pixels are simple: "exact", or in the plane "published"; see `csp_skeleton`
    smooth      > 0; added to numerator and denominator of both ratios, so that an empty skeleton costs nothing
    The form of soft clDice, with a skeleton whose topology is that of the map. The target's skeleton is that of exact
    thinning by the same rule, which is what the soft one tends to on a mask. In space only the part of the skeleton
    above 0.5 counts, which is the part that was thinned: what lies below keeps its whole volume, and even at 0.1
    outweighs a line, so that a better prediction could cost more. In the plane all of it counts, as in the paper.
    Source: the CSP paper in the plane; we differ in the gate and the corners of `topology.soft_thinning` unless the
    rule is "published", and in the target's skeleton; in space docs/decisions/0006. smooth is 1e-6 as the paper's text
    says (the published training call puts the ignore index there).
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob = torch.where(known, prob, 0)
    true_skeleton = skeletons(member).to(prob.dtype)
    member = member.to(prob.dtype)
    skeleton = csp_skeleton(prob, iterations, rule)
    if prob.ndim == 5:
        skeleton = skeleton * (skeleton > LEVEL)
    sensitivity = (per_class_sum(prob * true_skeleton) + smooth) / (per_class_sum(true_skeleton) + smooth)
    precision = (per_class_sum(member * skeleton) + smooth) / (per_class_sum(skeleton) + smooth)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean(1)
