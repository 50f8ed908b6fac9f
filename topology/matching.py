"""Betti matching: which features of two maps are the same feature, because they are one in a map that contains both.

The superlevel sets of p and y both lie inside those of c = max(p, y). A feature of p and one of c are matched when the
feature of p, looked at inside c, is born with the one and dies with the other (image persistence); likewise y and c;
and a feature of p and one of y are matched when both are matched to the same feature of c. What is matched lies in the
same place, unlike two bars of equal length.

Mergers: the merge tree of the outer map is run with the ages of the inner one. Loops in space: the cycle of each inner
loop is flowed along the outer gradient and read in the basis of the outer loops; the last of them to be filled names
its death. Source: Stucki, Paetzold, Shit, Menze and Bauer, "Topologically Faithful Image Segmentation via Induced
Matching of Persistence Barcodes", ICML 2023. The essential components are matched to each other. All comparisons use
one order: value, then index.
"""

from dataclasses import dataclass

import numpy as np

from topology.critical_points import rank, survey
from topology.grids import Connectivity, as_map, is_closed, same_shape
from topology.loops import Loops
from topology.persistence import Barcode, barcode_from


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
    def error(self):
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

    dimensions: tuple
    births: tuple
    deaths: tuple
    matched: np.ndarray

    def alone(self, side):
        """Positions of the bars of one map (0 or 1) that the other has not."""
        lonely = np.ones(len(self.births[side]), bool)
        lonely[self.matched[:, side]] = False
        return np.flatnonzero(lonely)


@dataclass(frozen=True)
class _Events:
    """The features of one landscape in one dimension, in the order they were found, with their kernel state."""

    births: np.ndarray
    deaths: np.ndarray
    state: object


def _merger_events(ground, up, starts):
    extremum, saddle, _ = ground.merge(up=up)
    return _Events(*((extremum, saddle) if starts else (saddle, extremum)), (extremum, saddle))


def _loop_events(ground):
    loops = Loops(ground)
    births, deaths = (loops.fillers, loops.places) if ground.closed else (loops.places, loops.fillers)
    return _Events(births, deaths, loops)


def _find(values, wanted, size):
    """Position of each wanted value among values that occur once, -1 where it is not; all are below `size`, -1 stands
    for none.
    """
    where = np.full(size + 1, -1)
    where[values] = np.arange(len(values))
    where[-1] = -1
    return where[wanted]


def _merger_image(inner, outer, inner_ground, outer_ground, up, oldest):
    """For each event of the outer merge tree, the inner event whose image it ends; -1 for none."""
    born = np.append(inner.state[0], oldest) if oldest is not None else inner.state[0]
    if not len(born) or not len(outer.state[0]):
        return np.full(len(outer.state[0]), -1)
    extremum, _, _ = outer_ground.merge(up, inner=inner_ground, born=born)
    return _find(inner.state[0], extremum, inner_ground.levels.size)


def _events(grounds, dimension):
    """Events of prediction, reference and comparison in one dimension, and for each of the first two its partner in the
    third.
    """
    ndim, closed = len(grounds[0].shape), grounds[0].closed
    if 0 < dimension < ndim - 1:
        return _match_loops(grounds)
    starts = dimension == 0
    up = starts == closed
    events = [_merger_events(ground, up, starts) for ground in grounds]
    partners = []
    for own, ground in zip(events[:2], grounds[:2], strict=True):
        if starts:
            back = _merger_image(own, events[2], ground, grounds[2], up, _oldest(ground, up))
            partners.append(_invert(back, len(own.births)))
        else:
            partners.append(_merger_image(events[2], own, grounds[2], ground, up, None))
    return events[:2], partners


def _oldest(ground, up):
    """Framed index of the pixel that comes first on a side: the extremum that never dies."""
    _, height, width = ground.levels.shape
    inner = ground.levels[(slice(None) if len(ground.shape) == 2 else slice(1, -1), slice(1, -1), slice(1, -1))]
    # The order of `low` is the exact reverse of that of `up`, so of equal lowest pixels the last one comes first.
    place = int(np.argmax(inner)) if up else inner.size - 1 - int(np.argmin(inner.ravel()[::-1]))
    plane, row, column = np.unravel_index(place, inner.shape)
    return (int(plane) + len(ground.shape) - 2) * height * width + (int(row) + 1) * width + int(column) + 1


def _invert(back, count):
    """partner[b] = a for every a with back[a] = b; -1 elsewhere."""
    partner = np.full(count, -1)
    partner[back[back >= 0]] = np.flatnonzero(back >= 0)
    return partner


def _match_loops(grounds):
    events = [_loop_events(ground) for ground in grounds]
    partners = []
    for own in events[:2]:
        if grounds[0].closed:
            ends = events[2].state.image_in(own.state)
            partners.append(_invert(ends, len(own.births)))
        else:
            partners.append(own.state.image_in(events[2].state))
    return events[:2], partners


def _joined(grounds, levels, dimension):
    """Births, deaths (unframed) of both maps in one dimension without bars of length 0, and the pairs of matched
    positions.
    """
    events, partners = _events(grounds, dimension)
    bars, hubs = [], []
    for own, partner, ground, level in zip(events, partners, grounds, levels, strict=False):
        real = np.flatnonzero((own.births >= 0) & (own.deaths >= 0))
        births, deaths = ground.unframe(own.births[real]), ground.unframe(own.deaths[real])
        kept = np.flatnonzero(level[births] > level[deaths])
        bars.append((births[kept], deaths[kept]))
        hubs.append(partner[real[kept]])
    second = np.flatnonzero(hubs[1] >= 0)
    first = _find(hubs[0], hubs[1][second], max(hub.max(initial=-1) for hub in hubs) + 1)
    return bars, np.stack([first[first >= 0], second[first >= 0]], axis=1)


def pair_features(prediction, reference, *, connectivity=Connectivity.CLOSED, dimensions=None):
    """Betti matching as `match` does it, without sorting the bars or naming their coordinates: `Pairing`."""
    same_shape(prediction, reference)
    first, second = as_map(prediction), as_map(reference)
    closed = is_closed(connectivity)
    wide = np.float64 in (first.dtype, second.dtype)
    levels = (first, second) if not wide else tuple(rank(np.stack([first, second]).astype(np.float64)))
    grounds = [survey(level, closed=closed) for level in (*levels, np.maximum(*levels))]
    flat = [level.ravel() for level in levels]
    parts, pairs, offsets = [], [np.empty((0, 2), np.int64)], np.zeros(2, np.int64)
    for dimension in range(first.ndim) if dimensions is None else sorted(set(dimensions)):
        found, joined = _joined(grounds, flat, dimension)
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
    columns = [[np.concatenate(column) for column in zip(*side, strict=True)] for side in zip(*parts, strict=True)]
    return Pairing(*zip(*columns, strict=True), np.vstack(pairs))


def match(prediction, reference, *, connectivity=Connectivity.CLOSED, dimensions=None):
    """Which topological features two maps share, feature by feature, with the pixels where each is born and dies.

    prediction, reference  real maps of one shape, (rows, columns) or (planes, rows, columns), superlevel filtration
    dimensions             which of 0, 1[, 2]; None means all
    returns                Matching
    A map matched with itself has every bar matched; swapping the maps swaps the two sides.
    """
    found = pair_features(prediction, reference, connectivity=connectivity, dimensions=dimensions)
    sides = zip((prediction, reference), found.dimensions, found.births, found.deaths, strict=True)
    codes, places = zip(*(barcode_from(as_map(values), _by_dimension(*bars)) for values, *bars in sides), strict=True)
    matched = np.stack([places[k][found.matched[:, k]] for k in range(2)], axis=1)
    lonely = [np.sort(places[k][found.alone(k)]) for k in range(2)]
    return Matching(*codes, matched[np.argsort(matched[:, 0])], *lonely)


def _by_dimension(dimension, births, deaths):
    """The parts of `barcode_from`; bars of one dimension stand together."""
    return [(k, births[dimension == k], deaths[dimension == k]) for k in np.unique(dimension)]
