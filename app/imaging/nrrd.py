"""NRRD (.nrrd, .seg.nrrd): volumes and segmentations as 3D Slicer writes them.

The header is read by pynrrd; the voxels are read here, bounded by what the header declares, which pynrrd does not.
Source: "Definition of NRRD File Format", teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from app.errors import CorruptImage, ManyFrames, UnsupportedDtype, UnsupportedImage
from app.imaging import voxels
from app.imaging.picture import Header

MAGIC = b"NRRD000"
MOST_HEADER = 1024 * 1024
"""Bytes: 3D Slicer writes a dozen fields for each of hundreds of segments."""
_CHANNELS = {"list", "vector", "2-vector", "3-vector", "4-vector", "rgb-color", "rgba-color", "point", "none"}
_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_TO_RAS = {
    "right-anterior-superior": (1.0, 1.0),
    "ras": (1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0),
    "las": (-1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0),
    "lps": (-1.0, -1.0),
}
"""Signs of the first two axes of a space that bring it to right, front, up."""


def read_header(stream: BinaryIO) -> Header:
    """Sides, channels, type, spacing and affine; refuses a header whose voxels are in another file."""
    fields, _ = _fields(stream)
    return _described(fields)[0]


def read_pixels(stream: BinaryIO, header: Header, *, raw: bool = False) -> np.ndarray:
    """(H, W, C) or (D, H, W, C) in the stored dtype.

    raw  a mask is read: a segmentation of several layers, whose segments overlap, is refused
    """
    fields, start = _fields(stream)
    _, axis = _described(fields)
    if raw and header.channels > 1 and _is_segmentation(fields):
        raise UnsupportedImage(
            f"The segmentation has {header.channels} layers, because its segments overlap. Export it as one labelmap,"
            " or each segment as a mask of its own."
        )
    encoding = str(fields.get("encoding", "raw")).lower()
    if encoding not in _ENCODINGS:
        raise UnsupportedImage(
            f"The voxels of the NRRD are encoded as {encoding[:20]!r}; raw, gzip and bzip2 are read."
        )
    sizes = [int(side) for side in fields["sizes"]]
    count = header.pixels * header.channels
    stored = voxels.read(stream, start, _ENCODINGS[encoding], count, _dtype(fields)).reshape(sizes[::-1])
    if axis is not None:
        stored = np.moveaxis(stored, len(sizes) - 1 - axis, -1)
    return stored.reshape(*header.shape, header.channels)


def _fields(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The fields of the header as pynrrd reads them, and where the voxels begin."""
    import nrrd

    stream.seek(0)
    head = stream.read(MOST_HEADER)
    ends = [(at, at + len(mark)) for mark in (b"\n\n", b"\n\r\n") if (at := head.find(mark)) >= 0]
    if not ends:
        raise CorruptImage("The NRRD header has no empty line at its end. Send the whole file.")
    end, start = min(ends)
    try:
        fields = dict(nrrd.read_header(head[:end].decode("latin-1").splitlines()))
    except Exception as error:  # pynrrd raises NRRDError, ValueError, KeyError and others
        raise CorruptImage(f"The NRRD header cannot be read ({error!r:.80}). Save the image again.") from error
    if "data file" in fields or "datafile" in fields:
        raise UnsupportedImage("This is an NRRD header whose voxels are in another file. Save it as one file, .nrrd.")
    if fields.get("byte skip") or fields.get("line skip"):
        raise UnsupportedImage("The NRRD skips bytes before its voxels. Save it again without `byte skip`.")
    if not {"type", "sizes"} <= set(fields):
        raise CorruptImage("The NRRD header has no type or no sizes. Save the image again.")
    if len(fields["sizes"]) != fields.get("dimension"):
        raise CorruptImage(
            f"The NRRD has {fields.get('dimension')} dimensions and {len(fields['sizes'])} sizes. Save the image again."
        )
    return fields, start


def _described(fields: dict[str, Any]) -> tuple[Header, int | None]:
    """The header, and which axis, fastest first, holds the channels."""
    sizes = [int(side) for side in fields["sizes"]]
    axis = _channel_axis(fields, len(sizes))
    spatial = [number for number in range(len(sizes)) if number != axis]
    sides = tuple(sizes[number] for number in spatial)
    while len(sides) > 3 and sides[-1] == 1:
        sides, spatial = sides[:-1], spatial[:-1]
    if len(sides) > 3:
        raise ManyFrames(f"The NRRD has sides of {sizes}: a series of volumes. Send one volume per file.")
    affine, spacing = _place(fields, spatial)
    channels = 1 if axis is None else sizes[axis]
    header = voxels.header_of(sides, channels, _dtype(fields), spacing, affine)
    return replace(header, sparse=_is_segmentation(fields) and header.place is not None), axis


def _is_segmentation(fields: dict[str, Any]) -> bool:
    """Whether 3D Slicer wrote it as segments, which it crops to what they cover."""
    return any(name.startswith("Segment0_") for name in fields)


def _channel_axis(fields: dict[str, Any], axes: int) -> int | None:
    kinds = [str(kind).lower() for kind in fields.get("kinds", [])]
    named = [number for number, kind in enumerate(kinds[:axes]) if kind in _CHANNELS]
    directions = fields.get("space directions")
    if not named and directions is not None:
        named = [number for number, row in enumerate(directions[:axes]) if row is None or not np.isfinite(row).any()]
    if len(named) > 1:
        raise ManyFrames(f"The NRRD has {len(named)} axes that are not of space. Save one volume with its channels.")
    return named[0] if named else None


def _place(fields: dict[str, Any], spatial: list[int]) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Affine (zero: no place) and spacing of the spatial axes, fastest first."""
    directions, space = fields.get("space directions"), str(fields.get("space", "")).lower()
    affine = np.zeros((4, 4))
    if directions is None:
        sizes = fields.get("spacings")
        known = None if sizes is None else tuple(float(sizes[number]) for number in spatial)
        return affine, known if known and np.isfinite(known).all() else None
    rows = np.array([np.asarray(directions[number], np.float64) for number in spatial])
    spacing = tuple(float(size) for size in np.linalg.norm(rows, axis=1))
    if rows.shape == (3, 3) and space in _TO_RAS:
        affine[:3, :3], affine[3, 3] = rows.T, 1
        affine[:3, 3] = np.asarray(fields.get("space origin", np.zeros(3)), np.float64)
        affine[:2] *= np.array(_TO_RAS[space])[:, None]
    return affine, spacing


def _dtype(fields: dict[str, Any]) -> np.dtype[Any]:
    kind = str(fields["type"]).lower()
    if kind not in _TYPES:
        raise UnsupportedDtype(
            f"The NRRD field type is {kind[:40]!r}; integers of 8 to 64 bits, float and double can be read."
        )
    order = {"big": ">", "little": "<"}.get(str(fields.get("endian", "little")).lower(), "<")
    return np.dtype(order + _TYPES[kind])
