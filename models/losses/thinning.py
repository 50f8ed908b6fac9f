"""Thinning of tensors on their device, with the skeleton of `topology.skeleton`.

Pixels of one parity class never touch, so no decision inside a class depends on another one, and a class is peeled in
one step. As in the kernel, a round asks the pixels that were laid bare in the round before, class by class, and a
removed pixel lays its neighbours bare. All maps of a batch are peeled together; a frame of background keeps them apart.
Windows are read only where a pixel waits.
"""

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.losses.windows import erode
from topology.simple import plane_tables, space_tables
from topology.skeleton import removable_in_plane


@cache
def _tables(axes, device):
    """The bits of a plane's code, and the tables of `topology.simple`, one in the plane and five in space: int32 on a
    device.
    """
    tables = [removable_in_plane(plane_tables(), True)] if axes == 2 else space_tables()
    return [torch.from_numpy(table).to(device, torch.int32) for table in (np.arange(9), *tables)]


def _removable(windows):
    """(B,) bool of (B, 9) or (B, 27) windows of foreground pixels: simple, and no end of a branch.

    See `topology.simple`.
    """
    axes = 2 if windows.shape[1] == 9 else 3
    bits, *tables = _tables(axes, windows.device)
    planes = (windows.unflatten(1, (-1, 9)).int() << bits).sum(2)
    if axes == 2:
        return tables[0][planes[:, 0]].bool()
    half, middle, pieces, belt_of, cross_of = tables
    upper, belt, lower = planes[:, 0], belt_of[planes[:, 1]], planes[:, 2]
    outside = pieces[cross_of[upper] | belt << 5 | cross_of[lower] << 13]
    euler = half[upper | belt << 9] + half[lower | belt << 9] + middle[belt]
    return (outside == 1) & (euler == 1) & (windows.sum(1) > 2)


def thin(masks: torch.Tensor) -> torch.Tensor:
    """Exact skeleton of every mask of (N, K, rows, columns) or (N, K, planes, rows, columns): bool, the same shape and
    device.

    masks  every value that is not 0 is foreground, closed cubes
    Equal to `topology.skeleton.skeletonize` of each mask.
    """
    axes = masks.ndim - 2
    framed = F.pad(masks.bool(), [1, 1] * axes)
    sides, strides = framed.shape[2:], framed.stride()[2:]
    here = framed.view(-1)
    faces = torch.tensor([sign * stride for stride in strides for sign in (-1, 1)], device=masks.device)
    around = torch.tensor(
        [sum(map(int.__mul__, step, strides)) for step in product((-1, 0, 1), repeat=axes)], device=masks.device
    )

    def leaving(at):
        return at[_removable(here[at[:, None] + around])]

    waiting = torch.zeros_like(here)
    surface = framed & ~erode(framed)  # what is enclosed on all sides is not simple
    waiting[leaving(surface.view(-1).nonzero().squeeze(1))] = True
    while len(now := waiting.nonzero().squeeze(1)):
        parity = sum(
            (now // stride % side & 1) << bit
            for bit, (stride, side) in enumerate(zip(strides[::-1], sides[::-1], strict=True))
        )
        for group in range(2**axes):
            at = now[parity == group]
            waiting[at] = False
            at = leaving(at)
            here[at] = False
            bare = (at[:, None] + around).view(-1)
            bare = bare[here[bare]]
            # The kernel wakes no enclosed voxel, but wakes enclosed pixels; the order of removal depends on it.
            waiting[bare] = True if axes == 2 else ~here[bare[:, None] + faces].all(1)
    inside: tuple[Any, ...] = (..., *(slice(1, -1),) * axes)
    return framed[inside].clone()
