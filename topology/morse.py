"""The ridges of a map that matter: paths of steepest ascent from its lasting saddles to its lasting peaks.

The superlevel set changes at saddles. One that joins two components [closes a loop] of a persistence above the bound is kept, and
from each of its higher sides one walks up, always to the highest neighbour, to a peak. A peak of a lesser component is cancelled: the
walk goes on over the saddle where that component dies, into the next one, until it reaches a lasting peak. The union of all these
walks is the 1-skeleton of the discrete Morse complex after persistence simplification, as a set of pixels.
Source: Hu et al., "Topology-Aware Segmentation Using Discrete Morse Theory", ICLR 2021 (2D and 3D); here without a file format between,
and with loops as exact persistence pairs.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from topology.bits import lowest_one
from topology.grids import Connectivity, as_map, is_closed
from topology.landscape import rank, survey
from topology.loops import pair_loops
from topology.merge_trees import flood


@dataclass(frozen=True)
class Ridges:
    """The Morse structure of one map above a persistence bound.

    mask     bool, shape of the map: all pixels on the walks
    saddles  (S, ndim) int64, where the walks start: lasting mergers of components, then lasting closures of loops
    peaks    (P, ndim) int64, where they end: lasting peaks, the highest pixel among them
    """

    mask: np.ndarray
    saddles: np.ndarray
    peaks: np.ndarray


@njit(cache=True, nogil=True)
def _highest(levels, code, at, around):
    """Index of the highest neighbour among the bits of a code."""
    best = np.int64(-1)
    rest = code
    while rest != 0:
        other = at + around[lowest_one(rest)]
        rest &= rest - np.uint64(1)
        if best < 0 or levels[other] > levels[best] or (levels[other] == levels[best] and other < best):
            best = other
    return best


@njit(cache=True, nogil=True)
def _ascend(levels, codes, at, around, reach, mask):
    """Walk up from a pixel to its peak, marking the way; returns the peak."""
    while True:
        mask[at] = 1
        code = np.uint64(codes[at]) & reach
        if code == 0:
            return at
        at = _highest(levels, code, at, around)


@njit(cache=True, nogil=True)
def _sides(levels, codes, at, window, feet):
    """Highest neighbour on each higher side of a saddle; returns how many."""
    around, touching, reach, sides = window
    code = np.uint64(codes[at]) & reach
    rest = code & sides
    n = 0
    while rest != 0:
        piece = flood(code, np.uint64(1) << lowest_one(rest), touching)
        rest &= ~piece
        feet[n] = _highest(levels, piece & sides, at, around)
        n += 1
    return n


@njit(cache=True, nogil=True)
def _trace(levels, codes, starts, escape, window):
    """Mark all walks from the given saddles; escape: saddle over which a cancelled peak is left, or -1, for every pixel."""
    around, _, _, sides = window
    mask = np.zeros(levels.size, np.uint8)
    waiting = [np.int64(at) for at in starts]
    done = np.zeros(levels.size, np.uint8)
    feet = np.empty(27, np.int64)
    while len(waiting) > 0:
        at = waiting.pop()
        if done[at]:
            continue
        done[at] = 1
        mask[at] = 1
        for k in range(_sides(levels, codes, at, window, feet)):
            peak = _ascend(levels, codes, feet[k], around, sides, mask)
            if escape[peak] >= 0:
                waiting.append(escape[peak])
    return mask


def _lasting(ground, values, pairs, bound):
    """Framed saddles of (higher pixel, lower pixel, saddle) triples that last longer than the bound, and which they are."""
    high, low, saddle = pairs
    flat = values.ravel().astype(np.float64)
    kept = flat[ground.unframe(high)] - flat[ground.unframe(low)] > bound
    return saddle[kept], kept


def ridges(values, *, min_persistence=0.0, connectivity=Connectivity.CLOSED):
    """The persistent ridges of a map as pixels, with the saddles and peaks that they join.

    values           (rows, columns) or (planes, rows, columns) real map, e.g. probabilities
    min_persistence  features that live no longer are cancelled; 0 keeps every ridge
    connectivity     "closed" walks over 8 [26] neighbours; "open" over 4 [6]
    The structure has as many independent loops as the map has lasting ones, up to walks that share pixels.
    """
    values = as_map(values)
    closed = is_closed(connectivity)
    ground = survey(values if values.dtype == np.float32 else rank(values), closed=closed)
    # Components enter from above on the `up` side of closed cubes and on the `low` side of open ones: walk on that side.
    joined, where, _ = ground.merge(up=closed)
    starts, kept = _lasting(ground, values, (joined, where, where), min_persistence)
    if values.ndim == 2:
        fills, closes, _ = ground.merge(up=not closed)
    else:
        low, high = pair_loops(ground)
        closes, fills = (high, low) if closed else (low, high)
    loops, _ = _lasting(ground, values, (closes, fills, closes), min_persistence)
    escape = np.full(ground.levels.size, -1)
    escape[joined[~kept]] = where[~kept]
    levels = ground.levels.ravel()
    codes = ground.codes.ravel()
    if not closed:
        levels, codes = ~levels, ~codes
    mask = _trace(levels, codes, np.concatenate([starts, loops]), escape, ground.window(closed))
    top = np.argmax(values.ravel())
    peaks = np.append(ground.unframe(joined[kept]), top)
    drawn = np.zeros(values.size, bool)
    drawn[ground.unframe(np.flatnonzero(mask))] = True
    drawn[peaks] = True
    saddles = ground.unframe(np.concatenate([starts, loops]))
    places = [np.stack(np.unravel_index(side, values.shape), axis=1) for side in (saddles, peaks)]
    return Ridges(drawn.reshape(values.shape), *places)
