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
from topology.merge_trees import Window, elders_inside, find_feet, merge, seeds_in_plane, window_of
from topology.simple import pieces_in_space, ring_pieces, space_tables

LOWEST, HIGHEST = -(2**31), 2**31 - 1


@njit(cache=True, nogil=True)
def _frame_floats(values, outside, flat):
    """Order-preserving int32 levels of a float32 volume, framed by the outside; -0.0 equals 0.0."""
    planes, rows, columns = values.shape
    lift = 0 if flat else 1
    levels = np.full((planes + 2 * lift, rows + 2, columns + 2), outside, np.int32)
    for z in range(planes):
        for y in range(rows):
            out = levels[z + lift, y + 1]
            bits = (values[z, y] + np.float32(0)).view(np.int32)
            for x in range(columns):
                out[x + 1] = bits[x] ^ ((bits[x] >> np.int32(31)) & np.int32(0x7FFFFFFF))
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
def _key(level, number):
    """Sorting keys ascending puts the highest pixel first, of equal ones that of the smaller number in raster order."""
    return np.uint64(2**31 - 1 - np.int64(level)) << np.uint64(32) | np.uint64(number)


@njit(cache=True, nogil=True)
def _saddles_in_plane(levels, codes, pieces):
    """Pixels whose higher neighbours form several pieces (and so do the lower ones) and their sort keys, peaks and pits
    counted.
    """
    _, height, width = levels.shape
    flat_codes = codes.ravel()
    flat_levels = levels.ravel()
    keys = np.empty(codes.size, np.uint64)
    places = np.empty(codes.size, np.int64)
    n = peaks = pits = 0
    for y in range(1, height - 1):
        for at in range(y * width + 1, y * width + width - 1):
            found = pieces[flat_codes[at]]
            if found != 0:
                if found == 1:
                    peaks += 1
                elif found == 2:
                    pits += 1
                else:
                    places[n] = at
                    keys[n] = _key(flat_levels[at], n)
                    n += 1
    return places[:n].copy(), keys[:n], peaks, pits


@njit(cache=True, nogil=True)
def _saddles_in_space(levels, codes, tables):
    """Voxels that join pieces of `up` with sort keys, those that join pieces of `low` with theirs, peaks and pits
    counted.
    """
    depth, height, width = levels.shape
    flat_codes = codes.ravel()
    flat_levels = levels.ravel()
    up_keys, low_keys = np.empty(codes.size, np.uint64), np.empty(codes.size, np.uint64)
    up_places, low_places = np.empty(codes.size, np.int64), np.empty(codes.size, np.int64)
    ups = lows = peaks = pits = 0
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            line = (z * height + y) * width
            for at in range(line + 1, line + width - 1):
                inside, outside = pieces_in_space(np.int64(flat_codes[at]), tables)
                if inside == 1 and outside == 1:
                    continue
                peaks += inside == 0
                pits += outside == 0
                if inside > 1:
                    up_places[ups] = at
                    up_keys[ups] = _key(flat_levels[at], ups)
                    ups += 1
                if outside > 1:
                    low_places[lows] = at
                    low_keys[lows] = _key(flat_levels[at], lows)
                    lows += 1
    return up_places[:ups].copy(), up_keys[:ups], low_places[:lows].copy(), low_keys[:lows], peaks, pits


@cache
def _kinds_in_plane():
    """Per 9-bit code of higher neighbours: 0 regular, 1 peak, 2 pit, 3 saddle."""
    eight, four = ring_pieces()
    low = four[::-1]
    return np.where(eight == 0, 1, np.where(low == 0, 2, np.where(eight > 1, 3, 0))).astype(np.uint8)


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
    def _up_feet(self):
        return self._feet(True)

    @cached_property
    def _low_feet(self):
        return self._feet(False)

    def _feet(self, up):
        side = self.up if up else self.low
        window, flat = self.window(up), len(self.shape) == 2
        seeds = seeds_in_plane(window, up) if flat else np.empty(0, np.uint64)
        return find_feet(self.codes, side.places, side.extremes, window, seeds, up, up != self.closed, flat)

    def merge(
        self, up: bool, inner: CriticalPoints | None = None, born: ArrayLike = ()
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mergers of one side: (extremum, saddle) in framed linear indices, and how many happened at each saddle.

        With `inner`, of a map whose components lie inside these and whose extrema are `born`, the extremum is the
        one of `inner` that dies in the joining of these components: the image of one merge tree in the other.
        """
        side = self.up if up else self.low
        starts, feet, *climbs = self._up_feet if up else self._low_feet
        if inner is None:
            ages, elders = self.levels.ravel(), climbs[1]
        else:
            ages = inner.levels.ravel()
            elders = elders_inside(
                self.codes, tuple(climbs), self.window(up), up, up != self.closed, ages, np.sort(born)
            )
        return merge(self.levels.ravel(), side.places, side.order, starts, feet, elders, up, ages, inner is not None)

    def unframe(self, framed: ArrayLike) -> np.ndarray:
        """Linear indices of the caller's map from framed ones, the reversal of open cubes undone."""
        _, height, width = self.levels.shape
        plane, rest = np.divmod(np.asarray(framed, np.int64), height * width)
        row, column = np.divmod(rest, width)
        lift = len(self.shape) - 2
        linear = ((plane - lift) * self.shape[-2] + row - 1) * self.shape[-1] + column - 1
        return linear if self.closed else int(np.prod(self.shape)) - 1 - linear


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
        places, keys, peaks, pits = _saddles_in_plane(levels, codes, _kinds_in_plane())
        ups = lows = _ordinals(keys)
        low_places = places
    else:
        places, up_keys, low_places, low_keys, peaks, pits = _saddles_in_space(levels, codes, space_tables())
        ups, lows = _ordinals(up_keys), _ordinals(low_keys)
    return CriticalPoints(
        levels, codes, Side(places, ups, peaks), Side(low_places, lows[::-1].copy(), pits), values.shape, closed
    )


def _ordinals(keys):
    """Numbers in raster order, highest saddle first, from sort keys."""
    return (np.sort(keys) & np.uint64(0xFFFFFFFF)).astype(np.int64)
