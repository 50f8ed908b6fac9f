"""Reads Label Studio's JSON export: a list of tasks with polygons and brushes.

Of several annotations of a task the one that is marked as ground truth counts, else the last that was not cancelled.
Rectangles, points and choices are left out. Source: Label Studio's raw JSON format; runs as in
`app.protocols.label_studio`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import BadDataset
from app.imaging.annotations.shapes import Drawn, Export, Labelled, Part, Polygons, Shape, points_of

UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the names of files that were uploaded to it."""
MOST_PIXELS = 2**28


def is_label_studio(found: Any) -> bool:
    """Whether a JSON document is Label Studio's."""
    return (
        isinstance(found, list)
        and len(found) > 0
        and all(
            isinstance(task, dict) and isinstance(task.get("data"), dict) and "annotations" in task for task in found
        )
    )


def read(found: list[Any]) -> Export:
    """The tasks by the addresses of their images; BadDataset where an annotation cannot be read."""
    export = Export("Label Studio", [], [])
    for task in found:
        address, results = _address(task), _results(task)
        if results is None:
            export.images.append(Labelled(address, None, None))
            continue
        image = Labelled(address, None, [])
        try:
            for result in results:
                _add(result, image, export)
        except BadDataset as problem:
            raise BadDataset(
                f"An annotation of {address[:128]} cannot be read: {problem.detail}. Export it again."
            ) from None
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
            raise BadDataset(
                f"An annotation of {address[:128]} is not as Label Studio writes it. Export it as JSON (not JSON-MIN)."
            ) from None
        export.images.append(image)
    export.classes.sort()
    return export


def _address(task: dict[str, Any]) -> str:
    """The image of a task: what stands under `image`, else the only text that looks like a file."""
    data = task["data"]
    texts = [data["image"]] if isinstance(data.get("image"), str) else [t for t in data.values() if isinstance(t, str)]
    files = [text for text in texts if re.search(r"\.\w{2,6}($|\?)", text)]
    if len(files) != 1:
        raise BadDataset(
            f"Task {task.get('id')} of the Label Studio export names {len(files)} images; one was expected."
        )
    return files[0].split("?d=")[-1]


def _results(task: dict[str, Any]) -> list[Any] | None:
    given = task["annotations"] if isinstance(task["annotations"], list) else []
    kept = [each for each in given if isinstance(each, dict) and not each.get("was_cancelled")]
    if not kept:
        return None
    chosen = next((each for each in kept if each.get("ground_truth")), kept[-1])
    results = chosen.get("result") or []
    if not isinstance(results, list):
        raise BadDataset(f"Task {task.get('id')} of the Label Studio export has a `result` that is no list.")
    return results


def _add(result: dict[str, Any], image: Labelled, export: Export) -> None:
    kind = result.get("type", "")
    if kind not in ("polygonlabels", "brushlabels"):
        export.pass_over({"rectanglelabels": "boxes", "keypointlabels": "points"}.get(kind, "other marks"))
        return
    columns, rows = int(result["original_width"]), int(result["original_height"])
    if not 0 < columns * rows <= MOST_PIXELS:
        raise BadDataset(f"it says that the image has {columns} x {rows} pixels")
    image.size = (columns, rows)
    if result.get("image_rotation"):
        raise BadDataset("the image was turned while it was drawn on")
    value = result["value"]
    shape: Shape = _polygon(value, columns, rows) if kind == "polygonlabels" else _brush(value, columns, rows)
    for name in map(str, value[kind]):
        if name not in export.classes:
            export.classes.append(name)
        assert image.drawn is not None
        image.drawn.append(Drawn(name, shape))


def _polygon(value: dict[str, Any], columns: int, rows: int) -> Shape:
    return Polygons([points_of(value["points"]) * (columns / 100, rows / 100)])


def _brush(value: dict[str, Any], columns: int, rows: int) -> Shape:
    if value.get("format", "rle") != "rle":
        raise BadDataset(f"a brush in the format {str(value['format'])[:16]!r}")
    return Brush(bytes(value["rle"]), rows, columns)


@dataclass(frozen=True)
class Brush:
    """A mask as Label Studio packs it, unpacked only while it is drawn."""

    packed: bytes
    rows: int
    columns: int

    def size(self, rows: int, columns: int) -> tuple[float, int]:
        """The pixels that it paints, and those of its image, three times for unpacking."""
        return float(self.covered(rows, columns)[2].sum()), 3 * rows * columns

    def covered(self, rows: int, columns: int) -> Part:
        """The pixels that it paints; BadDataset where the image has other sides."""
        if (rows, columns) != (self.rows, self.columns):
            raise BadDataset(f"a mask of {self.columns} x {self.rows}")
        alpha = unpacked(self.packed, 4 * columns * rows)[3::4]
        return 0, 0, (alpha > 127).reshape(rows, columns)


def unpacked(packed: bytes, due: int) -> np.ndarray:
    """(due,) uint8 values in the runs that Label Studio packs; BadDataset where there are more or fewer."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    at = 0

    def number(width: int) -> int:
        nonlocal at
        if at + width > len(bits):
            raise BadDataset("a brush is cut short")
        value = int.from_bytes(np.packbits(bits[at : at + width]).tobytes()) >> (-width % 8)
        at += width
        return value

    count, width = number(32), number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    if count != due or width != 8:
        raise BadDataset(f"a brush of {count} values of {width} bits; {due} of 8 were expected")
    values = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        is_run = number(1)
        length = number(lengths[number(2)]) + 1
        if done + length > count:
            raise BadDataset("a brush holds more values than it says")
        if is_run:
            values[done : done + length] = number(8)
        else:
            if at + 8 * length > len(bits):
                raise BadDataset("a brush is cut short")
            values[done : done + length] = np.packbits(bits[at : at + 8 * length])
            at += 8 * length
        done += length
    return values
