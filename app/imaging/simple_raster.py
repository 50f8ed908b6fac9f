"""GIF, BMP, PBM, PGM and PPM, through Pillow.

These formats are small and old: masks of public data sets come in them. Pillow decodes them in the child process that
every format but the light ones has; the header is read first and nothing is decoded beyond the limits. An animation is
refused, and so is a file that ends early.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from app.errors import CorruptImage, ManyFrames, Problem, UnsupportedColor
from app.imaging.picture import Header

GIF = (b"GIF87a", b"GIF89a")
PNM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Lengths that the second header of a bitmap may have."""
_FORMATS = ("GIF", "BMP", "PPM")
_MODES = {
    "1": (1, "uint8"),
    "L": (1, "uint8"),
    "P": (3, "uint8"),
    "RGB": (3, "uint8"),
    "I;16": (1, "uint16"),
    "I": (1, "uint16"),
}


def is_gif(head: bytes) -> bool:
    """Whether a file that begins so is a GIF."""
    return head.startswith(GIF)


def is_bmp(head: bytes) -> bool:
    """Whether a file that begins so is a Windows bitmap."""
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in BMP_HEADERS


def is_pnm(head: bytes) -> bool:
    """Whether a file that begins so is PBM, PGM or PPM: a space or a comment follows the number."""
    return head[:2] in PNM and head[2:3].isspace()


def read_header(stream: BinaryIO) -> Header:
    """Size, channels and type; a palette of greys counts as grey."""
    with _opened(stream) as image:
        channels, dtype = _kind(image)
        return Header(image.size[::-1], channels, dtype, is_bilevel=image.mode == "1")


def read_pixels(stream: BinaryIO, _header: Header, *, raw: bool = False) -> np.ndarray:
    """(H, W, samples) uint8 or uint16; with `raw` a palette of colours gives its indexes; 1 bit is 0 and 255."""
    with _opened(stream) as image:
        channels, dtype = _kind(image)
        shown = image
        if image.mode == "1" or (image.mode == "P" and channels == 1):  # how a writer numbers its greys means nothing
            shown = image.convert("L")
        elif image.mode == "P" and not raw:
            shown = image.convert("RGB")
        pixels = np.asarray(shown)
        return pixels.astype(dtype, copy=False).reshape(*pixels.shape[:2], -1)


@contextmanager
def _opened(stream: BinaryIO) -> Iterator[Any]:
    """The one picture of the file. Pillow raises several classes on hostile bytes; each means CorruptImage."""
    from PIL import Image

    try:
        stream.seek(0)
        with Image.open(stream, formats=_FORMATS) as image:
            if getattr(image, "is_animated", False):
                raise ManyFrames(f"The {image.format} is animated. Send one image per file.")
            yield image
    except Problem:
        raise
    except Exception as error:
        raise CorruptImage(
            "The image cannot be decoded: it is damaged or cut short. Save it again and send it whole."
        ) from error


def _kind(image: Any) -> tuple[int, str]:
    if image.mode not in _MODES or "transparency" in image.info:
        raise UnsupportedColor(
            f"The {image.format} has transparency or the colour model {image.mode}; grey, RGB and palettes can be read."
            " Save it without transparency, or as PNG."
        )
    channels, dtype = _MODES[image.mode]
    if image.mode == "P":
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return (1 if (colours == colours[:, :1]).all() else channels), dtype
    return channels, dtype
