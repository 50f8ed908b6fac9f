"""Merge trees of a map: where each saddle leads, and which component dies there.

First every saddle is climbed from, in raster order so that memory is near; then the saddles are visited in the order of
the side, and a union-find over extrema joins what they join. The elder survives. With the ages of another map whose
components lie inside these, the same run gives the image of that map's merge tree (Betti matching), on the same climbs.
Sides, codes and order: see `topology.critical_points`.
"""

from functools import cache

import numpy as np
from numba import njit

from topology.bits import Whole, lowest_one
from topology.components import root_of
from topology.sorting import falling_key, sort_by

Window = tuple[np.ndarray, np.ndarray, np.uint64, np.uint64]
"""Offsets of the bits of a window, the bits that each bit touches, the bits that count, those that reach the centre."""
LINES_AHEAD = 16
SHORT = 32
MANY = 16
"""Lines of the map that are fetched before a climb needs them; steps up to which a way is not worth marking; one saddle
in so many pixels makes it cheaper to climb from every pixel once.
"""


@njit(cache=True, nogil=True)
def climb(
    codes: np.ndarray,
    marks: np.ndarray,
    extrema: np.ndarray,
    count: Whole,
    around: np.ndarray,
    sides: Whole,
    up: bool,
    at: Whole,
) -> tuple[Whole, Whole]:
    """Number of the peak (pit) above (below) a pixel, and the count of extrema so far.

    Short ways are walked again when they are needed again; long ones are marked, so that all climbs together stay
    linear.
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
def flood(code: Whole, seed: Whole, touching: np.ndarray) -> Whole:
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
def seeds_in_plane(window: Window, up: bool) -> np.ndarray:
    """`_one_of_each` for every 9-bit code of higher neighbours, on one side."""
    _, touching, reach, sides = window
    seeds = np.empty(512, np.uint64)
    for code in range(512):
        seeds[code] = _one_of_each((np.uint64(code) if up else ~np.uint64(code)) & reach, touching, sides)
    return seeds


@njit(cache=True, nogil=True)
def _climb_from_everywhere(codes, marks, extrema, count, around, sides, up):
    """Mark every pixel with the number of its extremum; returns the count of extrema.

    Most ways lead to an earlier pixel, which is marked already; the others are climbed, and marked on a second walk.
    The walk of `climb` stands here again, because a call for each pixel makes persistence of noise twice as slow.
    """
    flip = np.uint64(0) if up else ~np.uint64(0)
    for start in range(codes.size):
        at = start
        while marks[at] == 0:
            code = (np.uint64(codes[at]) ^ flip) & sides
            if code == 0:
                count += 1
                marks[at] = count
                extrema[count] = at
                break
            at += around[lowest_one(code)]
        number = marks[at]
        at = start
        while marks[at] == 0:
            marks[at] = number
            at += around[lowest_one((np.uint64(codes[at]) ^ flip) & sides)]
    return count


@njit(cache=True, nogil=True)
def find_feet(
    codes: np.ndarray,
    places: np.ndarray,
    extremes: Whole,
    window: Window,
    seeds: np.ndarray,
    up: bool,
    outside: bool,
    flat: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each saddle, in raster order so that memory is near, the extremum above (below) each piece of its higher
    (lower) neighbours.

    seeds    one bit of each piece for every code of the plane; empty in space
    returns  where the feet of each saddle start, the numbers of their extrema, and for further climbs: marks, extrema,
             count of extrema
    """
    around, touching, reach, sides = window
    flat_codes = codes.ravel()
    # The outside is an extremum of one side and nowhere on the other, where its pixels are never reached.
    marks = _mark_frame(codes.shape, flat)
    extrema = np.zeros(extremes + 2, np.int64)
    count: Whole = 1 if outside else 0
    ahead = np.int64(0)
    if MANY * places.size > codes.size:
        count = _climb_from_everywhere(flat_codes, marks, extrema, count, around, sides, up)
        ahead = np.int64(codes.size)
    starts = np.empty(places.size + 1, np.int64)
    feet = np.empty(8 * places.size + 1, np.int32)
    n = 0
    touched = np.int64(0)
    reach_ahead = LINES_AHEAD * codes.shape[2]
    for k in range(places.size):
        at = places[k]
        # Climbs wander over a few lines; reading those in a row first lets the processor fetch them before they are
        # needed.
        while ahead < min(at + reach_ahead, flat_codes.size):
            touched += flat_codes[ahead] + marks[ahead]
            ahead += 16
        starts[k] = n
        code = np.uint64(flat_codes[at])
        rest = seeds[code] if flat else _one_of_each((code if up else ~code) & reach, touching, sides)
        while rest != 0:
            foot = at + around[lowest_one(rest)]
            feet[n] = marks[foot]
            if feet[n] == 0:
                feet[n], count = climb(flat_codes, marks, extrema, count, around, sides, up, foot)
            rest &= rest - np.uint64(1)
            n += 1
    starts[places.size] = n
    return starts, feet[:n].copy(), marks, extrema, np.array([count, touched])


@njit(cache=True, nogil=True)
def by_age(levels: np.ndarray, pixels: np.ndarray, up: bool) -> np.ndarray:
    """Pixels sorted by the order of a side, the oldest first."""
    keys = np.empty(pixels.size, np.uint32)
    for k in range(pixels.size):
        keys[k] = falling_key(levels[pixels[k]])
    order = sort_by(keys, sort_by(pixels.astype(np.uint32), np.arange(pixels.size)))
    return pixels[order if up else order[::-1]]


@njit(cache=True, nogil=True)
def elders_inside(
    codes: np.ndarray,
    climbs: tuple[np.ndarray, np.ndarray, np.ndarray],
    window: Window,
    up: bool,
    outside: bool,
    aged: np.ndarray,
) -> np.ndarray:
    """For each extremum, by number, the position in `aged` of the oldest of these pixels on its slopes; aged.size where
    there is none.

    aged  pixels, the oldest first: the extrema of this map, or those of a map whose components lie inside
    """
    around, _, _, sides = window
    marks, extrema, counter = climbs
    flat_codes = codes.ravel()
    elders = np.full(extrema.size, aged.size)
    for k in range(aged.size - 1, -1, -1):
        number: int | np.integer = np.int64(1) if outside and aged[k] == 0 else np.int64(marks[aged[k]])
        if number == 0:
            number, counter[0] = climb(flat_codes, marks, extrema, counter[0], around, sides, up, aged[k])
        elders[number] = k
    return elders


@njit(cache=True, nogil=True)
def merge(
    levels: np.ndarray,
    places: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    feet: np.ndarray,
    elders: np.ndarray,
    aged: np.ndarray,
    ages: np.ndarray,
    up: bool,
    inner: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge tree of one side: for each joining of two components, the extremum that dies and the saddle where it does.

    places, starts, feet  saddles in raster order and the extrema they join, from `find_feet`
    order                 saddles in the order of the side
    aged, elders          extrema, the oldest first, and the oldest member of each component, from `elders_inside`
    ages                  levels of the extrema: `levels`, or those of the inner map whose extrema they are (inner)
    returns               extremum (-1: that component holds none that is born by then) and saddle of each joining; for
                          each foot, 1 where it joined another component to that of the first foot of its saddle
    """
    elders = elders.copy()
    parent = np.arange(elders.size).astype(np.int32)
    young = np.empty(elders.size, np.int64)
    place = np.empty(elders.size, np.int64)
    joined = np.zeros(feet.size, np.uint8)
    n = 0
    for k in range(order.size):
        saddle = order[k]
        at = places[saddle]
        mine = root_of(parent, np.int64(feet[starts[saddle]]))
        for foot in range(starts[saddle] + 1, starts[saddle + 1]):
            root = root_of(parent, np.int64(feet[foot]))
            if mine == root:
                continue
            if elders[root] < elders[mine]:
                mine, root = root, mine
            parent[root] = mine
            dies = aged[elders[root]] if elders[root] < aged.size else -1
            if inner and dies >= 0 and (ages[dies] <= levels[at] if up else ages[dies] >= levels[at]):
                dies = -1
            young[n] = dies
            place[n] = at
            joined[foot] = 1
            n += 1
    return young[:n], place[:n], joined


@njit(cache=True, nogil=True)
def all_joined(starts: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """For each saddle, in raster order, whether every foot joined another component."""
    done = np.ones(starts.size - 1, np.bool_)
    for k in range(done.size):
        for foot in range(starts[k] + 1, starts[k + 1]):
            done[k] &= joined[foot] == 1
    return done


@njit(cache=True, nogil=True)
def joined_in_order(order: np.ndarray, starts: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """For each foot but the first of each saddle, in the order of the side, whether it joined another component."""
    found = np.empty(joined.size, np.bool_)
    n = 0
    for saddle in order:
        for foot in range(starts[saddle] + 1, starts[saddle + 1]):
            found[n] = joined[foot] == 1
            n += 1
    return found[:n]


def _touching(ndim, full):
    """For each bit of the window, the bits it touches: by sides and corners (full), or by sides within reach of the low
    side.
    """
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
def window_of(ndim: int, strides: tuple[int, ...], up: bool) -> Window:
    """What `merge` needs to know of a window: offsets of its bits, which touch, which count, which reach the centre."""
    steps = np.stack(np.unravel_index(np.arange(3**ndim), (3,) * ndim), axis=1) - 1
    return steps @ np.array(strides), *_touching(ndim, up)
