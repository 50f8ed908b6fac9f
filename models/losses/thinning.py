"""Thinning of tensors on their device, with the skeleton of `topology.skeleton`.

As in the kernel, a step chooses its candidates at once. In the plane all of them leave at once as well. In space they
leave as if one after the other in raster order: those go first that are simple whatever becomes of the candidates
before them, the rest waits until these are decided. It is enough to ask with all of them, with none and with each one
alone: foreground that is one piece with none and with any one is one piece with all that touch it, and background gains
only pixels that are open to the same side and touch it there. All maps of a batch are thinned together; a frame of
background keeps them apart. Windows are read only where something changed since a pixel was last asked.
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from topology.simple import space_tables
from topology.skeleton import CROWD, leaving_tables

BEFORE = 13
"""How many of the 27 pixels of a window come before its centre in raster order."""


@cache
def _on_device(name, device):
    """Tables as int32 tensors on a device: {"exact", "zhang_suen"}: (steps, 512); "space": the five of
    `topology.simple`.
    """
    tables = space_tables() if name == "space" else leaving_tables(zhang_suen=name == "zhang_suen")
    return [torch.from_numpy(np.ascontiguousarray(table)).to(device, torch.int32) for table in tables]


def _codes(windows):
    """(B,) int32 codes of (B, 9) or (B, 27) windows."""
    return (windows.int() << torch.arange(windows.shape[1], device=windows.device, dtype=torch.int32)).sum(
        1, dtype=torch.int32
    )


def _simple(codes):
    """Whether the centre of each 27-bit window is simple for closed cubes; see `topology.simple`."""
    half, middle, pieces, belt_of, cross_of = _on_device("space", codes.device)
    upper, belt, lower = codes & 511, belt_of[codes >> 9 & 511], codes >> 18
    outside = pieces[cross_of[upper] | belt << 5 | cross_of[lower] << 13]
    euler = half[upper | belt << 9] + half[lower | belt << 9] + middle[belt]
    return (outside == 1) & (euler == 1)


def _candidates(here, at, around):
    """Of foreground voxels those that are simple and no end points; see `topology.skeleton`."""
    windows = here[at[:, None] + around]
    crowd = windows.sum(1)  # with the voxel itself
    may = _simple(_codes(windows)) & (crowd > 1)
    tips = (may & (crowd == 2)).nonzero().squeeze(1)
    windows[tips, BEFORE] = False
    beside = at[tips] + around[windows[tips].int().argmax(1)]
    may[tips] = here[beside[:, None] + around].sum(1) > CROWD
    return at[may]


def _leave_in_order(here, at, around):
    """Take candidates out as if one after the other in raster order, each if it is still simple and touches a voxel
    that stays; returns those that left.

    here    flat bool map, changed in place; at: its candidates, sorted; around: 27 offsets of linear indices
    """
    undecided = torch.zeros_like(here)
    undecided[at] = True
    later = at[:, None] + around[BEFORE:]
    after, beside = here[later], (here[later] & ~undecided[later]).any(1)
    bits = 1 << torch.arange(BEFORE, device=at.device, dtype=torch.int32)
    gone = [at[:0]]
    while len(at):
        before = at[:, None] + around[:BEFORE]
        there, open_ = here[before], undecided[before]
        most, least = (_codes(torch.cat([each, after], 1)) for each in (there, there & ~open_))
        sure = _simple(most) & _simple(least) & (beside | (there & ~open_).any(1))
        row, bit = (open_ & sure[:, None]).nonzero(as_tuple=True)
        sure[row[~_simple(least[row] | bits[bit])]] = False
        decided = sure | ~open_.any(1)
        undecided[at[decided]] = False
        here[at[sure]] = False
        gone.append(at[sure])
        at, after, beside = at[~decided], after[~decided], beside[~decided]
    return torch.cat(gone)


def thin(masks: torch.Tensor, *, zhang_suen: bool = False) -> torch.Tensor:
    """Skeleton of every mask of (N, K, rows, columns) or (N, K, planes, rows, columns): bool, same shape and device.

    masks       every value that is not 0 is foreground, closed cubes
    zhang_suen  Zhang and Suen's thinning in the plane; volumes are thinned exactly all the same
    Equal to `topology.skeleton.skeletonize` (`zhang_suen`) of each mask.
    """
    axes = masks.ndim - 2
    framed = F.pad(masks.bool(), [1, 1] * axes).contiguous()
    strides = framed.stride()[2:]
    here = framed.view(-1)
    around = torch.tensor(
        [sum(map(int.__mul__, step, strides)) for step in product((-1, 0, 1), repeat=axes)], device=masks.device
    )

    def leaving_plane(table: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        def leave(at):
            at = at[table[_codes(here[at[:, None] + around])].bool()]
            here[at] = False
            return at

        return leave

    def leaving_space(step: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def leave(at):
            at = at[~here[at + step]]
            chosen = _candidates(here, at, around)
            steps_left[chosen] = len(steps)  # those that have to stay now are asked again
            return _leave_in_order(here, chosen, around)

        return leave

    steps: list[Any]
    if axes == 2:
        steps = [leaving_plane(table) for table in _on_device("zhang_suen" if zhang_suen else "exact", masks.device)]
    else:
        steps = [leaving_space(sign * stride) for stride in strides for sign in (-1, 1)]
    steps_left = here.to(torch.uint8) * len(steps)
    while steps_left.any():
        for leave in steps:
            at = (steps_left.bool() & here).nonzero().squeeze(1)
            steps_left -= steps_left.clamp(max=1)
            gone = leave(at)
            steps_left[(gone[:, None] + around).view(-1)] = len(steps)
        steps_left *= here
    inside: tuple[Any, ...] = (..., *(slice(1, -1),) * axes)
    return framed[inside].clone()
