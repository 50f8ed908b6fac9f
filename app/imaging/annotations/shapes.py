"""What annotation tools draw, and the mask that it makes.

A pixel belongs to a polygon when its centre lies inside by the even-odd rule. Where shapes overlap, the one that the
tool shows in front wins, and of equals the smaller one: a cell inside a tissue stays a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from app.errors import BadDataset

Points = np.ndarray
"""(N, 2) float64: x to the right and y down, in pixels; (0, 0) is the corner of the image, not a centre."""


Part = tuple[int, int, np.ndarray]
"""Row and column where a part of an image begins, and which of its pixels are covered, (rows, columns) bool."""


MOST_DRAWN = 2**32
"""Pixels that the shapes of one image may fill together; overlapping ones count as often as they are."""


class Shape(Protocol):
    """Something drawn on an image."""

    def size(self, rows: int, columns: int) -> tuple[float, int]:
        """Its area in pixels, and how many pixels have to be looked at to draw it; BadDataset where it does not fit."""

    def covered(self, rows: int, columns: int) -> Part:
        """The pixels of an image of those sides that it covers."""


@dataclass(frozen=True)
class Polygons:
    """Outlines whose insides are joined."""

    parts: Sequence[Points]

    def size(self, rows: int, columns: int) -> tuple[float, int]:
        """By its corners; BadDataset where it lies outside the image altogether."""
        corners = np.concatenate([*self.parts, np.empty((0, 2))])
        if not len(corners):
            return 0, 0
        low, high = corners.min(0), corners.max(0)
        if (low > (columns, rows)).any() or (high < 0).any():
            raise BadDataset(
                f"a polygon from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}) lies outside the"
                f" {columns} x {rows} pixels"
            )
        width, height = np.clip(high, 0, (columns, rows)) - np.clip(low, 0, (columns, rows))
        return sum(map(_area, self.parts)), int((width + 2) * (height + 2)) * len(self.parts)

    def covered(self, rows: int, columns: int) -> Part:
        """What lies in any of them."""
        return filled(self.parts, rows, columns)


@dataclass(frozen=True)
class Runs:
    """A mask in runs of 0 and 1 by turns, the first of 0.

    lengths   of the runs
    box       left, top, width, height of the part of the image that they tell
    by_rows   along rows, else along columns
    """

    lengths: Sequence[int]
    box: tuple[int, int, int, int]
    by_rows: bool

    def size(self, rows: int, columns: int) -> tuple[float, int]:
        """The sum of its runs, and its box; BadDataset where they are not as many pixels, or not in the image."""
        left, top, width, height = self.box
        told = sum(self.lengths)
        if min(left, top, width, height) < 0 or left + width > columns or top + height > rows:
            raise BadDataset(f"a mask of {width} x {height} at ({left}, {top}) in an image of {columns} x {rows}")
        if min(self.lengths, default=0) < 0 or told != width * height:
            raise BadDataset(f"runs of {told} pixels for {width} x {height}")
        return sum(self.lengths[1::2]), told

    def covered(self, rows: int, columns: int) -> Part:
        """The pixels in runs of 1."""
        left, top, width, height = self.box
        values = np.repeat(np.arange(len(self.lengths)) % 2 == 1, self.lengths)
        return top, left, values.reshape(height, width) if self.by_rows else values.reshape(width, height).T


@dataclass(frozen=True)
class Drawn:
    """A shape of a class; of two that overlap the one in front is seen."""

    class_name: str
    shape: Shape
    front: int = 0


@dataclass
class Labelled:
    """An image of an export, by its path in the archive.

    size   (columns, rows) that the export says the image has, or None
    drawn  None: nobody labelled it
    """

    path: str
    size: tuple[int, int] | None
    drawn: list[Drawn] | None


@dataclass
class Export:
    """What an annotation tool exported.

    tool     its name, as people know it
    classes  names without background, in the order of their numbers
    passed   how many shapes of a kind that covers no area were left out: boxes, points, lines
    """

    tool: str
    classes: list[str]
    images: list[Labelled]
    passed: dict[str, int] = field(default_factory=dict)

    def pass_over(self, kind: str) -> None:
        """Count a shape that is not read."""
        self.passed[kind] = self.passed.get(kind, 0) + 1


def mask_of(image: Labelled, classes: Sequence[str], rows: int, columns: int) -> np.ndarray:
    """(rows, columns) uint8 (uint16 beyond 255 classes): 0, and 1 + the position of a class.

    BadDataset, naming the image, where the export says another size or a shape does not fit.
    """
    if image.size is not None and image.size != (columns, rows):
        stated = " x ".join(map(str, image.size))
        raise BadDataset(
            f"The export says that {image.path} has {stated} pixels (columns x rows); the file has {columns} x {rows}."
            " Export the images that were annotated."
        )
    mask = np.zeros((rows, columns), np.uint8 if len(classes) < 256 else np.uint16)
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    shapes = image.drawn or []
    try:
        sizes = [drawn.shape.size(rows, columns) for drawn in shapes]
        if (work := sum(looked_at for _, looked_at in sizes)) > MOST_DRAWN:
            raise BadDataset(f"its {len(shapes)} shapes fill {work} pixels together, more than {MOST_DRAWN}")
        order = sorted(range(len(shapes)), key=lambda at: (shapes[at].front, -sizes[at][0]))
        for drawn in (shapes[at] for at in order):  # one at a time: each may be as large as the image
            top, left, inside = drawn.shape.covered(rows, columns)
            part = mask[top : top + inside.shape[0], left : left + inside.shape[1]]
            part[inside] = numbers.get(drawn.class_name, 0)
    except BadDataset as problem:
        raise BadDataset(f"An annotation of {image.path} does not fit: {problem.detail}. Export it again.") from None
    return mask


def _area(points: Points) -> float:
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def filled(polygons: Sequence[Points], rows: int, columns: int) -> Part:
    """Pixels whose centre lies inside one of the polygons by the even-odd rule; they may leave the image."""
    corners = np.concatenate([*polygons, np.empty((0, 2))])
    if not len(corners):
        return 0, 0, np.zeros((0, 0), bool)
    left, top = np.clip(np.floor(corners.min(0)), 0, (columns, rows)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(0)), 0, (columns, rows)).astype(int)
    inside = np.zeros((bottom - top, right - left), bool)
    for points in polygons:
        inside |= _filled(points - (left, top), *inside.shape)
    return int(top), int(left), inside


def _filled(points: Points, rows: int, columns: int) -> np.ndarray:
    # Each edge turns over what lies to the right of it, in the rows whose centres it passes.
    turned = np.zeros((rows, columns + 1), np.uint8)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        first, last = np.clip(np.ceil(np.sort([y0, y1]) - 0.5), 0, rows).astype(int)
        if first < last:
            passed = np.arange(first, last)
            crossed = x0 + (passed + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            turned[passed, np.clip(np.ceil(crossed - 0.5), 0, columns).astype(int)] ^= 1
    return np.bitwise_xor.accumulate(turned, axis=1)[:, :columns].astype(bool)


def points_of(numbers: Any) -> Points:
    """(N, 2) of x, y, x, y ...; BadDataset where they are no finite numbers or no pairs."""
    try:
        points = np.array(numbers, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise BadDataset("a polygon is no list of x, y, x, y, ...") from None
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > 1e6:
        raise BadDataset("a polygon has coordinates that are no pixels")
    return points
