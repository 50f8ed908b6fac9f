"""Reads DICOM structure sets (RTSTRUCT): contours of regions, drawn on the grid of an image.

A pixel belongs to a region when its centre lies inside an odd number of the region's contours in its plane, so that a
contour within another one is a hole (and a keyhole contour gives the same). Where regions overlap, the smaller one
wins. Source: PS3.3 C.8.8.5 and C.8.8.6.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import CorruptImage, MaskMismatch
from app.imaging.annotations.shapes import filled
from app.imaging.dicom.files import PREAMBLE, explained, is_dicom, without_pixels
from app.imaging.picture import Header, Picture

HEAD_BYTES = 2048
"""Of a file, which tell what it is."""
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
MOST_BYTES = 64 * 1024 * 1024
OFF_PLANE = 0.3
"""Of the distance of planes: how far from the middle of a plane a contour may lie."""
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Region:
    """A region of interest.

    name      as its maker calls it
    contours  (N, 3) float64 each: corners in mm, right, front, up
    """

    name: str
    contours: list[np.ndarray]


def is_structure_set(content: bytes) -> bool:
    """Whether a file is one; from its first bytes."""
    return is_dicom(content) and STRUCTURE_SET.encode() in content[PREAMBLE : PREAMBLE + 1024]


def regions_of(content: bytes) -> list[Region]:
    """The regions that have closed contours; CorruptImage where the file is too large or contradicts itself."""
    if len(content) > MOST_BYTES:
        raise CorruptImage(
            f"The structure set has {len(content)} bytes; at most {MOST_BYTES} are read. Send fewer ROIs."
        )
    tags = ("SOPClassUID", "StructureSetROISequence", "ROIContourSequence")
    found = without_pixels(io.BytesIO(content), tags=tags)
    with explained():
        names = {
            int(each.ROINumber): str(each.get("ROIName", "")) for each in found.get("StructureSetROISequence") or ()
        }
        regions = []
        for drawn in found.get("ROIContourSequence") or ():
            contours = [_corners(each) for each in drawn.get("ContourSequence") or () if _is_closed(each)]
            name = names.get(int(drawn.ReferencedROINumber))
            if contours and name:
                regions.append(Region(name, contours))
    return regions


def _is_closed(contour: Any) -> bool:
    return str(contour.get("ContourGeometricType", "")).startswith("CLOSED_PLANAR")


def _corners(contour: Any) -> np.ndarray:
    corners = np.array(contour.ContourData, np.float64).reshape(-1, 3)
    if not np.isfinite(corners).all() or np.abs(corners).max(initial=0) > 1e6:
        raise CorruptImage("The structure set has a contour whose coordinates are no millimetres. Export it again.")
    return corners * _LPS_TO_RAS


def labels_of(regions: Sequence[Region], names: Sequence[str], like: Header | Picture) -> np.ndarray:
    """(D, H, W) or (H, W) uint8: 0, and 1 + the position of a region's name.

    names  of the regions that are drawn; others are left out
    like   the image, whose place must be known
    MaskMismatch where the image says no place, or contours lie between its planes or beyond them.
    """
    if like.affine is None:
        raise MaskMismatch(
            "The image does not say where it lies, so contours in mm cannot be drawn on it. Send a mask."
        )
    shape = like.shape if like.is_volume else (1, *like.shape)
    to_voxels = np.linalg.inv(like.affine)
    wanted = [region for region in regions if region.name in names]
    # Drawn twice, plane by plane: all regions of a scan at once may be many times as large as the scan.
    areas = [sum(int(inside.sum()) for _, inside in _planes(region, to_voxels, shape)) for region in wanted]
    labels = np.zeros(shape, np.uint8)
    for at in sorted(range(len(wanted)), key=lambda at: -areas[at]):
        for plane, inside in _planes(wanted[at], to_voxels, shape):
            labels[plane][inside] = names.index(wanted[at].name) + 1
    return labels if like.is_volume else labels[0]


def _planes(region: Region, to_voxels: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """Each plane that a region reaches, and (rows, columns) bool: what is inside there."""
    planes: dict[int, list[np.ndarray]] = defaultdict(list)
    for corners in region.contours:
        places = corners @ to_voxels[:3, :3].T + to_voxels[:3, 3]  # column, row, plane
        plane = round(float(places[:, 2].mean())) if len(places) else 0
        if len(places) and (np.abs(places[:, 2] - plane).max() > OFF_PLANE or not 0 <= plane < shape[0]):
            raise MaskMismatch(
                f"A contour of {region.name[:64]!r} lies at plane {places[:, 2].mean():.2f} of an image of {shape[0]}"
                " planes: it was drawn on another series, or across the planes. Send the series that it belongs to."
            )
        planes[plane].append(places[:, :2] + 0.5)  # corners of pixels are whole numbers there
    for plane, contours in planes.items():
        inside = np.zeros(shape[1:], bool)
        for contour in contours:
            top, left, part = filled([contour], *shape[1:])
            inside[top : top + part.shape[0], left : left + part.shape[1]] ^= part
        yield plane, inside
