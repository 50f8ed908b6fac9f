"""Arrays as files and back: PNG for planes, NIfTI for volumes and floats."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Image = Array | bytes | str | os.PathLike[str]
"""An image: an array, the bytes of a file, or the path of one.

Arrays are (rows, columns), (rows, columns, 3) for RGB, or (planes, rows, columns).
"""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2
NIFTI = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "int8": 256, "uint16": 512, "uint32": 768}
"""Codes of NIfTI-1 by dtype (nifti1.h, DT_*)."""
NIFTI_TYPES = {code: name for name, code in NIFTI.items()}
HEADER = 352
"""Bytes before the first voxel that `to_nifti` writes."""


def labels_of(mask: Image) -> bytes | Path:
    """What is sent of a mask, whose whole numbers are names: an array of any integer type goes as the smallest one."""
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "iu" and mask.size:
        mask = mask.astype(np.min_scalar_type(mask.max()) if mask.min() >= 0 else np.int32, copy=False)
    return content_of(mask)


def content_of(image: Image, spacing_mm: Sequence[float] | None = None) -> bytes | Path:
    """What is sent of an image: a path as it is, an array as a file.

    spacing_mm  of an array: millimetres from pixel to pixel, (row, column) or (plane, row, column)
    Raises TypeError and ValueError for what is no image, FileNotFoundError for a path without a file.
    """
    if isinstance(image, np.ndarray):
        return encoded(image, spacing_mm)
    if spacing_mm is not None:
        raise ValueError("spacing_mm is of arrays; a file says its own. Leave it out, or send an array.")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str | os.PathLike):
        raise TypeError(f"An image is an array, a path or bytes; this is {type(image).__name__}.")
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return path


def name_of(image: Image) -> str | None:
    """The file name of an image that has one."""
    return None if isinstance(image, np.ndarray | bytes) else Path(image).name


def encoded(array: Array, spacing_mm: Sequence[float] | None = None) -> bytes:
    """An array as a PNG where that keeps every number, else as .nii.gz.

    array  (rows, columns) or (planes, rows, columns) of bool, whole numbers or floats, or (rows, columns, 3) of uint8
           or uint16; bool becomes 0 and 255
    """
    array = array.astype(np.uint8) * np.uint8(255) if array.dtype == bool else array
    color = array.ndim == 3 and array.shape[-1] == 3 and array.dtype in (np.uint8, np.uint16)
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"The array has shape {array.shape}; (rows, columns), (rows, columns, 3) or (planes, rows, columns) can be"
            " sent, with no side of 0."
        )
    if spacing_mm is None and (array.ndim == 2 or color) and array.dtype in (np.uint8, np.uint16):
        return to_png(array)
    if color:
        raise ValueError("An RGB array has no spacing in PNG. Leave spacing_mm out, or send a file that says it.")
    return to_nifti(array, spacing_mm)


def decoded(content: bytes) -> Array:
    """The array of a PNG or NIfTI file that the service sent."""
    return from_png(content) if content.startswith(SIGNATURE) else from_nifti(content)


def to_png(pixels: Array) -> bytes:
    """(H, W) or (H, W, 3) uint8 or uint16 as a PNG, every row with the filter Up."""
    height, width = pixels.shape[:2]
    lines = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"))).reshape(height, -1).view(np.uint8)
    up = np.diff(lines, axis=0, prepend=np.zeros((1, lines.shape[1]), np.uint8))
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), up], axis=1)
    ihdr = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, RGB if pixels.ndim == 3 else GREY, 0, 0, 0)
    chunks = ((b"IHDR", ihdr), (b"IDAT", zlib.compress(filtered.tobytes(), 1)), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def from_png(content: bytes) -> Array:
    """(H, W) or (H, W, 3) uint8 or uint16 of a PNG of 8 or 16 bits, grey or RGB, not interlaced."""
    chunks: dict[bytes, bytes] = {}
    position = len(SIGNATURE)
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        chunks[kind] = chunks.get(kind, b"") + content[position + 8 : position + 8 + length]
        position += 12 + length
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if depth not in (8, 16) or color not in (GREY, RGB) or interlaced:
        raise ValueError(f"A PNG of {depth} bits and colour type {color} cannot be read here. Read it with Pillow.")
    step = depth // 8 * (3 if color == RGB else 1)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * step)
    raw = np.zeros((height + 1, width * step), np.uint8)  # a row of 0 before the first
    for row, line in enumerate(lines):
        raw[row + 1] = _unfiltered(int(line[0]), line[1:], raw[row], step)
    pixels = raw[1:].reshape(-1).view(f">u{depth // 8}").astype(f"u{depth // 8}")
    return pixels.reshape((height, width, 3) if color == RGB else (height, width))


def _unfiltered(kind: int, line: Array, above: Array, step: int) -> Array:
    """One row of bytes before its filter (PNG specification, 9.2)."""
    if kind == 0:
        return line
    if kind == 1:  # Sub
        return np.cumsum(line.reshape(-1, step), axis=0, dtype=np.uint8).reshape(-1)
    if kind == 2:  # Up
        return line + above
    row, before = bytearray(line.tobytes()), above.tobytes()
    for i in range(len(row)):
        left, up, corner = (row[i - step], before[i], before[i - step]) if i >= step else (0, before[i], 0)
        if kind == 3:  # Average
            guess = (left + up) // 2
        else:  # Paeth
            ahead = left + up - corner
            guess = min((left, up, corner), key=lambda value: abs(ahead - value))
        row[i] = (row[i] + guess) & 255
    return np.frombuffer(bytes(row), np.uint8)


def to_nifti(array: Array, spacing_mm: Sequence[float] | None = None) -> bytes:
    """(H, W) or (D, H, W) as .nii.gz; without spacing its pixels are 1 mm apart."""
    wanted = "float32" if array.dtype == np.float16 else "uint8" if array.dtype == bool else array.dtype.name
    if wanted not in NIFTI:
        raise ValueError(
            f"The array is {array.dtype}; {', '.join(NIFTI)} can be sent. Convert it where no number is lost."
        )
    spacing = [1.0] * array.ndim if spacing_mm is None else [float(side) for side in spacing_mm]
    if len(spacing) != array.ndim or not all(0 < side < float("inf") for side in spacing):
        raise ValueError(f"spacing_mm is {spacing_mm}; give a number above 0 for each of the {array.ndim} axes.")
    sides, steps = array.shape[::-1], [*spacing[::-1], 1.0, 1.0][:3]
    header = bytearray(HEADER)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, array.ndim, *sides, *[1] * (7 - array.ndim))
    struct.pack_into("<2h", header, 70, NIFTI[wanted], 8 * np.dtype(wanted).itemsize)
    struct.pack_into("<8f", header, 76, 1.0, *steps, *[1.0] * 4)
    struct.pack_into("<3f", header, 108, HEADER, 1.0, 0.0)  # vox_offset, scl_slope, scl_inter
    header[123] = 2  # xyzt_units: millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # qform_code, sform_code
    for axis, step in enumerate(steps):
        struct.pack_into("<f", header, 280 + 16 * axis + 4 * axis, step)
    header[344:348] = b"n+1\0"
    stored = np.ascontiguousarray(array.astype(np.dtype(wanted).newbyteorder("<")))
    return gzip.compress(bytes(header) + stored.tobytes(), 1, mtime=0)


def from_nifti(content: bytes) -> Array:
    """(H, W), (D, H, W) or, with channels on the fifth axis, (C, ...) of a little-endian .nii or .nii.gz."""
    raw = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    if len(raw) < HEADER or raw[344:348] != b"n+1\0":
        raise ValueError("These bytes are neither PNG nor NIfTI, which are what the service sends arrays as.")
    count, *sides = struct.unpack_from("<8h", raw, 40)
    (code,) = struct.unpack_from("<h", raw, 70)
    offset, slope, inter = struct.unpack_from("<3f", raw, 108)
    shape = sides[:count] if count < 5 else [*sides[:3], sides[4]]
    dtype = np.dtype(NIFTI_TYPES[code]).newbyteorder("<")
    values = np.frombuffer(raw, dtype, int(np.prod(shape)), int(offset)).reshape(shape[::-1])
    native = values.astype(dtype.newbyteorder("="))
    return native if slope == 0 or (slope, inter) == (1.0, 0.0) else native * np.float32(slope) + np.float32(inter)
