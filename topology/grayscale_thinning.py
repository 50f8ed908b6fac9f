"""Grayscale homotopic thinning: a skeleton that keeps the topology of every superlevel set.

Lower one pixel x from a value to a smaller one: only the superlevel sets of thresholds between the two change, and each
of them loses x. If x is simple in each, none changes its homotopy type, and the sets stay nested. So any sequence of
such steps keeps the Betti numbers of every threshold, in whatever order and whichever pixels are left alone, and each
bar of the result is a bar of the map (destructible points: Couprie, Bezerra and Bertrand, Journal of Electronic Imaging
2001). Between two values of its neighbours the pattern around x is constant, so one question to the table of simple
points decides a whole interval: x falls from neighbour value to neighbour value until it would not be simple.

Lowest pixels first, each as far as it falls, in the order (value, generation, parity class, place). A pixel that can
fall anew because a neighbour fell goes to the next generation of its value, so plateaus peel from all sides and the
middle of a bar is left; pixels of one parity class do not touch. Pixels that wait from the start are sorted once; those
that come later have values no higher than the one that is being treated and go to a heap, which stays small.

Every value of the result is the value of some pixel of the map, its donor, or 0, the value of the outside. So the
gradient of a function of the skeleton by the map is one sum over donors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.bits import lowest_one
from topology.critical_points import rank
from topology.grids import Connectivity, as_map, as_mask, is_closed, same_shape
from topology.simple import plane_tables, simple_in_space, space_tables

NOBODY = -1


@dataclass(frozen=True)
class GrayscaleSkeleton:
    """What grayscale thinning leaves of a map.

    values  float32 or float64, shape and type of the map: at most the map
    donors  int64, the same shape: linear index of the pixel whose value a pixel has; -1 for the value 0 of the outside
    """

    values: np.ndarray
    donors: np.ndarray

    def back(self, gradient: np.ndarray) -> np.ndarray:
        """Gradient by the map, float64, from the gradient by `values`: each pixel's goes to its donor."""
        gradient, taken = np.asarray(gradient, np.float64), self.donors >= 0
        total = np.bincount(self.donors[taken], weights=gradient[taken], minlength=self.values.size)
        return total.reshape(self.values.shape)

    def crests(self, contrast: float = 0.0) -> np.ndarray:
        """bool: pixels that stand above their lowest neighbour by more than `contrast`, the outside among them.

        Off its crests the skeleton is not 0 but the lowest value around: the bottom of the basin.
        """
        values, ndim = np.pad(self.values, 1), self.values.ndim
        lowest = self.values.copy()
        for step in np.ndindex((3,) * ndim):
            window = tuple(slice(first, first + side) for first, side in zip(step, self.values.shape, strict=True))
            np.minimum(lowest, values[window], out=lowest)
        return self.values - lowest > contrast


@njit(cache=True, nogil=True)
def _sorted(keys, places):
    """Places in the order of their non-negative int32 keys; of equal ones the first stays first: three passes of 11
    bits.
    """
    n = places.size
    other, starts = np.empty_like(places), np.empty(2048, np.int64)
    for shift in (0, 11, 22):
        starts[:] = 0
        for k in range(n):
            starts[keys[places[k]] >> shift & 2047] += 1
        total = 0
        for digit in range(2048):
            starts[digit], total = total, total + starts[digit]
        for k in range(n):
            digit = keys[places[k]] >> shift & 2047
            other[starts[digit]] = places[k]
            starts[digit] += 1
        places, other = other, places
    return places


@njit(cache=True, nogil=True)
def _push(heap, size, high, low):
    """Put a key of two numbers into a heap (2, room), the least on top; the heap, perhaps a larger one."""
    if size == heap.shape[1]:
        larger = np.empty((2, 2 * size), np.int64)
        larger[:, :size] = heap
        heap = larger
    k = size
    while k > 0:
        up = (k - 1) >> 1
        if heap[0, up] < high or (heap[0, up] == high and heap[1, up] <= low):
            break
        heap[0, k], heap[1, k] = heap[0, up], heap[1, up]
        k = up
    heap[0, k], heap[1, k] = high, low
    return heap


@njit(cache=True, nogil=True)
def _pop(heap, size):
    """Take the least of `size` keys off a heap."""
    last = size - 1
    high, low = heap[0, last], heap[1, last]
    k = 0
    while True:
        down = 2 * k + 1
        if down >= last:
            break
        right = down + 1
        if right < last and (
            heap[0, right] < heap[0, down] or (heap[0, right] == heap[0, down] and heap[1, right] < heap[1, down])
        ):
            down = right
        if high < heap[0, down] or (high == heap[0, down] and low <= heap[1, down]):
            break
        heap[0, k], heap[1, k] = heap[0, down], heap[1, down]
        k = down
    heap[0, k], heap[1, k] = high, low


@njit(cache=True, nogil=True)
def _at_least(near, level):
    """Bits of those of 8 levels that are at least a level."""
    a, b, c, d, e, f, g, h = near
    low = np.int64(a >= level) | np.int64(b >= level) << 1 | np.int64(c >= level) << 2 | np.int64(d >= level) << 3
    high = np.int64(e >= level) | np.int64(f >= level) << 1 | np.int64(g >= level) << 2 | np.int64(h >= level) << 3
    return low | high << 4


@njit(cache=True, nogil=True)
def _next_below(near, level):
    """The highest of 8 levels below a level, -1 where there is none."""
    best = np.int32(-1)
    for other in near:
        best = max(best, other if other < level else np.int32(-1))
    return best


@njit(cache=True, nogil=True)
def _fall_in_plane(levels, at, width, table):
    """The level to which a pixel falls, and of its 8 neighbours, as bits in raster order, those that have that level,
    and those that it falls below.

    table  uint8: 1 for the rings of neighbours that are at least as high whose pixel may go on falling
    """
    one, here = np.uint64(1), np.uint64(at)  # an index without a sign is read without a question
    above, under, old = here - np.uint64(width), here + np.uint64(width), levels[here]
    near = (
        levels[above - one],
        levels[above],
        levels[above + one],
        levels[here - one],
        levels[here + one],
        levels[under - one],
        levels[under],
        levels[under + one],
    )
    level, code = old, _at_least(near, old)
    while table[np.uint64(code)]:
        best = _next_below(near, level)
        if best < 0:
            break
        level = best
        code = _at_least(near, level)
    if level == old:
        return level, np.int64(0), np.int64(0)
    higher = _at_least(near, level + np.int32(1))
    return level, code & ~higher, higher & ~_at_least(near, old + np.int32(1))


@njit(cache=True, nogil=True)
def _fall_in_space(levels, at, around, near, tables, flip, keep_ends):
    """As `_fall_in_plane`, bits of the 27 pixels of the window.

    around, near  steps to those pixels, and room for their levels
    flip          all bits where cubes are open, else 0
    """
    for k in range(27):
        near[k] = levels[at + around[k]]
    old = level = levels[at]
    while level > 0:
        code, solid, best = np.int64(0), 0, np.int32(-1)
        for k in range(27):
            if near[k] >= level:
                code |= np.int64(1) << k
                solid += 1
            elif near[k] > best:
                best = near[k]
        if best < 0 or (keep_ends and solid == 2) or not simple_in_space(code ^ flip, tables):
            break
        level = best
    equal = passed = np.int64(0)
    for k in range(27):
        equal |= np.int64(near[k] == level) << k
        passed |= np.int64(level < near[k] <= old and k != 13) << k
    return level, equal, passed


@njit(cache=True, nogil=True)
def _candidates(levels, still, places, around):
    """The places that may be lowered and have a lower neighbour."""
    found = np.empty_like(places)
    n = 0
    for at in places:
        for step in around:
            if levels[at + step] < levels[at] and not still[at]:
                found[n] = at
                n += 1
                break
    return found[:n].copy()


@njit(cache=True, nogil=True)
def _thin(levels, donors, still, classes, places, around, rules, flat):
    """Lower every pixel as far as it falls, least first; changes levels and donors (framed, flat).

    still    uint8: 1 for pixels that are not lowered; used up
    classes  int8 parity class of each place
    places   the pixels inside the frame, class after class, each in raster order
    around   steps to the 8 neighbours, or to the 27 pixels of the window in space
    rules    `_rules`
    """
    table, tables, flip, keep_ends = rules
    first = _sorted(levels.copy(), _candidates(levels, still, places, around))
    for at in first:
        still[at] = 1  # waits, so it need not be put into the heap
    near = np.empty(27, np.int32)
    heap, size, head = np.empty((2, 1024), np.int64), 0, 0
    while size > 0 or head < first.size:
        if size == 0 or (head < first.size and np.int64(levels[first[head]]) << 32 < heap[0, 0]):
            at, generation = np.int64(first[head]), np.int64(0)
            head += 1
        else:
            at, generation = heap[1, 0] & np.int64(0xFFFFFFFF), heap[0, 0] & np.int64(0xFFFFFFFF)
            _pop(heap, size)
            size -= 1
        still[at] = 0
        old = levels[at]
        if flat:
            level, equal, passed = _fall_in_plane(levels, at, around[6], table)
        else:
            level, equal, passed = _fall_in_space(levels, at, around, near, tables, flip, keep_ends)
        if level == old:
            continue
        levels[at], donors[at] = level, donors[at + around[lowest_one(np.uint64(equal))]]  # of equal ones the first
        rest = np.uint64(passed)
        while rest != 0:
            other = at + around[lowest_one(rest)]
            rest &= rest - np.uint64(1)
            if not still[other]:
                still[other] = 1
                high = np.int64(levels[other]) << 32 | (generation + 1)
                heap = _push(heap, size, high, np.int64(classes[other]) << 32 | other)
                size += 1


@njit(cache=True, nogil=True)
def _parities(shape, flat):
    """Parity class of every framed place, and the places inside the frame, class after class."""
    depth, height, width = shape
    classes = np.zeros(depth * height * width, np.int8)
    places = np.empty((1 if flat else depth - 2) * (height - 2) * (width - 2), np.int32)
    n = 0
    for group in range(4 if flat else 8):
        for z in range(0 if flat else 1 + (group >> 2), depth if flat else depth - 1, 2):
            for y in range(1 + (group >> 1 & 1), height - 1, 2):
                for x in range(1 + (group & 1), width - 1, 2):
                    at = (z * height + y) * width + x
                    classes[at] = group
                    places[n] = at
                    n += 1
    return classes, places


def _levels(values):
    """Framed int32 levels in the order of the values, 0 for 0, the value of the outside."""
    if values.dtype == np.float32:
        return np.pad(values + np.float32(0), 1).view(np.int32)  # floats of one sign are in the order of their bits
    return rank(np.pad(values, 1))  # the frame makes 0 the least


def _rules(closed, keep_ends):
    """What decides whether a pixel may fall: the table of the plane, those of space, bits to turn, and whether ends
    stay.
    """
    ring = np.arange(256)
    codes = ring & 15 | 16 | ring >> 4 << 5
    simple, crowd = plane_tables()[0 if closed else 1], plane_tables()[2]
    table = simple[codes] & ~(keep_ends & (crowd[codes] == 1))
    return table.astype(np.uint8), space_tables(), 0 if closed else 2**27 - 1, keep_ends


def grayscale_thinning(
    values: ArrayLike,
    *,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    keep_ends: bool = True,
    protect: ArrayLike | None = None,
) -> GrayscaleSkeleton:
    """Thin a map as far as every superlevel set keeps its Betti numbers: `GrayscaleSkeleton`.

    values        (rows, columns) or (planes, rows, columns), 0 or more, e.g. probabilities; the outside is 0
    connectivity  "closed": superlevel sets are 8 [26]-connected; "open": 4 [6]-connected
    keep_ends     leave a pixel that has one neighbour as high as it falls: the end of a line
    protect       mask of pixels that keep their value, any set; None: none
    {skeleton >= t} has the Betti numbers of {map >= t} for every t > 0, and lies inside it. Noise is kept with the
    rest: remove short features before (`topology.simplify.simplify_below`), then all that is left is exact for the
    simpler map. Ends are recognised where a ridge falls steeply enough only; protect the skeleton of a mask
    (`skeletonize(values >= 0.5)`) to keep those of one threshold. Where neighbours are equal, the order of parity
    classes decides, which depends on their place. Bit for bit repeatable; time n log n. Refuses (ValueError) negative
    values.
    """
    values = as_map(values)
    if values.min() < 0:
        raise ValueError(
            f"Map holds {values.min():g}; values of 0 or more are needed. Apply a sigmoid, or add a constant."
        )
    frozen = np.zeros(values.shape, np.uint8)
    if protect is not None:
        same_shape(values, protect, "Map and protected set")
        frozen = as_mask(protect)
    flat, closed = values.ndim == 2, is_closed(connectivity)
    framed = tuple(side + 2 for side in values.shape)
    levels = _levels(values).ravel()
    classes, places = _parities((1, *framed) if flat else framed, flat)
    strides = (framed[1], 1) if flat else (framed[1] * framed[2], framed[2], 1)
    around = sum(s * (steps - 1) for s, steps in zip(strides, np.indices((3,) * values.ndim), strict=True)).ravel()
    around = around[around != 0] if flat else around
    donors = np.pad(np.arange(values.size, dtype=np.int64).reshape(values.shape), 1, constant_values=NOBODY).ravel()
    _thin(levels, donors, np.pad(frozen, 1).ravel(), classes, places, around, _rules(closed, keep_ends), flat)
    donors = donors.reshape(framed)[(slice(1, -1),) * values.ndim].copy()
    taken = np.where(donors < 0, 0, values.ravel()[donors])
    return GrayscaleSkeleton(taken.astype(values.dtype, copy=False), donors)
