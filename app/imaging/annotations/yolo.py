"""Reads YOLO segmentation: a text file for each image, a polygon in each line.

    labels/a.txt        CLASS x y x y x y ...      in parts of the image's sides, beside images/a.jpg
    data.yaml           names: [vessel, ...]       or classes.txt, a name in each line

Source: the segmentation format of Ultralytics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from app.errors import BadDataset
from app.imaging.annotations.shapes import Drawn, Export, Labelled, Part, Polygons

SLACK = 0.05
"""How far beyond the image a polygon may reach, in parts of its sides; tools round, and people draw over edges."""


class Outline:
    """A polygon in parts of the image's sides; (N, 2) float64."""

    def __init__(self, points: np.ndarray):
        self.points = points

    def size(self, rows: int, columns: int) -> tuple[float, int]:
        """As of `Polygons`."""
        return Polygons([self.points * (columns, rows)]).size(rows, columns)

    def covered(self, rows: int, columns: int) -> Part:
        """The pixels whose centres it holds."""
        return Polygons([self.points * (columns, rows)]).covered(rows, columns)


def read(texts: Mapping[str, str], labels: Mapping[str, str], images: Iterable[str], names: list[str]) -> Export:
    """The images with their text files.

    texts   text of each label file, by its path
    labels  path of the image of each label file
    images  all images; those without a label file hold nothing
    names   of the classes, as far as they are told
    Raises BadDataset for boxes without polygons, and for lines that cannot be read.
    """
    export = Export("YOLO", list(names), [])
    found: dict[str, list[Drawn]] = {image: [] for image in images}
    polygons = 0
    for path, text in sorted(texts.items()):
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            kind, points = _line(line, f"Line {number} of {path}")
            export.classes += [f"class {more}" for more in range(len(export.classes), kind + 1)]
            if points is None:
                export.pass_over("boxes")
                continue
            polygons += 1
            found[labels[path]].append(Drawn(export.classes[kind], Outline(points)))
    if export.passed and not polygons:
        raise BadDataset(
            f"The YOLO export holds {export.passed['boxes']} boxes and no polygon: it is one for detection. Export it"
            " for segmentation."
        )
    export.images = [Labelled(path, None, drawn) for path, drawn in found.items()]
    return export


def names_of(described: Any) -> list[str]:
    """The names in data.yaml: a list, or an object of numbers."""
    given = described.get("names") if isinstance(described, dict) else None
    if isinstance(given, list):
        return [str(name) for name in given]
    if isinstance(given, dict):
        told = {int(number) if str(number).isdecimal() else -1: name for number, name in given.items()}
        if given and not (min(told) >= 0 and max(told) < 65536):
            raise BadDataset("The `names` of data.yaml are not numbered 0, 1, 2, ... Write them as a list.")
        given = told
        return [str(given.get(number, f"class {number}")) for number in range(max(given, default=-1) + 1)]
    return []


def _line(line: str, where: str) -> tuple[int, np.ndarray | None]:
    """Number of the class, and the polygon; None for a box."""
    words = line.split()
    try:
        kind, numbers = int(words[0]), np.array(words[1:], np.float64)
    except ValueError:
        raise BadDataset(f"{where} is not CLASS x y x y ...: {line[:40]!r}. Export it again.") from None
    if not 0 <= kind < 65536:
        raise BadDataset(f"{where} names the class {kind}; they are numbered from 0. Export it again.")
    if len(numbers) in (4, 5):
        return kind, None
    if len(numbers) < 6 or len(numbers) % 2:
        raise BadDataset(f"{where} holds {len(numbers)} numbers, which make no polygon of x and y. Export it again.")
    if not (np.isfinite(numbers).all() and numbers.min() >= -SLACK and numbers.max() <= 1 + SLACK):
        worst = numbers[np.argmax(np.abs(np.nan_to_num(numbers, nan=np.inf) - 0.5))]
        raise BadDataset(
            f"{where} holds {worst:g}; coordinates are parts of the image's sides, from 0 to 1. Divide x by its columns"
            " and y by its rows."
        )
    return kind, numbers.reshape(-1, 2)
