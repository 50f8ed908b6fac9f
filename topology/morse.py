"""Ridges of a map: steepest ascents from persistent saddles to persistent peaks.

The superlevel set changes at saddles. One that joins two components [closes a loop] of a persistence above the bound is
kept, and from each of its higher sides one walks up, always to the highest neighbour, to a peak. A peak of a lesser
component is cancelled: the walk goes on over the saddle where that component dies, into the next one, until it reaches
a lasting peak. The union of all these walks is the 1-skeleton of the discrete Morse complex after persistence
simplification, as a set of pixels. A higher bound never adds a pixel: where a peak is cancelled the walk goes on over a
saddle that was kept before. So one sweep over the saddles, the most persistent first, finds the bound up to which each
pixel lasts, and with it the structures of every bound. Source: Hu et al., "Topology-Aware Segmentation Using Discrete
Morse Theory", ICLR 2021 (2D and 3D); here without a file format between, and with loops as exact persistence pairs. The
family over all bounds: Hu et al., "Learning Probabilistic Topological Representations Using Discrete Morse Theory",
ICLR 2023.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.bits import lowest_one
from topology.critical_points import rank, survey
from topology.grids import Connectivity, as_map, is_closed
from topology.loops import pair_loops
from topology.merge_trees import flood


@dataclass(frozen=True)
class Ridges:
    """The Morse structure of one map above a persistence bound.

    persistence  float64, shape of the map: the bound up to which the pixel is on a walk, of several walks the largest;
                 0 elsewhere,
                 infinite at the highest pixel. `persistence > bound` is the structure of any bound above the one asked
                 for
    owners       int64, shape of the map: position in `saddles` of the saddle from which the pixel was first walked to,
                 that of its largest bound; -1 off the walks and at peaks that no walk reaches. Pixels of one owner are
                 one ridge
    saddles      (S, ndim) int64, where the walks start: lasting mergers of components, then lasting closures of loops
    peaks        (P, ndim) int64, where they end: lasting peaks, the highest pixel among them
    """

    persistence: np.ndarray
    owners: np.ndarray
    saddles: np.ndarray
    peaks: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """bool, shape of the map: all pixels on the walks."""
        return self.persistence > 0


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
def _ascend(levels, codes, at, around, reach, marks, bound, owner):
    """Walk up from a pixel, marking the way; returns the peak, or -1 where another walk went before, which lasts at
    least as long.
    """
    lasting, owners = marks
    while True:
        if lasting[at] > 0:
            return np.int64(-1)
        lasting[at], owners[at] = bound, owner
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
def _trace(levels, codes, starts, bounds, escape, window):
    """Mark all walks from the given saddles with their bounds, which descend, and with the number of the saddle;
    escape: saddle where a peak's component dies, or -1.
    """
    around, _, _, sides = window
    lasting, owners = np.zeros(levels.size), np.full(levels.size, -1)
    done = np.zeros(levels.size, np.uint8)
    feet = np.empty(27, np.int64)
    waiting = [np.int64(0) for _ in range(0)]
    for k in range(starts.size):
        waiting.append(starts[k])
        while len(waiting) > 0:
            at = waiting.pop()
            if done[at]:
                continue
            done[at] = 1
            if lasting[at] == 0:
                lasting[at], owners[at] = bounds[k], k
            for foot in range(_sides(levels, codes, at, window, feet)):
                peak = _ascend(levels, codes, feet[foot], around, sides, (lasting, owners), bounds[k], k)
                if peak >= 0 and escape[peak] >= 0:
                    waiting.append(escape[peak])  # a peak that lasts longer has had its saddle done before
    return lasting, owners


def _lasting(points, values, pairs, bound):
    """Framed saddles of (higher pixel, lower pixel, saddle) triples that last longer than the bound, how long, and
    which they are.
    """
    high, low, saddle = pairs
    flat = values.ravel().astype(np.float64)
    persistence = flat[points.unframe(high)] - flat[points.unframe(low)]
    kept = persistence > bound
    return saddle[kept], persistence[kept], kept


def ridges(
    values: ArrayLike, *, min_persistence: float = 0.0, connectivity: Connectivity | str = Connectivity.CLOSED
) -> Ridges:
    """The persistent ridges of a map as pixels, with the saddles and peaks that they join.

    values           (rows, columns) or (planes, rows, columns) real map, e.g. probabilities
    min_persistence  0 or more: features that live no longer are cancelled; 0 keeps every ridge
    connectivity     "closed" walks over 8 [26] neighbours; "open" over 4 [6]
    The structure has as many independent loops as the map has lasting ones, up to walks that share pixels.
    """
    values = as_map(values)
    closed = is_closed(connectivity)
    points = survey(values if values.dtype == np.float32 else rank(values), closed=closed)
    # Components enter from above on the `up` side of closed cubes and on the `low` side of open ones: walk on that
    # side.
    joined, where = points.merge(up=closed)
    merges, merge_bounds, kept = _lasting(points, values, (joined, where, where), min_persistence)
    if values.ndim == 2:
        fills, closes = points.merge(up=not closed)
    else:
        low, high = pair_loops(points)
        closes, fills = (high, low) if closed else (low, high)
    loops, loop_bounds, _ = _lasting(points, values, (closes, fills, closes), min_persistence)
    starts, bounds = np.concatenate([merges, loops]), np.concatenate([merge_bounds, loop_bounds])
    escape = np.full(points.levels.size, -1)
    escape[joined] = where
    levels = points.levels.ravel()
    codes = points.codes.ravel()
    if not closed:
        levels, codes = ~levels, ~codes
    longest = np.argsort(-bounds, kind="stable")
    lasting, walked = _trace(levels, codes, starts[longest], bounds[longest], escape, points.window(closed))
    framed = np.flatnonzero(lasting)
    persistence, owners = np.zeros(values.size), np.full(values.size, -1)
    inner = points.unframe(framed)
    persistence[inner], owners[inner] = lasting[framed], longest[walked[framed]]
    lesser, top = points.unframe(joined[kept]), np.argmax(values.ravel())
    persistence[lesser] = np.maximum(persistence[lesser], merge_bounds)
    persistence[top] = np.inf
    places = [
        np.stack(np.unravel_index(side, values.shape), axis=1)
        for side in (points.unframe(starts), np.append(lesser, top))
    ]
    return Ridges(persistence.reshape(values.shape), owners.reshape(values.shape), *places)


@njit(cache=True, nogil=True)
def _presence(persistence, mean, deviation):
    """Probability that a normal variable stays below each persistence; 0 where it is 0."""
    presence = np.zeros(persistence.size)
    for k in range(persistence.size):
        if persistence[k] > 0:
            presence[k] = 0.5 * math.erfc((mean - persistence[k]) / (deviation * math.sqrt(2.0)))
    return presence


def ridge_presence(
    values: ArrayLike, mean: float, deviation: float, *, connectivity: Connectivity | str = Connectivity.CLOSED
) -> np.ndarray:
    """How likely each ridge is there when the persistence bound is drawn from a normal distribution: float64 in [0, 1],
    0 off the ridges.

    values     (rows, columns) or (planes, rows, columns) real map, e.g. the probability of one class
    mean       of the bound, in units of the map
    deviation  of the bound, above 0
    A structure of persistence pi is in the sample of a bound eps exactly when eps < pi, so its probability is Phi((pi -
    mean) / deviation): what the mean over infinitely many samples `ridges(values, min_persistence=eps).mask` would be.
    All pixels of a branch have one value.
    """
    if not deviation > 0:
        raise ValueError(f"deviation is {deviation}; a normal distribution needs one above 0.")
    lasting = ridges(values, connectivity=connectivity).persistence
    return _presence(lasting.ravel(), float(mean), float(deviation)).reshape(lasting.shape)


def structure_uncertainty(
    values: ArrayLike, mean: float, deviation: float, *, connectivity: Connectivity | str = Connectivity.CLOSED
) -> np.ndarray:
    """Uncertainty of every ridge as a whole: entropy, in bits, of whether it is there; float32 in [0, 1], 0 off the
    ridges.

    Arguments as of `ridge_presence`. 1 is a branch that is as likely there as not, 0 one that is certain, either way.
    Source: the structure-wise uncertainty of Hu et al., ICLR 2023, in closed form instead of by samples.
    """
    present = ridge_presence(values, mean, deviation, connectivity=connectivity)
    entropy = np.zeros(present.shape, np.float32)
    open_ = (present > 0) & (present < 1)
    p = present[open_]
    entropy[open_] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return entropy
