"""Homotopy warping: one mask moved towards another without changing its topology.

Pixels in which the two differ are flipped one at a time, each only while it is simple, so every mask on the way has the
topology of the first. What cannot be reached is where the second is topologically different.

Growing comes before shrinking, and both are repeated until nothing moves: a line that lies one row higher is first
thickened and then thinned, so it arrives; a line that is shrunk first breaks. Source: Hu, "Structure-Aware Image
Segmentation with Homotopy Warping", NeurIPS 2022, with exact simple points (the published test of them lets 81 of 400
masks change their Betti numbers) and to the end instead of one pass.
"""

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.distance import distance_inside, distance_to
from topology.grids import as_mask, as_volume, same_shape
from topology.simple import plane_tables, simple_in_space, space_tables, triples, window_in_plane, window_in_space


@njit(cache=True, nogil=True)
def _flip(flat, at):
    """Turn a pixel in the three bytes that hold it."""
    flat[at - 1] ^= 4
    flat[at] ^= 2
    flat[at + 1] ^= 1


@njit(cache=True, nogil=True)
def _simple(flat, at, width, area, planar, plane_table, tables):
    """Whether a pixel may be flipped; with or without it, its neighbours decide."""
    if planar:
        return plane_table[window_in_plane(flat, at, width) | 16] != 0
    return simple_in_space(window_in_space(flat, at, width, area) | 1 << 13, tables)


@njit(cache=True, nogil=True)
def _flip_simple(flat, places, waiting, width, area, planar, plane_table, tables):
    """Flip the waiting pixels in order, each if it is simple then, until none is; how many were flipped."""
    flipped = 0
    moved = True
    while moved:
        moved = False
        for k in range(places.size):
            if waiting[k] and _simple(flat, places[k], width, area, planar, plane_table, tables):
                _flip(flat, places[k])
                waiting[k] = False
                moved = True
                flipped += 1
    return flipped


@njit(cache=True, nogil=True)
def _warp(packed, added, removed, planar, plane_table, tables):
    """Grow and shrink flattened triples in turns until nothing moves."""
    width = packed.shape[2]
    area = packed.shape[1] * width
    flat = packed.ravel()
    to_add = np.ones(added.size, np.bool_)
    to_remove = np.ones(removed.size, np.bool_)
    while True:
        grown = _flip_simple(flat, added, to_add, width, area, planar, plane_table, tables)
        shrunk = _flip_simple(flat, removed, to_remove, width, area, planar, plane_table, tables)
        if grown + shrunk == 0 or (shrunk == 0 and not to_add.any()) or (grown == 0 and not to_remove.any()):
            return to_add, to_remove


def _nearest_first(wrong, distance):
    """Flat places of some pixels, in order of their distance; of equal ones the first in memory."""
    places = np.flatnonzero(wrong)
    return places[np.argsort(distance.ravel()[places], kind="stable")]


def unreached(mask: ArrayLike, goal: ArrayLike) -> np.ndarray:
    """Where a mask that is warped to another one still differs from it: bool, shape of the masks.

    mask, goal  (rows, columns) or (planes, rows, columns); every value that is not 0 is foreground
    Foreground is 8-connected [26], background 4-connected [6], and so is what lies outside. Pixels are added in order
    of their distance to the mask and removed in that of their distance to its background. Nothing is left exactly
    when simple moves within the wrong pixels, in this order, lead from one to the other; where Betti numbers differ,
    something is left. Masks of different shapes are refused (ValueError).
    """
    same_shape(mask, goal, "Mask and goal")
    mask, goal = as_mask(mask), as_mask(goal)
    missing, extra = (goal > mask), (mask > goal)
    left = missing | extra
    if not left.any() or not mask.any():
        return left
    added = _nearest_first(missing, distance_to(mask)) if missing.any() else np.empty(0, np.int64)
    removed = _nearest_first(extra, distance_inside(mask)) if extra.any() else np.empty(0, np.int64)
    volume = as_volume(mask)
    packed = triples(volume)
    to_add, to_remove = _warp(
        packed,
        _padded(added, volume.shape),
        _padded(removed, volume.shape),
        mask.ndim == 2,
        plane_tables()[0],
        space_tables(),
    )
    left = np.zeros(mask.size, bool)
    left[added[to_add]] = left[removed[to_remove]] = True
    return left.reshape(mask.shape)


def _padded(places, shape):
    """Flat places of a volume to those in its triples."""
    plane, row, column = np.unravel_index(places, shape)
    return ((plane + 1) * (shape[1] + 2) + row + 1) * (shape[2] + 2) + column + 1
