"""A decoded image: its header, and its pixels with their geometry.

Axes.      2D is (C, H, W), a volume is (C, D, H, W): channels, planes, rows, columns. NIfTI stores (i, j, k), fastest
           first, so a
           volume is its transpose: plane k, row j, column i. No flip is made; the affine tells which way each index
           runs.
Spacing.   `spacing_mm` has the order of the spatial axes, (row, column) or (plane, row, column). NIfTI
           and DICOM state it, and TIFF in the metadata of OME and ImageJ; resolution tags describe paper and screens
           unless they are finer than any (`app.imaging.tiff_layout`).
Dtype.     uint8, uint16, int16 or float32, as stored. Wider types come as the first of these that holds every value
           exactly;
           float64 is rounded to float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

Source = bytes | Path | BinaryIO
"""An encoded image: its bytes, a file, or an open seekable stream."""


class Limits(Protocol):
    """How large an image may be; `app.settings.Settings` is one."""

    @property
    def max_pixels(self) -> int: ...

    @property
    def max_voxels(self) -> int: ...

    @property
    def max_decoded_bytes(self) -> int: ...


@dataclass(frozen=True)
class Forms:
    """Both places that a NIfTI header states, with the codes that say what each means; 0: nothing."""

    sform: tuple[tuple[float, ...], ...]
    sform_code: int
    qform: tuple[tuple[float, ...], ...]
    qform_code: int


NOWHERE = Forms(*(tuple(map(tuple, np.eye(4).tolist())), 0) * 2)
"""Pixel sizes without a place in the world."""


class _Placed:
    """What `Header` and `Picture` both know of their place."""

    affine: np.ndarray | None
    forms: Forms | None

    @property
    def place(self) -> np.ndarray | None:
        """The affine where it is a place in the world, and not just made of pixel sizes."""
        codes = (1,) if self.forms is None else (self.forms.sform_code, self.forms.qform_code)
        return self.affine if any(codes) else None


@dataclass(frozen=True)
class Header(_Placed):
    """What an image says about itself before any pixel is decoded.

    format       name of its row in `app.imaging.formats`; a reader leaves it to `header_of`
    shape        (H, W) or (D, H, W), after its EXIF orientation is applied
    channels     1 for grey, 3 for RGB (palettes included); an alpha channel is not counted
    dtype        of the stored samples ("uint8", "float64", ...), before `decode` narrows it
    spacing_mm   size of a pixel along each axis of shape, or None when the file does not say
    orientation  EXIF orientation that the pixels are turned by, 1 to 8
    forms        both places of a NIfTI file
    is_bilevel   its samples are single bits, read as 0 and 255
    sparse       a mask whose planes at either end are left out where they hold nothing
    """

    shape: tuple[int, ...]
    channels: int
    dtype: str
    spacing_mm: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    orientation: int = 1
    format: str = ""
    forms: Forms | None = None
    is_bilevel: bool = False
    sparse: bool = False

    @property
    def planes(self) -> int:
        """Planes of a volume; 1 for a 2D image."""
        return self.shape[0] if self.is_volume else 1

    @property
    def is_dicom(self) -> bool:
        """Whether a DICOM segmentation can refer to it: it is a DICOM image and no segmentation itself."""
        return self.format in ("dicom", "dicom_series") and not self.sparse

    @property
    def is_volume(self) -> bool:
        return len(self.shape) == 3

    @property
    def pixels(self) -> int:
        """Pixels or voxels of one channel."""
        return math.prod(self.shape)

    @property
    def decoded_bytes(self) -> int:
        """Memory that the pixels take once decoded."""
        return self.pixels * self.channels * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Picture(_Placed):
    """A decoded image.

    pixels       (C, H, W) or (C, D, H, W), uint8, uint16, int16 or float32, finite, C-contiguous
    spacing_mm   as in `Header`
    affine       (4, 4) float64 from (column, row, plane) to millimetres (right, front, up), else None
    orientation, forms, is_bilevel, sparse   as in `Header`
    """

    pixels: np.ndarray
    format: str
    spacing_mm: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    orientation: int = 1
    forms: Forms | None = None
    is_bilevel: bool = False
    sparse: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (D, H, W)."""
        return self.pixels.shape[1:]

    @property
    def channels(self) -> int:
        return self.pixels.shape[0]

    @property
    def is_volume(self) -> bool:
        return self.pixels.ndim == 4

    @property
    def planes(self) -> int:
        """Planes of a volume; 1 for a 2D image."""
        return self.pixels.shape[1] if self.is_volume else 1

    def plane(self, number: int) -> Picture:
        """One plane of a volume as an image, which states no place."""
        spacing = self.spacing_mm and self.spacing_mm[1:]
        return replace(self, pixels=self.pixels[:, number], spacing_mm=spacing, affine=None, forms=None)

    def without_pixels(self) -> Picture:
        """The same facts over pixels that are all zero and take no memory."""
        return replace(self, pixels=np.broadcast_to(np.zeros((), self.pixels.dtype), self.pixels.shape))
