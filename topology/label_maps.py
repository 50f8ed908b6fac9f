"""Components of label maps: all classes at once, any neighbourhood, without dust, the largest.

A label map holds a whole number for each pixel: its class, or its instance. Pixels of one class that touch are one
component; classes never join. Whoever asks here names a neighbourhood, because components alone need no dual pair.
Labelling itself is cc3d's, which does all classes in one sweep.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from topology.components import number_components, sizes_and_boxes
from topology.grids import refuse_shape

NEIGHBOURS = {2: (4, 8), 3: (6, 18, 26)}
"""Neighbourhoods of a pixel by the number of axes: across sides, [edges,] and corners."""


class Components(NamedTuple):
    """The components of a label map.

    labels   int32, 0 for background, else 1 + the position of the component; in raster order of the first pixel
    classes  (K,) the class of each component
    sizes    (K,) int64, pixels
    boxes    (K, 2, ndim) half open
    """

    labels: np.ndarray
    classes: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray


def as_labels(labels: ArrayLike) -> np.ndarray:
    """C-ordered array of whole numbers with 2 or 3 axes; bool becomes uint8. Refuses (ValueError) everything else."""
    labels = np.asarray(labels)
    refuse_shape(labels, "Label map")
    if labels.dtype.kind not in "biu":
        raise ValueError(
            f"Label map has dtype {labels.dtype}; whole numbers are needed, which name the class of each pixel."
        )
    return np.ascontiguousarray(labels.view(np.uint8) if labels.dtype.kind == "b" else labels)


def as_neighbours(neighbours: int | None, ndim: int) -> int:
    """A neighbourhood that fits the axes; None means all pixels that touch, corners included. Refuses (ValueError)
    others.
    """
    if neighbours is None:
        return NEIGHBOURS[ndim][-1]
    if neighbours not in NEIGHBOURS[ndim]:
        choices = ", ".join(map(str, NEIGHBOURS[ndim]))
        raise ValueError(f"{neighbours!r} neighbours do not fit {ndim} axes. Choose from {choices}.")
    return neighbours


def steps_ahead(ndim: int, neighbours: int) -> np.ndarray:
    """(neighbours / 2, ndim) steps to the neighbours that come later in raster order, so that each pair is met once."""
    steps = np.stack(np.unravel_index(np.arange(3**ndim), (3,) * ndim), axis=1)[3**ndim // 2 + 1 :] - 1
    return steps[np.abs(steps).sum(1) <= 1 + NEIGHBOURS[ndim].index(neighbours)]


def find_components(labels: ArrayLike, *, neighbours: int | None = None) -> Components:
    """The components of every class of a label map: `Components`.

    labels      (rows, columns) or (planes, rows, columns) whole numbers of any integer dtype, or a bool mask; 0 is
                background
    neighbours  4 or 8 in the plane, 6, 18 or 26 in space; None: 8 [26]
    """
    given = as_labels(labels)
    neighbours = as_neighbours(neighbours, given.ndim)
    # A plane as a volume of one plane, whose components cc3d numbers in raster order.
    volume = given.reshape((1,) * (3 - given.ndim) + given.shape)
    numbers, count = number_components(volume, {4: 6, 8: 26}.get(neighbours, neighbours))
    found = numbers.reshape(given.shape)
    sizes, boxes = sizes_and_boxes(found, count)
    classes = np.zeros(count + 1, given.dtype)
    classes[found] = given
    return Components(found, classes[1:], sizes, boxes)


def _kept(labels: ArrayLike, found: Components, keep: np.ndarray) -> np.ndarray:
    """A copy of a label map in which only some components are left."""
    return np.where(np.concatenate([[False], keep])[found.labels], np.asarray(labels), np.asarray(labels).dtype.type(0))


def keep_largest(labels: ArrayLike, count: int = 1, *, neighbours: int | None = None) -> np.ndarray:
    """A copy in which of each class only the components with the most pixels are left; the rest is 0.

    count  how many of each class; of equal ones the first in raster order stays
    """
    if count < 1:
        raise ValueError(f"{count} components of each class leave nothing. Keep at least 1.")
    found = find_components(labels, neighbours=neighbours)
    order = np.lexsort((-found.sizes, found.classes))
    ordered = found.classes[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    keep = np.zeros(len(order), bool)
    keep[order] = rank < count
    return _kept(labels, found, keep)


def remove_dust(labels: ArrayLike, smaller_than: int, *, neighbours: int | None = None) -> np.ndarray:
    """A copy without the components of fewer than `smaller_than` pixels; they become 0."""
    found = find_components(labels, neighbours=neighbours)
    return _kept(labels, found, found.sizes >= smaller_than)
