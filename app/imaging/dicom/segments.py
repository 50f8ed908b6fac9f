"""Reads a DICOM segmentation as a mask whose values are segment numbers.

Binary, fractional (a voxel belongs to a segment from half of the largest fraction on) and label maps. Planes without a
frame hold 0; planes that are left out at both ends are unknown here, so such a mask is `sparse` and is filled up to the
grid of its image (`app.imaging.grids.onto`). Source: PS3.3 A.51, C.8.20.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from app.errors import BadSeries, CorruptImage, MaskMismatch
from app.imaging.dicom.files import explained, number
from app.imaging.dicom.pixels import Kind, frames, groups, kind_of
from app.imaging.dicom.places import Grid, Plane, arranged, planes_of
from app.imaging.picture import Header

BINARY_OR_FRACTIONAL, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"


def is_segmentation(found: Any) -> bool:
    """Whether a dataset is a segmentation."""
    return found.get("SOPClassUID") in (BINARY_OR_FRACTIONAL, LABEL_MAP)


def header_of(found: Any) -> Header:
    """Size, type and place of the mask."""
    with explained():
        kind, grid, _ = _arranged(found)
        shape = _shape(kind, grid)
        return Header(shape, 1, _dtype(found, kind), grid.spacing_mm, grid.affine, sparse=grid.affine is not None)


def labels_of(found: Any) -> np.ndarray:
    """(H, W, 1) or (D, H, W, 1) uint8 or uint16: segment numbers, and 0; MaskMismatch where segments overlap."""
    with explained():
        kind, grid, slot_of = _arranged(found)
        labels = np.zeros((max(grid.slots, default=0) + 1, *kind.shape, 1), _dtype(found, kind))
        numbered = found.SOPClassUID == LABEL_MAP
        half = number(found, "MaximumFractionalValue", 1) / 2 if found.get("SegmentationType") == "FRACTIONAL" else 0.5
        for frame, pixels in enumerate(frames(found, kind, raw=True)):
            plane = labels[slot_of[frame]]
            if numbered:
                plane[...] = pixels
                continue
            inside = pixels >= half
            if plane[inside].any():
                raise MaskMismatch(
                    "Segments of the DICOM segmentation overlap; a mask gives each voxel one number. Send them as"
                    " several files."
                )
            plane[inside] = _segment(found, frame)
        return labels[0] if len(_shape(kind, grid)) == 2 else labels


def _shape(kind: Kind, grid: Grid) -> tuple[int, ...]:
    planes = max(grid.slots, default=0) + 1
    return kind.shape if planes == 1 else (planes, *kind.shape)


def _dtype(found: Any, kind: Kind) -> str:
    if found.SOPClassUID == LABEL_MAP:
        return kind.stored
    return "uint16" if len(found.get("SegmentSequence") or ()) > 255 else "uint8"


def _segment(found: Any, frame: int) -> int:
    for group in groups(found, frame):
        if items := group.get("SegmentIdentificationSequence"):
            return number(items[0], "ReferencedSegmentNumber")
    raise CorruptImage(f"Frame {frame} of the DICOM segmentation does not say of which segment it is. Export it again.")


def _arranged(found: Any) -> tuple[Kind, Grid, list[int]]:
    """What the frames hold, the grid of their planes, and the slot of each frame in it."""
    kind = kind_of(found)
    every = planes_of(found, 0, kind.frames)
    if all(plane.position is None for plane in every):
        if len(every) > max(1, len(found.get("SegmentSequence") or ())):
            raise BadSeries(
                "The frames of the DICOM segmentation do not say where they lie. Send one of a single image, or with"
                " plane positions."
            )
        return kind, Grid(every[:1], [0], every[0].spacing if every else None, None), [0] * len(every)
    distinct: dict[tuple[float, ...], Plane] = {}
    for plane in every:
        distinct.setdefault(_key(plane), plane)
    grid = arranged(list(distinct.values()), sparse=True)
    slots = {_key(plane): slot for plane, slot in zip(grid.planes, grid.slots, strict=True)}
    return kind, grid, [slots[_key(plane)] for plane in every]


def _key(plane: Plane) -> tuple[float, ...]:
    return () if plane.position is None else tuple(np.round(plane.position, 2).tolist())
