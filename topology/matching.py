"""Betti matching: which features of two maps are the same, and which are unmatched.

The superlevel sets of a prediction p and a reference y both lie inside those of c = max(p, y). A feature of p and one
of c are matched when the feature of p, looked at inside c, is born with the one and dies with the other (image
persistence); likewise y and c; and a feature of p and one of y are matched when both are matched to the same feature of
c. What is matched lies in the same place, unlike two bars of equal length. Source: Stucki, Paetzold, Shit, Menze and
Bauer, "Topologically Faithful Image Segmentation via Induced Matching of Persistence Barcodes", ICML 2023.

The five steps, from `pair_features` down:

1. `pair_features`  orders the pixels of p, y and c by one order (value, then index) and finds their saddles.
2. `_pairs_of`      pairs births with deaths in each map: `_Mergers` of a merge tree (components; holes of a plane and
                    cavities, which are mergers of the other side), or `_LoopPairs` in space.
3. `_partners_...`  looks at each feature of p, then of y, inside c and names its partner there. Mergers: the merge tree
                    of c is run with the ages of the inner map. Loops: the cycle of each inner loop flows along the
                    gradient of c; the last of the loops of c that it becomes a sum of names its death.
4. `_joined`        leaves out features of no length and pairs those of p and y that have one partner in c.
5. `pair_features`  puts the dimensions together and pairs the two components that never die; `match` sorts the result
                    into two barcodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from topology.critical_points import CriticalPoints, rank, survey
from topology.grids import Connectivity, as_map, is_closed, same_shape
from topology.loops import Loops
from topology.persistence import Barcode, Bars, barcode_from


@dataclass(frozen=True)
class Matching:
    """Two barcodes and which of their bars are the same feature.

    prediction, reference  Barcode of each map, bars of length 0 left out
    matched                (M, 2) int64: positions of matched bars in the one and in the other
    only_prediction        (P,) int64 positions of bars that the reference has not
    only_reference         (R,) int64 positions of bars that the prediction has not
    """

    prediction: Barcode
    reference: Barcode
    matched: np.ndarray
    only_prediction: np.ndarray
    only_reference: np.ndarray

    @property
    def error(self) -> int:
        """Number of features that have no partner."""
        return len(self.only_prediction) + len(self.only_reference)


@dataclass(frozen=True)
class Pairing:
    """What `match` finds, by linear index and in no order: enough to read the maps.

    dimensions  for each map, (K,) int8
    births      for each map, (K,) int64 index into the raveled map
    deaths      for each map, (K,) int64, -1 for the essential component
    matched     (M, 2) int64 positions of matched bars in the one map and in the other
    """

    dimensions: tuple[np.ndarray, np.ndarray]
    births: tuple[np.ndarray, np.ndarray]
    deaths: tuple[np.ndarray, np.ndarray]
    matched: np.ndarray

    def alone(self, side: int) -> np.ndarray:
        """Positions of the bars of one map (0 or 1) that the other has not."""
        lonely = np.ones(len(self.births[side]), bool)
        lonely[self.matched[:, side]] = False
        return np.flatnonzero(lonely)


@dataclass(frozen=True)
class _Mergers:
    """Joinings of two components on one side of a map, in the order of the side.

    extrema  (K,) framed indices of the extremum that dies in each; -1 for none
    saddles  (K,) framed indices of the pixel that joins
    starts   True where the extremum is a birth and the saddle a death: dimension 0
    """

    extrema: np.ndarray
    saddles: np.ndarray
    starts: bool

    @property
    def births(self) -> np.ndarray:
        return self.extrema if self.starts else self.saddles

    @property
    def deaths(self) -> np.ndarray:
        return self.saddles if self.starts else self.extrema


@dataclass(frozen=True)
class _LoopPairs:
    """Loops of a volume: the voxel that closes each and the voxel that fills it, -1 where nothing does."""

    loops: Loops
    closed: bool

    @property
    def births(self) -> np.ndarray:
        return self.loops.fillers if self.closed else self.loops.places

    @property
    def deaths(self) -> np.ndarray:
        return self.loops.places if self.closed else self.loops.fillers


_Partnered = tuple[_Mergers | _LoopPairs, np.ndarray]  # features of one map, and the position of each partner in c
_Maps = list[CriticalPoints]  # of the prediction, of the reference, and of what contains both
_Paired = list[tuple[np.ndarray, np.ndarray]]  # births and deaths of the prediction and of the reference


def _pairs_of(points: CriticalPoints, up: bool, starts: bool) -> _Mergers:
    extrema, saddles = points.merge(up=up)
    return _Mergers(extrema, saddles, starts)


def _partners(maps: _Maps, dimension: int) -> list[_Partnered]:
    """The features of the prediction and of the reference in one dimension, each with its partner in the map that
    contains both: a position there, -1 for none.
    """
    closed = maps[0].closed
    if 0 < dimension < len(maps[0].shape) - 1:
        return _partners_of_loops([_LoopPairs(Loops(points), closed) for points in maps])
    starts = dimension == 0
    up = starts == closed
    return _partners_of_mergers(maps, [_pairs_of(points, up, starts) for points in maps], up)


def _partners_of_mergers(maps: _Maps, pairs: list[_Mergers], up: bool) -> list[_Partnered]:
    *inner, outer = pairs
    found: list[_Partnered] = []
    for own, points in zip(inner, maps[:2], strict=True):
        if own.starts:
            back = _merger_image(own, outer, points, maps[2], up, _oldest(points, up))
            found.append((own, _invert(back, len(own.births))))
        else:  # the background of c lies inside that of each map
            found.append((own, _merger_image(outer, own, maps[2], points, up, None)))
    return found


def _partners_of_loops(pairs: list[_LoopPairs]) -> list[_Partnered]:
    *inner, outer = pairs
    if not outer.closed:
        return [(own, own.loops.image_in(outer.loops)) for own in inner]
    return [(own, _invert(outer.loops.image_in(own.loops), len(own.births))) for own in inner]


def _merger_image(
    inner: _Mergers,
    outer: _Mergers,
    inner_points: CriticalPoints,
    outer_points: CriticalPoints,
    up: bool,
    oldest: int | None,
) -> np.ndarray:
    """For each joining of the outer merge tree, the inner one whose image it ends; -1 for none."""
    born = inner.extrema if oldest is None else np.append(inner.extrema, oldest)
    if not len(born) or not len(outer.extrema):
        return np.full(len(outer.extrema), -1)
    extremum, _ = outer_points.merge(up, inner=inner_points, born=born)
    return _find(inner.extrema, extremum, inner_points.levels.size)


def _oldest(points: CriticalPoints, up: bool) -> int:
    """Framed index of the pixel that comes first on a side: the extremum that never dies."""
    _, height, width = points.levels.shape
    inner = points.levels[(slice(None) if len(points.shape) == 2 else slice(1, -1), slice(1, -1), slice(1, -1))]
    # The order of `low` is the exact reverse of that of `up`, so of equal lowest pixels the last one comes first.
    place = int(np.argmax(inner)) if up else inner.size - 1 - int(np.argmin(inner.ravel()[::-1]))
    plane, row, column = np.unravel_index(place, inner.shape)
    return (int(plane) + len(points.shape) - 2) * height * width + (int(row) + 1) * width + int(column) + 1


def _invert(back: np.ndarray, count: int) -> np.ndarray:
    """partner[b] = a for every a with back[a] = b; -1 elsewhere."""
    partner = np.full(count, -1)
    partner[back[back >= 0]] = np.flatnonzero(back >= 0)
    return partner


def _find(values: np.ndarray, wanted: np.ndarray, size: int) -> np.ndarray:
    """Position of each wanted value among values that occur once, -1 where it is not; all are below `size`, -1 stands
    for none.
    """
    where = np.full(size + 1, -1)
    where[values] = np.arange(len(values))
    where[-1] = -1
    return where[wanted]


def _joined(maps: _Maps, levels: list[np.ndarray], dimension: int) -> tuple[_Paired, np.ndarray]:
    """Births and deaths (unframed) of both maps in one dimension without bars of length 0, and the positions of those
    that have one partner: (M, 2).
    """
    bars, hubs = [], []
    for (own, partner), points, level in zip(_partners(maps, dimension), maps[:2], levels, strict=True):
        real = np.flatnonzero((own.births >= 0) & (own.deaths >= 0))
        births, deaths = points.unframe(own.births[real]), points.unframe(own.deaths[real])
        kept = np.flatnonzero(level[births] > level[deaths])
        bars.append((births[kept], deaths[kept]))
        hubs.append(partner[real[kept]])
    second = np.flatnonzero(hubs[1] >= 0)
    first = _find(hubs[0], hubs[1][second], max(hub.max(initial=-1) for hub in hubs) + 1)
    return bars, np.stack([first[first >= 0], second[first >= 0]], axis=1)


def pair_features(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    dimensions: Iterable[int] | None = None,
) -> Pairing:
    """Betti matching as `match` does it, without sorting the bars or naming their coordinates: `Pairing`."""
    same_shape(prediction, reference)
    first, second = as_map(prediction), as_map(reference)
    closed = is_closed(connectivity)
    wide = np.float64 in (first.dtype, second.dtype)
    levels = (first, second) if not wide else tuple(rank(np.stack([first, second]).astype(np.float64)))
    maps = [survey(level, closed=closed) for level in (*levels, np.maximum(*levels))]
    flat = [level.ravel() for level in levels]
    parts, pairs, offsets = [], [np.empty((0, 2), np.int64)], np.zeros(2, np.int64)
    for dimension in range(first.ndim) if dimensions is None else sorted(set(dimensions)):
        found, joined = _joined(maps, flat, dimension)
        if dimension == 0:
            # The essential components go last, and belong together.
            joined = np.vstack([joined, [[len(births) for births, _ in found]]])
            found = [
                (np.append(births, np.argmax(level)), np.append(deaths, -1))
                for (births, deaths), level in zip(found, flat, strict=True)
            ]
        parts.append([(np.full(len(births), dimension, np.int8), births, deaths) for births, deaths in found])
        pairs.append(joined + offsets)
        offsets += [len(births) for births, _ in found]
    one, other = ([np.concatenate(column) for column in zip(*side, strict=True)] for side in zip(*parts, strict=True))
    kinds, births, deaths = zip(one, other, strict=True)
    return Pairing(kinds, births, deaths, np.vstack(pairs))


def match(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    dimensions: Iterable[int] | None = None,
) -> Matching:
    """Which topological features two maps share, feature by feature, with the pixels where each is born and dies.

    prediction, reference  real maps of one shape, (rows, columns) or (planes, rows, columns), superlevel filtration
    dimensions             which of 0, 1[, 2]; None means all
    returns                Matching
    A map matched with itself has every bar matched; swapping the maps swaps the two sides.
    """
    found = pair_features(prediction, reference, connectivity=connectivity, dimensions=dimensions)
    (code, place), (other_code, other_place) = (
        barcode_from(as_map(values), _by_dimension(found.dimensions[k], found.births[k], found.deaths[k]))
        for k, values in enumerate((prediction, reference))
    )
    matched = np.stack([place[found.matched[:, 0]], other_place[found.matched[:, 1]]], axis=1)
    alone, other_alone = np.sort(place[found.alone(0)]), np.sort(other_place[found.alone(1)])
    return Matching(code, other_code, matched[np.argsort(matched[:, 0])], alone, other_alone)


def _by_dimension(dimension: np.ndarray, births: np.ndarray, deaths: np.ndarray) -> list[Bars]:
    """The parts of `barcode_from`; bars of one dimension stand together."""
    return [(k, births[dimension == k], deaths[dimension == k]) for k in np.unique(dimension)]
