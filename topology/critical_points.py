"""The critical points of a map: its saddles, and the peaks and pits they join.

Every pixel is compared with its neighbours once; the answer is a window code whose bits name the higher neighbours.
From the code alone a small table says what happens when the superlevel set reaches the pixel: nothing (almost always),
a new component (no higher neighbour), a merger (higher neighbours in several pieces), a split or end of the background.
Only those saddles are sorted, and only from them does one climb to a peak (or descend to a pit), so the cost is one
sweep over the map plus n log n of the few critical pixels. Climbing marks its way, so no way is climbed twice.

One picture serves both constructions. `up` is 8 [26]-connected and enters from the highest pixel down; `low` is 4
[6]-connected and enters from the lowest up. Closed cubes: components are mergers of `up`, holes [cavities] are mergers
of `low`, and the outside is lower than all. Open cubes: the same on the negated, reversed map, with the outside higher
than all and the roles exchanged.

Levels are int32 with a border of one pixel for the outside. p is higher than q if its level is larger, or equal and its
index smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.grids import as_volume
from topology.merge_trees import (
    Window,
    all_joined,
    by_age,
    elders_inside,
    find_feet,
    merge,
    seeds_in_plane,
    window_of,
)
from topology.simple import pieces_in_space, ring_pieces, space_tables
from topology.sorting import falling_key, ordered_level, sort_by

LOWEST, HIGHEST = -(2**31), 2**31 - 1
PEAK, PIT, SADDLE = 1, 2, 3
"""Kinds of pixels of the plane; 0 is a regular one."""


@njit(cache=True, nogil=True)
def _frame_floats(values, outside, flat):
    """Order-preserving int32 levels of a float32 volume, framed by the outside; -0.0 equals 0.0."""
    planes, rows, columns = values.shape
    lift = 0 if flat else 1
    levels = np.full((planes + 2 * lift, rows + 2, columns + 2), outside, np.int32)
    for z in range(planes):
        for y in range(rows):
            out = levels[z + lift, y + 1]
            line = values[z, y]
            for x in range(columns):
                out[x + 1] = ordered_level(line[x])
    return levels


@njit(cache=True, nogil=True)
def _compare(levels, flat):
    """uint32 window code of every pixel inside the frame: bit k is set where raster neighbour k is higher."""
    depth, height, width = levels.shape
    codes = np.zeros(levels.shape, np.uint32)
    for z in range(0 if flat else 1, depth if flat else depth - 1):
        for y in range(1, height - 1):
            here = levels[z, y, 1 : width - 1]
            out = codes[z, y, 1 : width - 1]
            for k in range(9 if flat else 27):
                plane = z if flat else z + k // 9 - 1
                start = k % 3
                other = levels[plane, y + k % 9 // 3 - 1, start : start + width - 2]
                bit = np.uint32(1) << np.uint32(k)
                if k < (4 if flat else 13):
                    for x in range(here.size):
                        out[x] |= bit if other[x] >= here[x] else np.uint32(0)
                else:
                    for x in range(here.size):
                        out[x] |= bit if other[x] > here[x] else np.uint32(0)
    return codes


@njit(cache=True, nogil=True)
def _saddles_in_plane(levels, codes, kinds):
    """Pixels whose higher neighbours form several pieces (and so do the lower ones) in raster order, their numbers from
    the highest on, peaks and pits counted.
    """
    _, height, width = levels.shape
    flat_codes = codes.ravel()
    places = np.empty(codes.size, np.int64)
    n = peaks = pits = 0
    for y in range(1, height - 1):
        for at in range(y * width + 1, y * width + width - 1):
            kind = kinds[flat_codes[at]]
            # Written without branches, which noise would make unpredictable.
            places[n] = at
            n += kind == SADDLE
            peaks += kind == PEAK
            pits += kind == PIT
    places = places[:n].copy()
    return places, _highest_first(levels.ravel(), places), peaks, pits


@njit(cache=True, nogil=True)
def _highest_first(levels, places):
    """Numbers of places in raster order, the highest place first, of equal ones the earlier."""
    keys = np.empty(places.size, np.uint32)
    for k in range(places.size):
        keys[k] = falling_key(levels[places[k]])
    return sort_by(keys, np.arange(places.size))


@njit(cache=True, nogil=True)
def _saddles_in_space(levels, codes, tables):
    """Voxels that join pieces of `up` and those that join pieces of `low`, each with their numbers from the highest on,
    peaks and pits counted.
    """
    depth, height, width = levels.shape
    flat_codes = codes.ravel()
    up_places, low_places = np.empty(codes.size, np.int32), np.empty(codes.size, np.int32)
    ups = lows = peaks = pits = 0
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            line = (z * height + y) * width
            for at in range(line + 1, line + width - 1):
                inside, outside = pieces_in_space(np.int64(flat_codes[at]), tables)
                up_places[ups] = low_places[lows] = at
                ups += inside > 1
                lows += outside > 1
                peaks += inside == 0
                pits += outside == 0
    flat_levels = levels.ravel()
    up_chosen, low_chosen = up_places[:ups].astype(np.int64), low_places[:lows].astype(np.int64)
    return (
        up_chosen,
        _highest_first(flat_levels, up_chosen),
        low_chosen,
        _highest_first(flat_levels, low_chosen),
        peaks,
        pits,
    )


@cache
def _kinds_in_plane():
    """Per 9-bit code of higher neighbours: 0 regular, 1 peak, 2 pit, 3 saddle."""
    eight, four = ring_pieces()
    low = four[::-1]
    return np.where(eight == 0, PEAK, np.where(low == 0, PIT, np.where(eight > 1, SADDLE, 0))).astype(np.uint8)


@dataclass(frozen=True)
class Side:
    """The saddles of one side of a map: in raster order, and their numbers in the order of the side; and how many
    extrema.
    """

    places: np.ndarray
    order: np.ndarray
    extremes: int

    @property
    def saddles(self) -> np.ndarray:
        """Framed linear indices in the order of the side."""
        return self.places[self.order]


@dataclass(frozen=True)
class MergeTree:
    """What the saddles of one side join: see `topology.merge_trees`.

    side            the saddles
    starts, feet    where the feet of each saddle start, and the numbers of their extrema
    climbs          marks, extrema and their count, for further climbs
    extrema         (K,) framed index of the extremum that dies in each joining
    saddles         (K,) framed index of the pixel that joins
    joined          for each foot, 1 where it joined another component
    """

    side: Side
    starts: np.ndarray
    feet: np.ndarray
    climbs: tuple[np.ndarray, np.ndarray, np.ndarray]
    extrema: np.ndarray
    saddles: np.ndarray
    joined: np.ndarray


@dataclass(frozen=True)
class CriticalPoints:
    """One framed map with its window codes and its sorted saddles;
    made by `survey`, read by persistence and matching.
    """

    levels: np.ndarray
    codes: np.ndarray
    up: Side
    low: Side
    shape: tuple
    closed: bool

    def window(self, up: bool) -> Window:
        """Neighbourhood facts of one side for the kernels."""
        _, height, width = self.levels.shape
        strides = (height * width, width, 1)[3 - len(self.shape) :]
        return window_of(len(self.shape), strides, up)

    @cached_property
    def up_tree(self) -> MergeTree:
        """Where the saddles of the high side lead, and what they join."""
        return self._tree(self.up, True)

    @cached_property
    def low_tree(self) -> MergeTree:
        """The same of the low side; in the plane without the saddles that join components of the high side alone.

        A saddle of k pieces joins k - 1 pairs of components, of the one side or of the other, for the ring around it is
        cut into as many pieces of either.
        """
        if len(self.shape) == 3:
            return self._tree(self.low, False)
        left = ~all_joined(self.up_tree.starts, self.up_tree.joined)
        order = self.low.order[left[self.low.order]]
        side = Side(self.low.places[left], (np.cumsum(left) - 1)[order], self.low.extremes)
        return self._tree(side, False)

    def _tree(self, side, up):
        window, flat, outside = self.window(up), len(self.shape) == 2, up != self.closed
        seeds = seeds_in_plane(window, up) if flat else np.empty(0, np.uint64)
        starts, feet, *climbs = find_feet(self.codes, side.places, side.extremes, window, seeds, up, outside, flat)
        levels, (_, extrema, counter) = self.levels.ravel(), climbs
        aged = by_age(levels, extrema[1 : counter[0] + 1], up)
        elders = elders_inside(self.codes, tuple(climbs), window, up, outside, aged)
        found = merge(levels, side.places, side.order, starts, feet, elders, aged, levels, up, False)
        return MergeTree(side, starts, feet, tuple(climbs), *found)

    def merge(
        self, up: bool, inner: CriticalPoints | None = None, born: ArrayLike = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mergers of one side: (extremum, saddle) in framed linear indices.

        With `inner`, of a map whose components lie inside these and whose extrema are `born`, the extremum is the
        one of `inner` that dies in the joining of these components: the image of one merge tree in the other.
        """
        tree = self.up_tree if up else self.low_tree
        if inner is None:
            return tree.extrema, tree.saddles
        outside, ages = up != self.closed, inner.levels.ravel()
        born = np.asarray(born, np.int64)
        aged = by_age(ages, np.append(born, 0) if outside else born, up)
        elders = elders_inside(self.codes, tree.climbs, self.window(up), up, outside, aged)
        side, levels = tree.side, self.levels.ravel()
        found = merge(levels, side.places, side.order, tree.starts, tree.feet, elders, aged, ages, up, True)
        return found[:2]

    def unframe(self, framed: ArrayLike) -> np.ndarray:
        """Linear indices of the caller's map from framed ones, the reversal of open cubes undone."""
        _, height, width = self.levels.shape
        volume = (1,) * (3 - len(self.shape)) + self.shape
        return _unframe(np.asarray(framed, np.int64), height, width, volume, len(self.shape) == 2, self.closed)


@njit(cache=True, nogil=True)
def _unframe(framed, height, width, shape, flat, closed):
    """Linear indices of a volume of the given shape."""
    linear = np.empty(framed.size, np.int64)
    last = shape[0] * shape[1] * shape[2] - 1
    wide, high = np.uint32(width), np.uint32(height)
    for k in range(framed.size):
        at = np.uint32(framed[k])  # division of 32 bits is several times faster
        line = np.uint32(at // wide)
        column = np.int64(at - line * wide)
        plane = np.uint32(line // high)
        row = np.int64(line - plane * high)
        place = ((np.int64(plane) if flat else np.int64(plane) - 1) * shape[1] + row - 1) * shape[2] + column - 1
        linear[k] = place if closed else last - place
    return linear


def rank(values: np.ndarray) -> np.ndarray:
    """int32 ranks of a float64 array, equal values sharing one: the same order in half the bits."""
    return np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(np.int32)


def _levels(values, closed):
    """Framed int32 levels of a float32 map or of ranks."""
    values = values if closed else -values[(slice(None, None, -1),) * values.ndim]
    outside = LOWEST if closed else HIGHEST
    if values.dtype == np.int32:
        return as_volume(np.pad(values, 1, constant_values=outside))
    return _frame_floats(np.ascontiguousarray(as_volume(values)), outside, values.ndim == 2)


def survey(values: np.ndarray, *, closed: bool) -> CriticalPoints:
    """Compare every pixel with its neighbours and sort the saddles.

    values  (rows, columns) or (planes, rows, columns), float32 as `grids.as_map` gives it, or int32 ranks
    """
    flat = values.ndim == 2
    levels = _levels(values, closed)
    codes = _compare(levels, flat)
    if flat:
        places, ups, peaks, pits = _saddles_in_plane(levels, codes, _kinds_in_plane())
        low_places, lows = places, ups
    else:
        places, ups, low_places, lows, peaks, pits = _saddles_in_space(levels, codes, space_tables())
    return CriticalPoints(
        levels, codes, Side(places, ups, peaks), Side(low_places, lows[::-1].copy(), pits), values.shape, closed
    )
