"""Reads "CVAT for images 1.1": annotations.xml with polygons, masks and ellipses.

Boxes, lines, points, tags and skeletons are left out. Source: CVAT's XML format, version 1.1.
"""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree as ET

import numpy as np

from app.errors import BadDataset
from app.imaging.annotations.shapes import Drawn, Export, Labelled, Polygons, Runs, Shape, points_of

AREAS = ("polygon", "mask", "ellipse")
CORNERS = 96
"""Corners of the polygon that an ellipse becomes."""


def is_cvat(content: bytes) -> bool:
    """Whether an XML document is CVAT's."""
    return b"<annotations>" in content[:4096] and b"<version>" in content[:4096]


def read(content: bytes) -> Export:
    """The images of a document; BadDataset for one of a video, of another version, or damaged."""
    if b"<!" in content:  # entities may expand to anything; CVAT writes none
        raise BadDataset("annotations.xml has a document type, a comment or an entity. Export it from CVAT again.")
    try:
        root = ET.fromstring(content)
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two for encodings that are none
        raise BadDataset(f"annotations.xml is not valid XML: {error}. Export it from CVAT again.") from None
    if (version := root.findtext("version")) != "1.1":
        raise BadDataset(
            f"annotations.xml is of version {str(version)[:16]!r}; 1.1 is read. Export it from a new CVAT."
        )
    if root.find("track") is not None:
        raise BadDataset('annotations.xml is of a video. Export it as "CVAT for images 1.1".')
    named = [label.findtext("name") or "" for label in root.iterfind("meta//label")]
    export = Export("CVAT", list(dict.fromkeys(filter(None, named))), [])
    for image in root.iterfind("image"):
        path = image.get("name", "")
        size = tuple(int(_number(image, name, path)) for name in ("width", "height"))
        export.images.append(
            Labelled(path, (size[0], size[1]), [_drawn(each, path, export) for each in _areas(image, export)])
        )
    return export


def _areas(image: ET.Element, export: Export) -> list[ET.Element]:
    found = []
    for each in image:
        if each.tag in AREAS:
            found.append(each)
        else:
            export.pass_over({"box": "boxes", "points": "points", "polyline": "lines"}.get(each.tag, "other marks"))
    return found


def _drawn(each: ET.Element, path: str, export: Export) -> Drawn:
    name = each.get("label", "")
    if not name:
        raise BadDataset(f"A {each.tag} of {path} has no label. Export it from CVAT again.")
    if name not in export.classes:
        export.classes.append(name)
    read: Callable[[ET.Element, str], Shape] = {"polygon": _polygon, "mask": _mask, "ellipse": _ellipse}[each.tag]
    try:
        return Drawn(name, read(each, path), int(each.get("z_order", 0)))
    except BadDataset as problem:
        raise BadDataset(
            f"A {each.tag} of {path} cannot be read: {problem.detail}. Export it from CVAT again."
        ) from None
    except ValueError:
        raise BadDataset(f"A {each.tag} of {path} holds a word that is no number. Export it from CVAT again.") from None


def _polygon(each: ET.Element, _path: str) -> Shape:
    return Polygons([points_of([pair.split(",") for pair in each.get("points", "").split(";")])])


def _mask(each: ET.Element, path: str) -> Shape:
    lengths = [int(run) for run in each.get("rle", "").split(",")]
    left, top, width, height = (int(_number(each, name, path)) for name in ("left", "top", "width", "height"))
    return Runs(lengths, (left, top, width, height), by_rows=True)


def _ellipse(each: ET.Element, path: str) -> Shape:
    x, y, across, down = (_number(each, name, path) for name in ("cx", "cy", "rx", "ry"))
    turned = np.deg2rad(_number(each, "rotation", path) if each.get("rotation") else 0.0)
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    along, beside = across * np.cos(angles), down * np.sin(angles)
    turn = np.array([[np.cos(turned), np.sin(turned)], [-np.sin(turned), np.cos(turned)]])
    return Polygons([np.stack([along, beside], 1) @ turn + (x, y)])


def _number(each: ET.Element, name: str, path: str) -> float:
    try:
        value = float(each.get(name, ""))
        if not abs(value) < 1e6:
            raise ValueError
        return value
    except ValueError:
        raise BadDataset(
            f"annotations.xml does not say `{name}` of {each.tag} {path[:64]!r}. Export it from CVAT again."
        ) from None
