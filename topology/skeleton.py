"""Skeletons by removal of simple points that end no branch.

Thinning by subfields. Pixels of one parity class (4 in the plane, 8 in space) never touch, so removing simple points
within a class is as safe as one at a time, and the result does not depend on the order inside it. One sweep visits the
pixels that were laid bare by the sweep before, class by class; a pixel that cannot go now waits until a neighbour goes.
The work is therefore proportional to the pixels that are removed, not to sweeps times image. At the end every pixel
either ends a branch or is not simple. An end point is a pixel with exactly one foreground neighbour (8 [26] for closed
cubes, 4 [6] for open ones); it is never removed. Lee's 3D thinning as published in scikit-image loses objects of even
width; here nothing can vanish, because a last pixel is not simple.
"""

import numpy as np
from numba import njit

from topology.bits import lowest_one
from topology.grids import Connectivity, as_mask, as_volume, is_closed
from topology.simple import plane_tables, simple_in_space, space_tables, triples, window_in_plane, window_in_space

QUEUED = 8
"""Bit of a pixel's byte while it waits in a list; the bits from 16 on hold its parity class, the lowest three its
triple.
"""


@njit(cache=True, nogil=True)
def erase(flat, at):
    """Take one pixel out of the triples."""
    flat[at - 1] &= ~np.uint8(4)
    flat[at] &= ~np.uint8(2)
    flat[at + 1] &= ~np.uint8(1)


def removable_in_plane(tables, closed):
    """uint8 per 9-bit window code: 1 for a foreground pixel that is simple and has more than one neighbour."""
    simple_closed, simple_open, eight, four = tables
    here = (np.arange(512) >> 4 & 1).astype(np.uint8)
    return here & (simple_closed & (eight > 1) if closed else simple_open & (four > 1))


@njit(cache=True, nogil=True)
def _thin_plane(packed, removable):
    """Remove until stable; packed: triples of one padded plane, changed in place. removable: uint8 per window code."""
    height, width = packed.shape
    flat = packed.ravel()
    capacity = ((height + 1) // 2) * ((width + 1) // 2)
    lists = np.empty((2, 4, capacity), np.int32)
    sizes = np.zeros((2, 4), np.int64)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            at = y * width + x
            if not flat[at] & 2:
                continue
            parity = (y & 1) << 1 | (x & 1)
            flat[at] |= parity << 4
            if removable[window_in_plane(flat, at, width)]:
                flat[at] |= QUEUED
                lists[0, parity, sizes[0, parity]] = at
                sizes[0, parity] += 1
    around = np.array([-width - 1, -width, -width + 1, -1, 0, 1, width - 1, width, width + 1])
    now = 0
    while sizes[now].sum() > 0:
        later = 1 - now
        sizes[later] = 0
        ahead, room = lists[later], sizes[later]
        for parity in range(4):
            for at in lists[now, parity, : sizes[now, parity]]:
                flat[at] &= ~np.uint8(QUEUED)
                code = window_in_plane(flat, at, width)
                if not removable[code]:
                    continue
                erase(flat, at)
                rest = np.uint64(code & ~(1 << 4))
                while rest != 0:
                    other = at + around[lowest_one(rest)]
                    rest &= rest - np.uint64(1)
                    state = flat[other]
                    if not state & QUEUED:
                        flat[other] = state | QUEUED
                        group = state >> 4
                        ahead[group, room[group]] = other
                        room[group] += 1
        now = later


@njit(cache=True, nogil=True)
def removable_in_space(code, closed, tables):
    """Foreground, simple, and with more than one neighbour."""
    if not code >> 13 & 1:
        return False
    ring = code & ~(1 << 13) if closed else code & FACE_BITS
    if ring & (ring - 1) == 0:
        return False
    code = code if closed else code ^ (2**27 - 1)
    return code & FACE_BITS != FACE_BITS and simple_in_space(code, tables)


FACE_BITS = sum(1 << bit for bit in (4, 10, 12, 14, 16, 22))


@njit(cache=True, nogil=True)
def _is_enclosed(flat, at, width, area):
    """True when all six face neighbours are foreground: such a voxel of closed cubes cannot be simple."""
    across = flat[at - width] & flat[at + width] & flat[at - area] & flat[at + area] & 2
    return across != 0 and flat[at] & 5 == 5


@njit(cache=True, nogil=True)
def _thin_space(packed, closed, tables):
    """Remove until stable; packed: triples of a padded volume, changed in place."""
    depth, height, width = packed.shape
    area = height * width
    flat = packed.ravel()
    capacity = ((depth + 1) // 2) * ((height + 1) // 2) * ((width + 1) // 2)
    lists = np.empty((2, 8, capacity), np.int32)
    sizes = np.zeros((2, 8), np.int64)
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                at = z * area + y * width + x
                if not flat[at] & 2:
                    continue
                parity = (z & 1) << 2 | (y & 1) << 1 | (x & 1)
                flat[at] |= parity << 4
                if closed and _is_enclosed(flat, at, width, area):
                    continue
                if removable_in_space(window_in_space(flat, at, width, area), closed, tables):
                    flat[at] |= QUEUED
                    lists[0, parity, sizes[0, parity]] = at
                    sizes[0, parity] += 1
    around = np.array([z * area + y * width + x for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    now = 0
    while sizes[now].sum() > 0:
        later = 1 - now
        sizes[later] = 0
        ahead, room = lists[later], sizes[later]
        for parity in range(8):
            for at in lists[now, parity, : sizes[now, parity]]:
                flat[at] &= ~np.uint8(QUEUED)
                code = window_in_space(flat, at, width, area)
                if not removable_in_space(code, closed, tables):
                    continue
                erase(flat, at)
                rest = np.uint64(code & ~(1 << 13))
                while rest != 0:
                    other = at + around[lowest_one(rest)]
                    rest &= rest - np.uint64(1)
                    state = flat[other]
                    if not state & QUEUED and not (closed and _is_enclosed(flat, other, width, area)):
                        flat[other] = state | QUEUED
                        group = state >> 4
                        ahead[group, room[group]] = other
                        room[group] += 1
        now = later


@njit(cache=True, nogil=True)
def unpack(packed, shape):
    """0/1 volume from triples."""
    planes, rows, columns = shape
    volume = np.empty(shape, np.uint8)
    lift = 0 if packed.shape[0] == 1 else 1
    for z in range(planes):
        for y in range(rows):
            line = packed[z + lift, y + 1]
            for x in range(columns):
                volume[z, y, x] = line[x + 1] >> 1 & 1
    return volume


def skeletonize(mask, *, connectivity=Connectivity.CLOSED):
    """The one pixel wide centre lines of a mask, with exactly its Betti numbers: bool, shape of the mask.

    mask  (rows, columns) or (planes, rows, columns); every value that is not 0 is foreground
    Every end point of the mask is kept. In the result each pixel is an end point or not simple, so nothing can go
    without breaking the topology or shortening a branch. Cavities of a volume stay, enclosed by a sheet, as exactness
    demands. Deterministic; not invariant under rotation (`topology.centred` nearly is).
    """
    mask = as_mask(mask)
    closed = is_closed(connectivity)
    volume = as_volume(mask)
    packed = triples(volume)
    if mask.ndim == 2:
        packed = packed[1:2]
        _thin_plane(packed[0], removable_in_plane(plane_tables(), closed))
    else:
        _thin_space(packed, closed, space_tables())
    return unpack(packed, volume.shape).reshape(mask.shape).view(bool)
