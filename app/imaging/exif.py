"""Which way up a photograph is: the EXIF orientation, and turning pixels accordingly."""

from __future__ import annotations

import struct

import numpy as np

ORIENTATION_TAG = 0x0112


def orientation_of(exif: bytes) -> int:
    """The orientation, 1 to 8, of an EXIF block (a TIFF header with its first directory); 1 when it does not say.

    A damaged block counts as silent, as in every viewer: it describes the image and is no part of it.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        start = struct.unpack_from(order + "I", exif, 4)[0]
        count = struct.unpack_from(order + "H", exif, start)[0]
        for at in range(start + 2, start + 2 + 12 * min(count, 1000), 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, at)
            if tag == ORIENTATION_TAG:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn or mirror (H, W, ...) so that the first row is the top: orientations 1 to 8 of EXIF 2.3, table 6."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]
