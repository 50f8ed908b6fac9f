"""Reads one DICOM file: an image, or a volume of several frames."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from app.errors import ManyFrames
from app.imaging.dicom import segments
from app.imaging.dicom.files import explained, opened
from app.imaging.dicom.pixels import Kind, frames, kind_of
from app.imaging.dicom.places import Grid, arranged, planes_of
from app.imaging.picture import Header

MOST_FRAMES = 65_536
_TIMES = ("FrameTime", "FrameTimeVector", "CineRate")


def read_header(stream: BinaryIO) -> Header:
    """Size, type and place, from the elements before the pixels."""
    found = opened(stream, pixels=False)
    if segments.is_segmentation(found):
        return segments.header_of(found)
    kind, grid = described(found)
    return header_of(kind, grid, kind.frames)


def read_pixels(stream: BinaryIO, _header: Header, *, raw: bool = False) -> np.ndarray:
    """(H, W, C) or (D, H, W, C), rescaled, in the order of the planes; with `raw` the stored numbers."""
    found = opened(stream, pixels=True)
    if segments.is_segmentation(found):
        return segments.labels_of(found)
    kind, grid = described(found)
    slots = np.argsort([plane.frame for plane in grid.planes])
    pixels: np.ndarray | None = None
    for slot, frame in zip(slots, frames(found, kind, raw=raw), strict=True):
        if pixels is None:
            pixels = np.empty((kind.frames, *frame.shape), frame.dtype)
        pixels[slot] = frame
    assert pixels is not None
    return pixels[0] if kind.frames == 1 else pixels


def described(found: Any) -> tuple[Kind, Grid]:
    """What a dataset holds and where its frames lie; ManyFrames for a film."""
    kind = kind_of(found)
    if kind.frames == 0:
        return kind, Grid([], [], None, None)  # refused with its header, as every image without pixels
    if kind.frames > MOST_FRAMES:
        raise ManyFrames(f"The DICOM file declares {kind.frames} frames; at most {MOST_FRAMES} are read. Send a part.")
    with explained():
        grid = arranged(planes_of(found, 0, kind.frames))
    if kind.frames > 1 and grid.affine is None and any(name in found for name in _TIMES):
        raise ManyFrames(
            f"The DICOM file is a film of {kind.frames} frames in time, not a volume. Send single frames, each as an"
            " image."
        )
    return kind, grid


def header_of(kind: Kind, grid: Grid, planes: int) -> Header:
    """The header of so many planes; one plane is an image."""
    shape = kind.shape if planes == 1 else (planes, *kind.shape)
    return Header(shape, kind.channels, kind.dtype, grid.spacing_mm, grid.affine)
