"""TIFF: one page of grey, RGB, palette or several channels, through tifffile.

tifffile trusts the tags, so everything that costs memory (sides, tiles, channels) is compared with the limits before a
strip is read, and every strip must lie inside the file: a missing one would come out black. Compressions whose decoders
size their own output (JPEG, JPEG 2000, LERC, WebP, fax) are refused.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from typing import Any, BinaryIO

import numpy as np

from app.errors import CorruptImage, ManyFrames, Problem, UnsupportedColor, UnsupportedDepth, UnsupportedImage
from app.imaging.picture import Header

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE = 0, 1, 2, 3
_COLORS = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE)
_COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 50000: "Zstandard"}
_DEPTHS = (1, 8, 16, 32, 64, 128)
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
MOST_STRIPS = 100_000  # each costs tifffile 25 microseconds; a strip of one row is common, tiles of 8 x 8 are not
LARGEST_TILE = 64 * 1024 * 1024  # bytes decoded; a tile is allocated whole even when the image is smaller

logging.getLogger("tifffile").setLevel(
    logging.CRITICAL
)  # it logs what it finds in callers' files; we answer it instead


def read_header(stream: BinaryIO) -> Header:
    """Size, channels and type from the tags of the first page; refuses a second page and what cannot be read without
    loss.
    """
    with _page(stream) as page:
        return _header(page)


def read_pixels(stream: BinaryIO, _header: Header, *, raw: bool = False) -> np.ndarray:
    """(H, W, samples) in the stored dtype, alpha included, before orientation; 1 bit is 0 and 255.

    Grey where white is zero is inverted and palettes become RGB, unless `raw`: labels are the numbers in the file.
    """
    with _page(stream) as page:
        _refuse_holes(page, stream)
        pixels = page.asarray(maxworkers=1)
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            pixels = np.moveaxis(pixels.reshape(page.samplesperpixel, page.imagelength, page.imagewidth), 0, -1)
        pixels = pixels.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
        if pixels.dtype == bool:
            pixels = pixels.view(np.uint8) * np.uint8(255)
        if not raw and page.photometric == WHITE_IS_ZERO:
            return _inverted(pixels)
        if not raw and page.photometric == PALETTE:
            return _colored(page.colormap, pixels[..., 0])
        return pixels


@contextmanager
def _page(stream: BinaryIO) -> Iterator[Any]:
    """The one page of the file. tifffile and its codecs raise a dozen unrelated classes on hostile bytes, so every one
    that is
    not ours means CorruptImage."""
    import tifffile

    try:
        stream.seek(0)
        with tifffile.TiffFile(stream, _multifile=False) as tiff:
            page = tiff.pages[0]
            _refuse_second_page(tiff.tiff, page, stream)
            yield page
    except Problem:
        raise
    except Exception as error:
        raise CorruptImage(
            "The TIFF cannot be decoded: its directory or its pixels are damaged or cut short. Save the image again and"
            " send it whole."
        ) from error


def _refuse_second_page(layout: Any, page: Any, stream: BinaryIO) -> None:
    """Read the link to the next directory ourselves: walking them all is what a file of 20 000 pages hopes for."""
    stream.seek(page.offset)
    tags = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))[0]
    stream.seek(page.offset + layout.tagnosize + tags * layout.tagsize)
    following = struct.unpack(layout.offsetformat, stream.read(layout.offsetsize))[0]
    end = stream.seek(0, 2)
    if following == page.offset or following >= end:
        raise CorruptImage(
            f"The TIFF's first directory points on to byte {following} of {end}, where no other can be. Save the image"
            " again."
        )
    if following:
        raise ManyFrames("The TIFF holds more than one page. Send one image per file; volumes go as NIfTI.")


def _header(page: Any) -> Header:
    if page.photometric not in _COLORS:
        raise UnsupportedColor(
            f"The TIFF's colour model is number {int(page.photometric)} (CMYK is 5, YCbCr 6, CIELab 8); grey, RGB and"
            " palette can be read. Convert it to grey or RGB."
        )
    if page.imagedepth > 1:
        raise ManyFrames(f"The TIFF holds a volume of {page.imagedepth} planes. Send volumes as NIfTI.")
    orientation = page.tags.valueof("Orientation", default=1)
    orientation = orientation if orientation in range(1, 9) else 1
    height, width = index(page.imagelength), index(page.imagewidth)  # a damaged tag may hold several numbers, or none
    shape = (height, width) if orientation < 5 else (width, height)
    return Header(shape, _channels(page), _dtype(page), orientation=orientation, is_bilevel=page.dtype == bool)


def _channels(page: Any) -> int:
    if page.photometric == PALETTE:
        return 3
    return index(page.samplesperpixel) - (bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA)


def _dtype(page: Any) -> str:
    if page.dtype is None or page.bitspersample not in _DEPTHS:
        raise UnsupportedDepth(
            f"The TIFF has {page.bitspersample} bits a sample; 1, 8, 16 and 32 can be read. Save it with one of these"
            " depths."
        )
    return "uint8" if page.dtype == bool else page.dtype.newbyteorder("=").name


def _refuse_holes(page: Any, stream: BinaryIO) -> None:
    """Every strip and tile is there, none is larger than its part of the image could need, and their decoder is one we
    know.
    """
    if page.compression not in _COMPRESSIONS:
        raise UnsupportedImage(
            f"The TIFF is compressed by method {int(page.compression)};"
            f" {', '.join(dict.fromkeys(_COMPRESSIONS.values()))} can be read. Save it with one of these."
        )
    tile = page.tilewidth * page.tilelength * page.samplesperpixel * page.dtype.itemsize
    if tile > LARGEST_TILE:
        raise CorruptImage(
            f"The TIFF declares tiles of {page.tilewidth} x {page.tilelength} pixels, {tile} bytes each; at most"
            f" {LARGEST_TILE} are read. Save it with tiles of 512 x 512."
        )
    if math.prod(page.chunked) > MOST_STRIPS:
        raise CorruptImage(
            f"The TIFF is cut into {math.prod(page.chunked)} strips or tiles; at most {MOST_STRIPS} are read. Save it"
            " with larger ones."
        )
    end = stream.seek(0, 2)
    stated = page.tags.valueof(325 if page.is_tiled else 279)
    counts = stated if isinstance(stated, tuple) else (stated,)
    wanted = math.prod(page.chunked)
    if not len(page.dataoffsets) == len(counts) == wanted:
        raise CorruptImage(
            f"The TIFF lists {len(page.dataoffsets)} offsets and {len(counts)} lengths for {wanted} strips or tiles."
            " Save the image again."
        )
    for start, count in zip(page.dataoffsets, counts, strict=True):
        if start <= 0 or count <= 0 or start + count > end:
            raise CorruptImage(
                f"A strip or tile of the TIFF ({count} bytes from byte {start}) lies outside its {end} bytes: the file"
                " is truncated or damaged. Send the whole file."
            )


def _inverted(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind != "u":
        raise UnsupportedColor(
            f"The TIFF stores white as zero with {pixels.dtype} samples, which has no defined white. Save it with black"
            " as zero."
        )
    return np.iinfo(pixels.dtype).max - pixels


def _colored(colormap: np.ndarray, indexes: np.ndarray) -> np.ndarray:
    """RGB of a palette; its 16-bit entries are 8-bit ones times 257, so the upper byte is the colour."""
    return (colormap >> 8).astype(np.uint8).T[indexes]
