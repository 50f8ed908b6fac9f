"""Where the frames of DICOM files lie, and the grid that they make.

DICOM's axes run left, back, up (LPS); an affine here runs right, front, up (RAS), as for NIfTI, so the first two rows
change sign. Planes ascend along the cross product of row and column direction. Source: PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import BadAffine, BadSeries
from app.imaging.dicom.files import numbers
from app.imaging.dicom.pixels import groups

SAME_MM = 0.01
"""Positions nearer than this are one position."""
SAME_DIRECTION = 1e-3
"""Parts of direction vectors that differ by less are the same: files round them."""
UNEVEN = 0.1
"""Part of the distance of planes by which one may lie elsewhere."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """Where one frame lies: position of its first pixel and directions of row and column (LPS, mm), or None.

    file, frame   index of its file, and in that
    spacing       between rows and between columns, in mm, or None
    thickness     what its file says of the distance of planes, or None
    """

    file: int
    frame: int
    position: np.ndarray | None
    directions: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float | None


@dataclass(frozen=True)
class Grid:
    """Frames in the order of their planes, and the grid that they make.

    slots   index of each plane in the grid; without gaps 0, 1, 2 ...
    """

    planes: list[Plane]
    slots: list[int]
    spacing_mm: tuple[float, ...] | None
    affine: np.ndarray | None


def planes_of(found: Any, file: int, frames: int) -> list[Plane]:
    """Where each frame of a dataset says that it lies."""
    return [_plane(found, file, frame, frames) for frame in range(frames)]


def _plane(found: Any, file: int, frame: int, frames: int) -> Plane:
    measures, position, orientation = found, found, found
    for group in groups(found, frame):
        measures = _first(group, "PixelMeasuresSequence") or measures
        position = _first(group, "PlanePositionSequence") or position
        orientation = _first(group, "PlaneOrientationSequence") or orientation
    place = numbers(position, "ImagePositionPatient", 3)
    if position is found and frames > 1:
        place = None  # one position for all frames says where the first one lies
    directions = numbers(orientation, "ImageOrientationPatient", 6)
    spacing = numbers(measures, "PixelSpacing", 2)
    if spacing is not None and min(spacing) < 0:
        raise BadAffine(f"The DICOM element PixelSpacing is {spacing}; both must be above 0. Export it again.")
    if spacing is not None and min(spacing) == 0:
        spacing = None  # as scanners write it that do not know
    apart = numbers(measures, "SpacingBetweenSlices", 1) or numbers(measures, "SliceThickness", 1)
    return Plane(
        file,
        frame,
        None if place is None or directions is None else np.array(place),
        None if place is None or directions is None else _unit(np.array(directions).reshape(2, 3)),
        None if spacing is None else (spacing[0], spacing[1]),
        abs(apart[0]) if apart and apart[0] else None,
    )


def _first(group: Any, name: str) -> Any:
    items = group.get(name)
    return items[0] if items else None


def _unit(directions: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(directions[0] @ directions[1]) > 0.01:
        raise BadAffine(
            "The DICOM element ImageOrientationPatient holds no two unit vectors at a right angle. Export it again."
        )
    return directions / lengths[:, None]


def arranged(planes: Sequence[Plane], *, sparse: bool = False) -> Grid:
    """The planes in order, and their grid; BadSeries, with the reason, when they make none.

    sparse  planes may be missing, as in a segmentation that leaves out empty ones
    """
    first = planes[0]
    if any(plane.position is None for plane in planes):
        if len(planes) > 1 and len({plane.file for plane in planes}) > 1:
            raise BadSeries(
                f"{len(planes)} DICOM images do not say where they lie, so they are no volume. Send them one by one."
            )
        spacing = first.spacing if len(planes) == 1 else None
        return Grid(list(planes), list(range(len(planes))), spacing, None)
    assert first.directions is not None
    _refuse_directions(planes)
    normal = np.cross(*first.directions)
    ordered = sorted(planes, key=lambda plane: float(plane.position @ normal))
    heights = np.array([float(plane.position @ normal) for plane in ordered])
    step, slots = _steps(heights, first.thickness, sparse=sparse)
    _refuse_tilt(ordered, normal, step)
    rows, columns = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.directions[0] * columns, first.directions[1] * rows
    affine[:3, 2], affine[:3, 3] = normal * step, ordered[0].position
    spacing_mm = (rows, columns) if len(ordered) == 1 else (step, rows, columns)
    return Grid(ordered, slots, spacing_mm, _LPS_TO_RAS @ affine)


def _refuse_directions(planes: Sequence[Plane]) -> None:
    stacked = np.array([plane.directions for plane in planes])
    turned = int((np.abs(stacked - stacked[0]).max(axis=(1, 2)) > SAME_DIRECTION).sum())
    if turned:
        raise BadSeries(
            f"The DICOM images lie in more than one orientation: {turned} of {len(planes)} are turned against the first"
            " (a scout, or several stacks). Send one orientation."
        )
    spacings = {plane.spacing for plane in planes}
    if len(spacings) > 1:
        raise BadSeries(f"The DICOM images have {len(spacings)} different pixel spacings. Send one series.")


def _steps(heights: np.ndarray, thickness: float | None, *, sparse: bool) -> tuple[float, list[int]]:
    """The distance of planes, and the place of each in the stack."""
    if len(heights) == 1:
        return thickness or 1.0, [0]
    apart = np.diff(heights)
    if apart.min() < SAME_MM:
        _refuse_times(heights)
    if sparse:
        step = float(thickness or apart.min())
        slots = np.rint((heights - heights[0]) / step)
        if np.abs(heights - heights[0] - slots * step).max() > UNEVEN * step or len(set(slots)) < len(slots):
            step = float(apart.min())
            slots = np.rint((heights - heights[0]) / step)
        return step, [int(slot) for slot in slots]
    usual = float(np.median(apart))
    gaps = np.flatnonzero(apart > 1.5 * usual)
    if len(gaps):
        missing = sum(round(float(apart[gap]) / usual) - 1 for gap in gaps)
        places = ", ".join(f"{heights[gap]:.2f} and {heights[gap + 1]:.2f} mm" for gap in gaps[:3])
        raise BadSeries(
            f"{missing} slices are missing: the {len(heights)} planes are {usual:.4g} mm apart, but not between"
            f" {places}. Send the whole series."
        )
    step = float(heights[-1] - heights[0]) / (len(heights) - 1)
    if np.abs(heights - heights[0] - step * np.arange(len(heights))).max() > UNEVEN * step:
        raise BadSeries(
            f"The planes are unevenly apart, from {apart.min():.4g} to {apart.max():.4g} mm. Resample the series to"
            " even distances and send it as NIfTI."
        )
    return step, list(range(len(heights)))


def _refuse_times(heights: np.ndarray) -> None:
    count = Counter(np.rint((heights - heights[0]) / SAME_MM).astype(int).tolist())
    most = max(count.values())
    if len(set(count.values())) == 1:
        raise BadSeries(
            f"There are {most} images at each of {len(count)} positions: several points in time, echoes or phases. Send"
            " one of them (of one TriggerTime, TemporalPositionIdentifier or EchoTime)."
        )
    raise BadSeries(
        f"Up to {most} images lie at the same position: duplicates, or several series in one. Send each slice once."
    )


def _refuse_tilt(ordered: Sequence[Plane], normal: np.ndarray, step: float) -> None:
    first = ordered[0].position
    assert first is not None
    for plane in ordered[1:]:
        assert plane.position is not None
        away = plane.position - first
        aside = float(np.linalg.norm(away - (away @ normal) * normal))
        if aside > max(UNEVEN * min((step, *(plane.spacing or ()))), SAME_MM):
            raise BadSeries(
                f"The planes are shifted sideways by up to {aside:.3g} mm (a tilted gantry, or several stacks), so they"
                " make no rectangular grid. Resample the series and send it as NIfTI."
            )
