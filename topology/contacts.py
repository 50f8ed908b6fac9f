"""Which classes of a label map touch, and which of these contacts are not allowed.

Anatomy says which structures may share a border: the left and the right atrium may not, an artery and its branch must.
Two pixels touch across a side (4 [6] neighbours), an edge (18, in space only) or a corner (8 [26]).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from topology.label_maps import NEIGHBOURS, as_labels, as_neighbours, steps_ahead


class Contact(NamedTuple):
    """Two classes that touch.

    classes   the smaller and the larger label
    count     pairs of pixels that touch
    position  the first pixel, in raster order, that has the other class beside or after it
    """

    classes: tuple[int, int]
    count: int  # type: ignore[assignment]  # a tuple has a method of that name
    position: tuple[int, ...]


def contacts(labels: ArrayLike, *, neighbours: int | None = None, background: int | None = 0) -> list[Contact]:
    """Every pair of classes that touch, sorted: `Contact`.

    labels      (rows, columns) or (planes, rows, columns) whole numbers
    neighbours  4 or 8 in the plane, 6, 18 or 26 in space; None: those across a side
    background  label that touches everything and is left out (None: it counts like any other)
    Refuses (ValueError) other than 2 or 3 axes and labels that are no whole numbers.
    """
    labels = as_labels(labels)
    neighbours = as_neighbours(neighbours or NEIGHBOURS[labels.ndim][0], labels.ndim)
    pairs, places = [np.empty((0, 2), labels.dtype)], [np.empty(0, np.int64)]
    for step in steps_ahead(labels.ndim, neighbours):
        here = tuple(slice(max(-k, 0), min(side, side - k)) for k, side in zip(step, labels.shape, strict=True))
        there = tuple(slice(max(k, 0), min(side, side + k)) for k, side in zip(step, labels.shape, strict=True))
        one, other = labels[here], labels[there]
        apart = one != other
        if background is not None:
            apart &= (one != background) & (other != background)
        where = np.nonzero(apart)
        pairs.append(np.sort(np.stack([one[where], other[where]], axis=1), axis=1))
        start = [range_.start for range_ in here]
        places.append(np.ravel_multi_index([k + first for k, first in zip(where, start, strict=True)], labels.shape))
    classes, which, counts = np.unique(np.concatenate(pairs), axis=0, return_inverse=True, return_counts=True)
    first = np.full(len(classes), labels.size)
    np.minimum.at(first, which.ravel(), np.concatenate(places))
    positions = np.stack(np.unravel_index(first, labels.shape), axis=1)
    return [
        Contact(tuple(pair), count, tuple(place))
        for pair, count, place in zip(classes.tolist(), counts.tolist(), positions.tolist(), strict=True)
    ]


def forbidden_contacts(
    labels: ArrayLike,
    allowed: Iterable[tuple[int, int]],
    *,
    neighbours: int | None = None,
    background: int | None = 0,
) -> list[Contact]:
    """The contacts of a label map between classes that may not touch.

    allowed  pairs of labels, in any order, that may; for "as in the reference" give the classes of
             `contacts(reference)`
    """
    may = {tuple(sorted(pair)) for pair in allowed}
    return [each for each in contacts(labels, neighbours=neighbours, background=background) if each.classes not in may]


def absent_contacts(
    labels: ArrayLike,
    wanted: Iterable[tuple[int, int]],
    *,
    neighbours: int | None = None,
) -> list[tuple[int, int]]:
    """The pairs of classes that must touch and do not, sorted; also those of which a class is absent."""
    found = {each.classes for each in contacts(labels, neighbours=neighbours, background=None)}
    return sorted({(min(pair), max(pair)) for pair in wanted} - found)
