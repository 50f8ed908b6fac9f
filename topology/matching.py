"""Betti matching: which features of two maps are the same feature, because they are one in a map that contains both.

The superlevel sets of p and y both lie inside those of c = max(p, y). A feature of p and one of c are matched when the feature of p,
looked at inside c, is born with the one and dies with the other (image persistence); likewise y and c; and a feature of p and one of y are
matched when both are matched to the same feature of c. What is matched lies in the same place, unlike two bars of equal length.

Mergers: the merge tree of the outer map is run with the ages of the inner one. Loops in space: the cycle of each inner loop is flowed along
the outer gradient and read in the basis of the outer loops; the last of them to be filled names its death.
Source: Stucki, Paetzold, Shit, Menze and Bauer, "Topologically Faithful Image Segmentation via Induced Matching of Persistence Barcodes",
ICML 2023. The essential components are matched to each other. All comparisons use one order: value, then index.
"""

from dataclasses import dataclass

import numpy as np

from topology.grids import Connectivity, as_map, is_closed, same_shape
from topology.landscape import rank, survey
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


def _find(values, wanted):
    """Position of each wanted value (at least 0) among values that occur once, -1 where it is not."""
    if not len(values):
        return np.full(len(wanted), -1)
    order = np.argsort(values)
    where = order[np.minimum(np.searchsorted(values, wanted, sorter=order), len(order) - 1)]
    return np.where((values[where] == wanted) & (wanted >= 0), where, -1)


def _merger_image(inner, outer, inner_ground, outer_ground, up, oldest):
    """For each event of the outer merge tree, the inner event whose image it ends; -1 for none."""
    born = np.append(inner.state[0], oldest) if oldest is not None else inner.state[0]
    if not len(born) or not len(outer.state[0]):
        return np.full(len(outer.state[0]), -1)
    extremum, _, _ = outer_ground.merge(up, inner=inner_ground, born=born)
    return _find(inner.state[0], extremum)


def _events(grounds, dimension):
    """Events of prediction, reference and comparison in one dimension, and for each of the first two its partner in the third."""
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
    """Births, deaths (unframed) of both maps in one dimension without bars of length 0, and the pairs of matched positions."""
    events, partners = _events(grounds, dimension)
    lasting, bars = [], []
    for own, ground, level in zip(events, grounds, levels, strict=False):
        real = (own.births >= 0) & (own.deaths >= 0)
        births, deaths = ground.unframe(np.maximum(own.births, 0)), ground.unframe(np.maximum(own.deaths, 0))
        kept = np.flatnonzero(real)
        kept = kept[level[births[kept]] > level[deaths[kept]]]
        lasting.append(kept)
        bars.append((births[kept], deaths[kept]))
    hubs = [partner[kept] for partner, kept in zip(partners, lasting, strict=True)]
    both = np.intersect1d(hubs[0][hubs[0] >= 0], hubs[1][hubs[1] >= 0])
    pairs = np.stack([_find(hub, both) for hub in hubs], axis=1) if len(both) else np.empty((0, 2), np.int64)
    return bars, pairs


def match(prediction, reference, *, connectivity=Connectivity.CLOSED, dimensions=None):
    """Which topological features two maps share, feature by feature, with the pixels where each is born and dies.

    prediction, reference  real maps of one shape, (rows, columns) or (planes, rows, columns), superlevel filtration
    dimensions             which of 0, 1[, 2]; None means all
    returns                Matching
    A map matched with itself has every bar matched; swapping the maps swaps the two sides.
    """
    same_shape(prediction, reference)
    first, second = as_map(prediction), as_map(reference)
    closed = is_closed(connectivity)
    wide = np.float64 in (first.dtype, second.dtype)
    levels = (first, second) if not wide else tuple(rank(np.stack([first, second]).astype(np.float64)))
    grounds = [survey(level, closed=closed) for level in (*levels, np.maximum(*levels))]
    dimensions = range(first.ndim) if dimensions is None else sorted(set(dimensions))
    flat_levels = [level.ravel() for level in levels]
    bars, pairs, offsets = ([], []), [np.empty((0, 2), np.int64)], np.zeros(2, np.int64)
    for dimension in dimensions:
        found, joined = _joined(grounds, flat_levels, dimension)
        if dimension == 0:
            # The essential components go last, and belong together.
            joined = np.vstack([joined, [[len(found[0][0]), len(found[1][0])]]])
            found = [_with_essential(side, level) for side, level in zip(found, flat_levels, strict=True)]
        pairs.append(joined + offsets)
        for k in range(2):
            bars[k].append((dimension, *found[k]))
            offsets[k] += len(found[k][0])
    codes, places = zip(*(barcode_from(values, side) for values, side in zip((first, second), bars, strict=True)), strict=True)
    matched = np.vstack(pairs)
    matched = np.stack([places[k][matched[:, k]] for k in range(2)], axis=1)
    matched = matched[np.argsort(matched[:, 0])]
    lonely = [np.setdiff1d(np.arange(len(codes[k])), matched[:, k]) for k in range(2)]
    return Matching(*codes, matched, *lonely)


def _with_essential(bars, level):
    births, deaths = bars
    return np.append(births, np.argmax(level)), np.append(deaths, -1)
