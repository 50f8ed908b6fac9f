"""Centred skeletons: simple points are removed in the order of their distance to the background.

A heap holds the pixels that may go, nearest to the background first; a pixel that leaves lays its neighbours bare.
Because the order comes from the shape, not from the scan, the skeleton turns and mirrors with the mask up to ties
between equally distant pixels.
"""

import heapq

import numpy as np
from numba import njit

from topology.distance import distance_inside
from topology.graph import skeleton_graph
from topology.grids import Connectivity, as_mask, as_volume, is_closed
from topology.simple import plane_tables, space_tables, triples, window_in_plane, window_in_space
from topology.skeleton import erase, removable_in_plane, removable_in_space, skeletonize, unpack


@njit(cache=True, nogil=True)
def _may_go(flat, at, width, area, plane, closed, tables):
    """(may the pixel leave, its window code); plane: the table of the plane, empty in space."""
    if plane.size:
        code = window_in_plane(flat, at, width)
        return plane[code] != 0, code
    code = window_in_space(flat, at, width, area)
    return removable_in_space(code, closed, tables), code


@njit(cache=True, nogil=True)
def _thin_by_rank(packed, ranks, plane, closed, tables):
    """Remove until stable, lowest rank first; packed: triples of a framed volume (of one unframed plane), changed in
    place.
    """
    _, height, width = packed.shape
    area = height * width
    flat = packed.ravel()
    bits = 9 if plane.size else 27
    around = np.empty(bits, np.int64)
    for k in range(bits):
        around[k] = (0 if bits == 9 else k // 9 - 1) * area + (k // 3 % 3 - 1) * width + k % 3 - 1
    waiting = np.zeros(flat.size, np.uint8)
    heap = [(np.int64(0), np.int64(0))]
    heap.pop()
    for at in range(flat.size):
        if flat[at] & 2 and _may_go(flat, at, width, area, plane, closed, tables)[0]:
            heap.append((ranks[at], np.int64(at)))
            waiting[at] = 1
    heapq.heapify(heap)
    while len(heap) > 0:
        _, at = heapq.heappop(heap)
        waiting[at] = 0
        leaves, code = _may_go(flat, at, width, area, plane, closed, tables)
        if not leaves:
            continue
        erase(flat, at)
        for bit in range(bits):
            other = at + around[bit]
            if code >> bit & 1 and other != at and not waiting[other]:
                waiting[other] = 1
                heapq.heappush(heap, (ranks[other], other))


def _ranks(volume, distance):
    """int64 order of the pixels of a framed volume: by distance, of equal ones those with fewer foreground neighbours
    first.
    """
    crowd = np.zeros(volume.shape, np.int64)
    for axis in range(volume.ndim):
        crowd += np.roll(volume, 1, axis) + np.roll(volume, -1, axis)
    return np.rint(distance**2 * 64).astype(np.int64) * 64 + crowd


def centred_skeleton(mask, *, spacing=None, connectivity=Connectivity.CLOSED):
    """Like `skeletonize`, with the lines in the middle of the object: bool, shape of the mask; same guarantees, a few
    times slower.

    spacing  pixel size along each axis; the middle is the middle in this metric
    """
    mask = as_mask(mask)
    closed = is_closed(connectivity)
    flat = mask.ndim == 2
    distance = np.pad(distance_inside(mask, spacing=spacing), 1)
    ranks = as_volume(_ranks(np.pad(mask, 1), distance)).ravel()
    packed = triples(as_volume(mask))
    if flat:
        packed = packed[1:2].copy()
    plane = removable_in_plane(plane_tables(), closed) if flat else np.empty(0, np.uint8)
    _thin_by_rank(packed, ranks, plane, closed, space_tables())
    return unpack(packed, as_volume(mask).shape).reshape(mask.shape).view(bool)


def prune(skeleton, *, shorter_than, spacing=None, connectivity=Connectivity.CLOSED):
    """The skeleton without its side branches that are shorter than a length: bool. Betti numbers are kept.

    shorter_than  length in the unit of the spacing (pixels without one); a branch goes if one end is free and the other
                  meets others
    Branches go one round at a time, shortest first at each meeting place, because what is left may join into longer
    ones.
    """
    skeleton = as_mask(skeleton).copy()
    while True:
        graph = skeleton_graph(skeleton, spacing=spacing, connectivity=connectivity)
        gone = _short_twigs(graph, shorter_than)
        if not gone:
            return skeleton.view(bool)
        for branch, free in gone:
            pixels = branch.pixels if free == branch.nodes[0] else branch.pixels[::-1]
            skeleton[tuple(pixels[:-1].T)] = 0
        skeleton = skeletonize(skeleton, connectivity=connectivity).view(np.uint8)


def _short_twigs(graph, shorter_than):
    """At most one branch for each meeting place: the shortest with a free end, and the node of that end."""
    shortest = {}
    for branch in graph.branches:
        ends = [graph.nodes[node] for node in branch.nodes if node >= 0]
        free = [
            node
            for node in branch.nodes
            if node >= 0 and graph.nodes[node].degree == 1 and len(graph.nodes[node].pixels) == 1
        ]
        if branch.length < shorter_than and len(free) == 1 and len(ends) == 2:
            base = branch.nodes[0] + branch.nodes[1] - free[0]
            if graph.nodes[base].degree > 2 and (base not in shortest or branch.length < shortest[base][0].length):
                shortest[base] = (branch, free[0])
    return list(shortest.values())
