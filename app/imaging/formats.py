"""The table of image formats: how each is recognised, read, written, and what it holds.

A new format is a module with `read_header` and `read_pixels`, a row here, files made by another program in
`tests/imaging/samples.py`, and its library in pyproject.toml. What uploads are recognised as, the OpenAPI document, the
sentences of errors, forms on pages, names of files and docs/reference/formats.md follow from the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np

from app.errors import UnsupportedImage
from app.imaging import encode, jpeg, metaimage, nifti, nrrd, png, simple_raster, tiff
from app.imaging.dicom import files as dicom_files, series as dicom_series, single as dicom_single
from app.imaging.picture import Header

HEAD_BYTES = 65536
"""How much of a file `sniff` wants to see: a gzip header may carry a long name before the NIfTI header inside."""


class Reader(Protocol):
    """A module that reads one format."""

    def read_header(self, stream: BinaryIO) -> Header:
        """What the file says of itself, without decoding a pixel; the format is filled in by `header_of`."""

    def read_pixels(self, stream: BinaryIO, header: Header, *, raw: bool = False) -> np.ndarray:
        """(H, W, samples) or (D, H, W, samples) as stored: alpha included, not turned.

        raw  a mask is read: numbers of a palette and of a few bits come as they are
        """


@dataclass(frozen=True)
class Format:
    """One image format.

    name         the word used in the API
    title        what people call it
    media_types  the Content-Type under which such bytes are served, and other names under which they are sent
    suffixes     ends of file names, the usual one first
    recognises   whether a file that begins with some bytes is one
    reader       the module that reads it
    writer       the function that makes answers of it, or None
    dimensions   2 for images, 3 for volumes
    channels     what it can hold beside one channel, in words
    depths       types of its samples, as `decode` meets them
    masks        what is read as the labels of a mask, in words
    light        its header is read by our own code, so that a small file needs no process of its own
    names_people its files may say who was imaged, which is taken out before anything else is done (`app.imaging.door`)
    """

    name: str
    title: str
    media_types: tuple[str, ...]
    suffixes: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    reader: Reader
    writer: Callable[..., bytes] | None
    dimensions: tuple[int, ...]
    channels: str
    depths: tuple[str, ...]
    masks: str
    light: bool = False
    names_people: bool = False

    @property
    def media_type(self) -> str:
        """The Content-Type under which such bytes are served."""
        return self.media_types[0]


_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
_NUMBERS = (*_INTEGERS, "float32", "float64")
_SIMPLE: dict[str, Any] = {"reader": simple_raster, "writer": None, "dimensions": (2,), "channels": "RGB"}
_NIFTI: dict[str, Any] = {
    "reader": nifti,
    "dimensions": (2, 3),
    "channels": "any number, on the fifth axis",
    "depths": _NUMBERS,
    "masks": "whole numbers, also 64 bits and float",
}
_DICOM: dict[str, Any] = {
    "channels": "RGB; palettes and YCbCr become RGB",
    "depths": (*_INTEGERS, "float32", "float64"),
    "masks": "stored numbers, indexes of a palette; of a segmentation the segment numbers",
    "names_people": True,
}

FORMATS = {
    format.name: format
    for format in (
        Format(
            "png",
            "PNG",
            media_types=("image/png",),
            suffixes=(".png",),
            recognises=lambda head: head.startswith(png.SIGNATURE),
            reader=png,
            writer=encode.encode_png,
            dimensions=(2,),
            channels="RGB; palettes become RGB, constant alpha is dropped",
            depths=("uint8", "uint16"),
            masks="grey, RGB of equal channels, indexes of a palette; 1 bit as 0 and 255",
            light=True,
        ),
        Format(
            "jpeg",
            "JPEG",
            media_types=("image/jpeg", "image/jpg", "image/pjpeg"),
            suffixes=(".jpg", ".jpeg"),
            recognises=lambda head: head.startswith(jpeg.SIGNATURE),
            reader=jpeg,
            writer=None,
            dimensions=(2,),
            channels="RGB",
            depths=("uint8",),
            masks="grey values, which its compression changes",
            light=True,
        ),
        Format(
            "tiff",
            "TIFF",
            media_types=("image/tiff",),
            suffixes=(".tiff", ".tif"),
            # A preamble may be a TIFF header, so that one file is both; what makes it DICOM would stay in it.
            recognises=lambda head: head.startswith(tiff.SIGNATURES) and not dicom_files.is_dicom(head),
            reader=tiff,
            writer=encode.encode_tiff,
            dimensions=(2, 3),
            channels="any number, also as pages of ImageJ and OME; palettes become RGB, constant alpha is dropped",
            depths=(*_INTEGERS, "float16", "float32", "float64"),
            masks="whole numbers, indexes of a palette; 1 bit as 0 and 255",
        ),
        Format(
            "gif",
            "GIF",
            media_types=("image/gif",),
            suffixes=(".gif",),
            recognises=simple_raster.is_gif,
            depths=("uint8",),
            masks="grey values, indexes of a palette of colours",
            **_SIMPLE,
        ),
        Format(
            "bmp",
            "BMP",
            media_types=("image/bmp", "image/ms-bmp"),
            suffixes=(".bmp",),
            recognises=simple_raster.is_bmp,
            depths=("uint8",),
            masks="grey values, indexes of a palette of colours; 1 bit as 0 and 255",
            **_SIMPLE,
        ),
        Format(
            "pnm",
            "PGM, PPM and PBM",
            media_types=("image/x-portable-anymap", "image/x-portable-graymap", "image/x-portable-pixmap"),
            suffixes=(".pgm", ".ppm", ".pbm", ".pnm"),
            recognises=simple_raster.is_pnm,
            depths=("uint8", "uint16"),
            masks="grey values; 1 bit as 0 and 255",
            **_SIMPLE,
        ),
        Format(
            "nifti",
            "NIfTI",
            media_types=("application/octet-stream", "application/nifti", "image/nii"),
            suffixes=(".nii",),
            recognises=nifti.is_plain,
            writer=None,
            **_NIFTI,
        ),
        Format(
            "nifti_gz",
            "NIfTI, gzipped",
            media_types=("application/gzip",),
            suffixes=(".nii.gz",),
            recognises=nifti.is_gzipped,
            writer=encode.encode_nifti_gz,
            **_NIFTI,
        ),
        Format(
            "nrrd",
            "NRRD",
            media_types=("application/x-nrrd",),
            suffixes=(".nrrd", ".seg.nrrd"),
            recognises=lambda head: head.startswith(nrrd.MAGIC),
            reader=nrrd,
            writer=encode.encode_nrrd,
            dimensions=(2, 3),
            channels="any number, on an axis that is not of space",
            depths=_NUMBERS,
            masks="whole numbers, also 64 bits and float; segmentations of one layer",
        ),
        Format(
            "metaimage",
            "MetaImage",
            media_types=("application/x-metaimage",),
            suffixes=(".mha",),
            recognises=metaimage.is_metaimage,
            reader=metaimage,
            writer=None,
            dimensions=(2, 3),
            channels="any number",
            depths=_NUMBERS,
            masks="whole numbers, also 64 bits and float",
        ),
        Format(
            "dicom",
            "DICOM",
            media_types=("application/dicom",),
            suffixes=(".dcm",),
            recognises=dicom_files.is_dicom,
            reader=dicom_single,
            writer=None,
            dimensions=(2, 3),
            **_DICOM,
        ),
        Format(
            "dicom_series",
            "DICOM, a series as zip",
            media_types=("application/zip",),
            suffixes=(".zip",),
            recognises=dicom_series.is_zip,
            reader=dicom_series,
            writer=None,
            dimensions=(3,),
            **_DICOM,
        ),
    )
}
"""By name, in the order in which they are told."""

SUFFIXES = tuple(sorted({suffix for each in FORMATS.values() for suffix in each.suffixes}, key=len, reverse=True))
"""Every end of a file name, longest first."""
MEDIA_TYPES = tuple(dict.fromkeys(("application/octet-stream", *(each.media_type for each in FORMATS.values()))))
"""What an upload may be declared as; its bytes decide."""
_TITLES = tuple(dict.fromkeys(each.title.partition(",")[0] for each in FORMATS.values()))
NAMES = f"{', '.join(_TITLES[:-1])} or {_TITLES[-1]}"
"""The formats in words."""


def sniff(head: bytes) -> Format:
    """The format of a file that begins with `head` (`HEAD_BYTES` of it, or all if shorter).

    Refuses everything else with UnsupportedImage, also what other libraries would open.
    """
    for format in FORMATS.values():
        if format.recognises(head):
            return format
    what = "The body is empty" if not head else f"The bytes are none of {NAMES}"
    raise UnsupportedImage(f"{what}. Send an image in one of these formats.")
