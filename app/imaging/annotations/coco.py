"""Reads COCO: `instances.json` with images, annotations and categories.

Polygons, runs (`counts` as numbers or packed into a text, along columns) and crowds; keypoints and boxes without
segmentation are left out. Source: the data format of COCO and `maskApi.c` of its tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.errors import BadDataset
from app.imaging.annotations.shapes import Drawn, Export, Labelled, Polygons, Runs, Shape, points_of

KEYS = ("images", "annotations", "categories")


def is_coco(found: Any) -> bool:
    """Whether a JSON document is COCO."""
    return isinstance(found, dict) and all(isinstance(found.get(key), list) for key in KEYS)


def read(found: Any) -> Export:
    """The images of a document by their `file_name`; BadDataset where it contradicts itself."""
    try:
        names = {int(each["id"]): str(each["name"]) for each in found["categories"]}
        images = {
            int(each["id"]): Labelled(str(each["file_name"]), (int(each["width"]), int(each["height"])), [])
            for each in found["images"]
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadDataset(
            f"The COCO export has a category or an image without {error}, or with a wrong one. Images need id,"
            " file_name, width and height, categories id and name."
        ) from None
    export = Export("COCO", [names[number] for number in sorted(names)], list(images.values()))
    for number, each in enumerate(found["annotations"]):
        where = f"Annotation {number} of the COCO export"
        if not isinstance(each, dict) or not (_known(each, "image_id", images) and _known(each, "category_id", names)):
            raise BadDataset(f"{where} names an image or a category that is not in it. Export it again.")
        shape = _shape(each.get("segmentation"), where)
        if shape is None:
            export.pass_over("boxes" if "bbox" in each else "keypoints")
            continue
        drawn = images[each["image_id"]].drawn
        assert drawn is not None
        drawn.append(Drawn(names[each["category_id"]], shape))
    return export


def _known(each: dict[str, Any], name: str, there: Mapping[int, object]) -> bool:
    return isinstance(each.get(name), int) and each[name] in there


def _shape(given: Any, where: str) -> Shape | None:
    if not given:
        return None
    try:
        if isinstance(given, list):
            return Polygons([points_of(part) for part in given])
        counts, (rows, columns) = given["counts"], given["size"]
        lengths = unpacked(counts) if isinstance(counts, str) else [int(each) for each in counts]
        return Runs(lengths, (0, 0, int(columns), int(rows)), by_rows=False)
    except BadDataset as problem:
        raise BadDataset(f"{where} cannot be read: {problem.detail}. Export it again.") from None
    except (KeyError, TypeError, ValueError, OverflowError):
        raise BadDataset(
            f"{where} has a segmentation that is neither polygons nor runs of `counts` and `size`. Export it again."
        ) from None


def unpacked(text: str) -> list[int]:
    """The lengths of runs in COCO's packed text.

    Five bits a character from `0` on, the lowest first; the sixth says that more follow, the fifth of the last is the
    sign. From the fourth on, a length is told as its difference to the one before the last.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise BadDataset("packed runs hold a character that is none of theirs")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift > 60:
                raise BadDataset("packed runs hold a number of more than 60 bits")
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise BadDataset("packed runs are cut short")
    return lengths
