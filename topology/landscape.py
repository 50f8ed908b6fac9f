"""A map as a landscape: who is higher, where the saddles are, and which peaks and pits they join.

Every pixel is compared with its neighbours once; the answer is a window code whose bits name the higher neighbours. From the code
alone a small table says what happens when the superlevel set reaches the pixel: nothing (almost always), a new component (no
higher neighbour), a merger (higher neighbours in several pieces), a split or end of the background. Only those saddles are
sorted, and only from them does one climb to a peak (or descend to a pit), so the cost is one sweep over the map plus n log n of the
few critical pixels. Climbing marks its way, so no way is climbed twice.

One picture serves both constructions. `up` is 8 [26]-connected and enters from the highest pixel down; `low` is 4 [6]-connected and
enters from the lowest up. Closed cubes: components are mergers of `up`, holes [cavities] are mergers of `low`, and the outside is lower
than all. Open cubes: the same on the negated, reversed map, with the outside higher than all and the roles exchanged.

Levels are int32 with a border of one pixel for the outside. p is higher than q if its level is larger, or equal and its index smaller.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numba import njit

from topology.bits import lowest_one
from topology.grids import as_volume
from topology.simple import pieces_in_space, ring_pieces, space_tables

LOWEST, HIGHEST = -(2**31), 2**31 - 1
LINES_AHEAD = 16
SHORT = 32
"""Lines of the map that are fetched before a climb needs them; steps up to which a way is not worth marking."""


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
    """Pixels whose higher neighbours form several pieces (and so do the lower ones) and their sort keys, peaks and pits counted."""
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
    """Voxels that join pieces of `up` with sort keys, those that join pieces of `low` with theirs, peaks and pits counted."""
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


@njit(cache=True, nogil=True)
def climb(codes, marks, extrema, count, around, sides, up, at):
    """Number of the peak (pit) above (below) a pixel, and the count of extrema so far.

    Short ways are walked again when they are needed again; long ones are marked, so that all climbs together stay linear.
    """
    start = at
    flip = np.uint64(0) if up else ~np.uint64(0)
    steps = 0
    while marks[at] == 0:
        code = (np.uint64(codes[at]) ^ flip) & sides
        if code == 0:
            count += 1
            marks[at] = count
            extrema[count] = at
            break
        at += around[lowest_one(code)]
        steps += 1
    number = marks[at]
    if steps > SHORT:
        at = start
        while marks[at] == 0:
            marks[at] = number
            at += around[lowest_one((np.uint64(codes[at]) ^ flip) & sides)]
    return number, count


@njit(cache=True, nogil=True)
def flood(code, seed, touching):
    """The piece of a window code that contains a seed bit; touching[k] are the bits that bit k touches."""
    piece = seed
    while True:
        grown = piece
        rest = piece
        while rest != 0:
            grown |= touching[lowest_one(rest)]
            rest &= rest - np.uint64(1)
        grown &= code
        if grown == piece:
            return piece
        piece = grown


@njit(cache=True, nogil=True)
def _older(levels, a, b, up):
    """True when pixel a comes before pixel b in the order of `up` (or of `low`); nobody (-1) comes last."""
    if a < 0 or b < 0:
        return b < 0 <= a
    higher = levels[a] > levels[b] or (levels[a] == levels[b] and a < b)
    return higher if up else not higher


@njit(cache=True, nogil=True)
def find(parent, node):
    """Root of a union-find forest, halving the path on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True, nogil=True)
def _mark_frame(shape, flat):
    """int32 marks: 1 on the frame, 0 inside."""
    marks = np.ones(shape, np.int32)
    if flat:
        marks[:, 1:-1, 1:-1] = 0
    else:
        marks[1:-1, 1:-1, 1:-1] = 0
    return marks.ravel()


@njit(cache=True, nogil=True)
def _one_of_each(code, touching, sides):
    """One bit of each piece of a window code that reaches the centre."""
    rest = code & sides
    chosen = np.uint64(0)
    while rest != 0:
        seed = np.uint64(1) << lowest_one(rest)
        chosen |= seed
        rest &= ~flood(code, seed, touching)
    return chosen


@njit(cache=True, nogil=True)
def _seeds_in_plane(window, up):
    """`_one_of_each` for every 9-bit code of higher neighbours, on one side."""
    _, touching, reach, sides = window
    seeds = np.empty(512, np.uint64)
    for code in range(512):
        seeds[code] = _one_of_each((np.uint64(code) if up else ~np.uint64(code)) & reach, touching, sides)
    return seeds


@njit(cache=True, nogil=True)
def find_feet(codes, places, extremes, window, seeds, up, outside, flat):
    """For each saddle, in raster order so that memory is near, the extremum above (below) each piece of its higher (lower) neighbours.

    seeds    one bit of each piece for every code of the plane; empty in space
    returns  where the feet of each saddle start, the numbers of their extrema, and for further climbs: marks, extrema, count of extrema
    """
    around, touching, reach, sides = window
    flat_codes = codes.ravel()
    marks = _mark_frame(codes.shape, flat) if outside else np.zeros(codes.size, np.int32)
    extrema = np.zeros(extremes + 2, np.int64)
    count = 1 if outside else 0
    starts = np.empty(places.size + 1, np.int64)
    feet = np.empty(8 * places.size + 1, np.int32)
    n = 0
    ahead = np.int64(0)
    touched = np.int64(0)
    reach_ahead = LINES_AHEAD * codes.shape[2]
    for k in range(places.size):
        at = places[k]
        # Climbs wander over a few lines; reading those in a row first lets the processor fetch them before they are needed.
        while ahead < min(at + reach_ahead, flat_codes.size):
            touched += flat_codes[ahead] + marks[ahead]
            ahead += 16
        starts[k] = n
        code = np.uint64(flat_codes[at])
        rest = seeds[code] if flat else _one_of_each((code if up else ~code) & reach, touching, sides)
        while rest != 0:
            feet[n], count = climb(flat_codes, marks, extrema, count, around, sides, up, at + around[lowest_one(rest)])
            rest &= rest - np.uint64(1)
            n += 1
    starts[places.size] = n
    return starts, feet[:n].copy(), marks, extrema, np.array([count, touched])


@njit(cache=True, nogil=True)
def _elders_inside(codes, climbs, window, up, outside, ages, born):
    """For each extremum of this map, the oldest extremum of an inner map on its slopes; -1 where there is none."""
    around, _, _, sides = window
    marks, extrema, counter = climbs
    flat_codes = codes.ravel()
    elders = np.full(extrema.size, -1)
    if outside:
        elders[1] = 0
    for at in born:
        number, counter[0] = climb(flat_codes, marks, extrema, counter[0], around, sides, up, at)
        if _older(ages, at, elders[number], up):
            elders[number] = at
    return elders


@njit(cache=True, nogil=True)
def merge(levels, places, order, starts, feet, elders, up, ages, inner):
    """Merge tree of one side: for each joining of two components, the extremum that dies and the saddle where it does.

    places, starts, feet  saddles in raster order and the extrema they join, from `find_feet`
    order                 saddles in the order of the side
    elders                the oldest member of each extremum's component: itself, or of a map whose components lie inside (inner)
    ages                  levels that decide who is older: `levels`, or those of the inner map
    returns               extremum (-1: that component holds none that is born by then) and saddle of each joining, number at each saddle
    """
    elders = elders.copy()
    parent = np.arange(elders.size)
    young = np.empty(elders.size, np.int64)
    place = np.empty(elders.size, np.int64)
    merged = np.zeros(order.size, np.uint8)
    n = 0
    for k in range(order.size):
        saddle = order[k]
        at = places[saddle]
        mine = find(parent, np.int64(feet[starts[saddle]]))
        for foot in feet[starts[saddle] + 1 : starts[saddle + 1]]:
            root = find(parent, np.int64(foot))
            if mine == root:
                continue
            if _older(ages, elders[root], elders[mine], up):
                mine, root = root, mine
            parent[root] = mine
            dies = elders[root]
            if inner and dies >= 0 and (ages[dies] <= levels[at] if up else ages[dies] >= levels[at]):
                dies = -1
            young[n] = dies
            place[n] = at
            n += 1
            merged[k] += 1
    return young[:n], place[:n], merged


def _touching(ndim, full):
    """For each bit of the window, the bits it touches: by sides and corners (full), or by sides within reach of the low side."""
    steps = np.stack(np.unravel_index(np.arange(3**ndim), (3,) * ndim), axis=1) - 1
    allowed = np.abs(steps).sum(1) > 0
    if not full:
        allowed &= np.abs(steps).sum(1) <= 2
    apart = np.abs(steps[:, None] - steps[None])
    near = apart.max(2) <= 1 if full else apart.sum(2) <= 1
    near &= allowed[:, None] & allowed[None]
    bits = np.uint64(1) << np.arange(3**ndim, dtype=np.uint64)
    reach = np.uint64(int(bits[allowed].sum()))
    sides = reach if full else np.uint64(int(bits[np.abs(steps).sum(1) == 1].sum()))
    return (near * bits).sum(1).astype(np.uint64), reach, sides


@cache
def _window(ndim, strides, up):
    """What `merge` needs to know of a window: offsets of its bits, which touch, which count, which reach the centre."""
    steps = np.stack(np.unravel_index(np.arange(3**ndim), (3,) * ndim), axis=1) - 1
    return steps @ np.array(strides), *_touching(ndim, up)


@cache
def _kinds_in_plane():
    """Per 9-bit code of higher neighbours: 0 regular, 1 peak, 2 pit, 3 saddle."""
    eight, four = ring_pieces()
    low = four[::-1]
    return np.where(eight == 0, 1, np.where(low == 0, 2, np.where(eight > 1, 3, 0))).astype(np.uint8)


@dataclass(frozen=True)
class Side:
    """The saddles of one side of a landscape: in raster order, and their numbers in the order of the side; and how many extrema."""

    places: np.ndarray
    order: np.ndarray
    extremes: int

    @property
    def saddles(self):
        """Framed linear indices in the order of the side."""
        return self.places[self.order]


@dataclass(frozen=True)
class Landscape:
    """One framed map with its window codes and its sorted saddles; made by `survey`, read by persistence and matching."""

    levels: np.ndarray
    codes: np.ndarray
    up: Side
    low: Side
    shape: tuple
    closed: bool

    def window(self, up):
        """Neighbourhood facts of one side for the kernels."""
        _, height, width = self.levels.shape
        strides = (height * width, width, 1)[3 - len(self.shape) :]
        return _window(len(self.shape), strides, up)

    @cached_property
    def _up_feet(self):
        return self._feet(True)

    @cached_property
    def _low_feet(self):
        return self._feet(False)

    def _feet(self, up):
        side = self.up if up else self.low
        window, flat = self.window(up), len(self.shape) == 2
        seeds = _seeds_in_plane(window, up) if flat else np.empty(0, np.uint64)
        return find_feet(self.codes, side.places, side.extremes, window, seeds, up, up != self.closed, flat)

    def merge(self, up, inner=None, born=()):
        """Mergers of one side: (extremum, saddle) in framed linear indices, and how many happened at each saddle.

        With `inner`, a landscape whose components lie inside these and whose extrema are `born`, the extremum is the one of
        `inner` that dies in the joining of these components: the image of one merge tree in the other.
        """
        side = self.up if up else self.low
        starts, feet, *climbs = self._up_feet if up else self._low_feet
        if inner is None:
            ages, elders = self.levels.ravel(), climbs[1]
        else:
            ages = inner.levels.ravel()
            elders = _elders_inside(self.codes, tuple(climbs), self.window(up), up, up != self.closed, ages, np.sort(born))
        return merge(self.levels.ravel(), side.places, side.order, starts, feet, elders, up, ages, inner is not None)

    def unframe(self, framed):
        """Linear indices of the caller's map from framed ones, the reversal of open cubes undone."""
        _, height, width = self.levels.shape
        plane, rest = np.divmod(np.asarray(framed, np.int64), height * width)
        row, column = np.divmod(rest, width)
        lift = len(self.shape) - 2
        linear = ((plane - lift) * self.shape[-2] + row - 1) * self.shape[-1] + column - 1
        return linear if self.closed else int(np.prod(self.shape)) - 1 - linear


def rank(values):
    """int32 ranks of a float64 array, equal values sharing one: the same order in half the bits."""
    return np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(np.int32)


def _levels(values, closed):
    """Framed int32 levels of a float32 map or of ranks."""
    values = values if closed else -values[(slice(None, None, -1),) * values.ndim]
    outside = LOWEST if closed else HIGHEST
    if values.dtype == np.int32:
        return as_volume(np.pad(values, 1, constant_values=outside))
    return _frame_floats(np.ascontiguousarray(as_volume(values)), outside, values.ndim == 2)


def survey(values, *, closed):
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
    return Landscape(levels, codes, Side(places, ups, peaks), Side(low_places, lows[::-1].copy(), pits), values.shape, closed)


def _ordinals(keys):
    """Numbers in raster order, highest saddle first, from sort keys."""
    return (np.sort(keys) & np.uint64(0xFFFFFFFF)).astype(np.int64)
