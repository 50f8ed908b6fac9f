"""TIFF: images and stacks of grey, RGB, palette or several channels, through tifffile.

tifffile trusts the tags, so everything that costs memory (sides, tiles, channels, pages) is compared with the limits
before a strip is read, and every strip must lie inside the file: a missing one would come out black. JPEG and JPEG 2000
size their own output, so what each strip says of its sides is compared with the tags first. Which page is which plane
and channel is read by `app.imaging.tiff_layout`.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from operator import index
from typing import Any, BinaryIO

import numpy as np

from app.errors import CorruptImage, ManyFrames, Problem, UnsupportedColor, UnsupportedDepth, UnsupportedImage
from app.imaging import jpeg
from app.imaging.picture import NOWHERE, Header
from app.imaging.tiff_layout import MOST_PAGES, Layout, layout_of

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
DESCRIPTION = 270
JPEG, JPEG_2000 = 7, (33005, 34712)
_COLORS = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE)
_COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 50000: "Zstandard"}
_COMPRESSIONS |= {2: "CCITT", 3: "CCITT", 4: "CCITT", JPEG: "JPEG", 33005: "JPEG 2000", 34712: "JPEG 2000"}
_DEPTHS = (1, 4, 8, 10, 12, 14, 16, 32, 64, 128)
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
MOST_STRIPS = 100_000  # each costs tifffile 25 microseconds; a strip of one row is common, tiles of 8 x 8 are not
_END_OF_STRIP = b"\xff\xd9"  # of JPEG and JPEG 2000 alike
LARGEST_TILE = 64 * 1024 * 1024  # bytes decoded; a tile is allocated whole even when the image is smaller

logging.getLogger("tifffile").setLevel(
    logging.CRITICAL
)  # it logs what it finds in callers' files; we answer it instead


def read_header(stream: BinaryIO) -> Header:
    """Size, channels, type and spacing from the tags of all pages; refuses what cannot be read without loss."""
    with _opened(stream) as (pages, layout):
        return _header(pages[layout.pages[0][0]], layout)


def read_pixels(stream: BinaryIO, header: Header, *, raw: bool = False) -> np.ndarray:
    """(H, W, samples) or (D, H, W, samples) in the stored dtype, alpha included, before orientation; 1 bit is 0 and
    255.

    Grey where white is zero is inverted and palettes become RGB, unless `raw`: labels are the numbers in the file.
    """
    with _opened(stream) as (pages, layout):
        if len(layout.pages) == layout.planes == 1:
            return _pixels(pages[layout.pages[0][0]], stream, raw)
        stack: np.ndarray | None = None
        for plane in range(layout.planes):
            pixels = _plane(pages, [channel[plane] for channel in layout.pages], stream, raw)
            if stack is None:
                stack = np.empty((layout.planes, *pixels.shape), pixels.dtype)
            stack[plane] = pixels
        assert stack is not None
        return stack if header.is_volume else stack[0]


def _plane(pages: Sequence[Any], numbers: Sequence[int], stream: BinaryIO, raw: bool) -> np.ndarray:
    """(H, W, samples) of the pages of one plane."""
    channels = [
        _pixels(pages[number], stream, raw or len(numbers) > 1)
        if number < len(pages)
        else _following(pages[0], number, stream)
        for number in numbers
    ]
    return channels[0] if len(channels) == 1 else np.concatenate(channels, axis=-1)


def _pixels(page: Any, stream: BinaryIO, raw: bool) -> np.ndarray:
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


def _following(first: Any, number: int, stream: BinaryIO) -> np.ndarray:
    """A plane without a directory of its own, behind the pixels of the first."""
    if (
        not first.is_contiguous
        or first.dtype == bool
        or first.photometric != BLACK_IS_ZERO
        or first.samplesperpixel > 1
    ):
        raise CorruptImage(
            "The TIFF's metadata state more planes than it has pages, and its first page is not plain grey. Save the"
            " image again."
        )
    stream.seek(first.dataoffsets[0] + number * first.nbytes)
    read = stream.read(first.nbytes)
    if len(read) < first.nbytes:
        raise CorruptImage(f"The TIFF ends before plane {number} that its metadata state. Send the whole file.")
    stored = np.frombuffer(read, first.dtype.newbyteorder(first.parent.byteorder))
    return stored.astype(first.dtype.newbyteorder("="), copy=False).reshape(first.imagelength, first.imagewidth, 1)


@contextmanager
def _opened(stream: BinaryIO) -> Iterator[tuple[list[Any], Layout]]:
    """The pages of the file, and which is what. tifffile and its codecs raise a dozen unrelated classes on hostile
    bytes, so every one that is not ours means CorruptImage."""
    import tifffile

    try:
        stream.seek(0)
        with tifffile.TiffFile(stream, _multifile=False) as tiff:
            count = _count(tiff.tiff, tiff.pages[0].offset, stream)
            pages = [tiff.pages[number] for number in range(count)]
            _refuse_lost_description(tiff.tiff, pages[0], stream)
            yield pages, layout_of(pages)
    except Problem:
        raise
    except Exception as error:
        raise CorruptImage(
            "The TIFF cannot be decoded: its directory or its pixels are damaged or cut short. Save the image again and"
            " send it whole."
        ) from error


def _count(layout: Any, first: int, stream: BinaryIO) -> int:
    """The number of pages, by the links from each directory to the next, at most `MOST_PAGES`."""
    end, at, seen = stream.seek(0, 2), first, set[int]()
    while at:
        if at in seen or at >= end:
            raise CorruptImage(
                f"Directory {len(seen)} of the TIFF points on to byte {at} of {end}, where no other can be. Save the"
                " image again."
            )
        if len(seen) == MOST_PAGES:
            raise ManyFrames(f"The TIFF holds more than {MOST_PAGES} pages. Send a part of it, or a NIfTI volume.")
        seen.add(at)
        stream.seek(at)
        tags = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))[0]
        stream.seek(at + layout.tagnosize + tags * layout.tagsize)
        at = struct.unpack(layout.offsetformat, stream.read(layout.offsetsize))[0]
    return len(seen)


def _refuse_lost_description(layout: Any, page: Any, stream: BinaryIO) -> None:
    """Without the metadata that a file had, its channels would come out as planes."""
    stream.seek(page.offset)
    count = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))[0]
    entries = stream.read(count * layout.tagsize)
    codes = {
        struct.unpack_from(layout.byteorder + "H", entries, at)[0] for at in range(0, len(entries), layout.tagsize)
    }
    if DESCRIPTION in codes and DESCRIPTION not in page.tags:
        raise CorruptImage("The TIFF's description cannot be read: the file is truncated or damaged. Send it whole.")


def _header(page: Any, layout: Layout) -> Header:
    if page.photometric not in (*_COLORS, *((YCBCR,) if page.compression == JPEG else ())):
        raise UnsupportedColor(
            f"The TIFF's colour model is number {int(page.photometric)} (CMYK is 5, YCbCr 6, CIELab 8); grey, RGB and"
            " palette can be read. Convert it to grey or RGB."
        )
    if page.imagedepth > 1:
        raise ManyFrames(f"The TIFF holds a volume of {page.imagedepth} planes. Save its planes as pages.")
    orientation = page.tags.valueof("Orientation", default=1)
    orientation = orientation if orientation in range(1, 9) and layout.planes == 1 else 1
    height, width = index(page.imagelength), index(page.imagewidth)  # a damaged tag may hold several numbers, or none
    shape = (height, width) if orientation < 5 else (width, height)
    channels = _channels(page) if len(layout.pages) == 1 else len(layout.pages) * index(page.samplesperpixel)
    facts: dict[str, Any] = {"orientation": orientation, "is_bilevel": page.dtype == bool}
    if layout.planes == 1:
        rows, columns = layout.spacing_mm[1:]
        known = None if rows is None or columns is None else (rows, columns)
        turned = known if known is None or orientation < 5 else known[::-1]
        return Header(shape, channels, _dtype(page), turned, **facts)
    spacing = tuple(size for size in layout.spacing_mm if size is not None)
    sized = spacing if len(spacing) == 3 else None
    facts |= {"affine": np.diag([*(sized or (1.0, 1.0, 1.0))[::-1], 1.0]), "forms": NOWHERE}
    return Header((layout.planes, *shape), channels, _dtype(page), sized, **facts)


def _channels(page: Any) -> int:
    if page.photometric == PALETTE:
        return 3
    return index(page.samplesperpixel) - (bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA)


def _dtype(page: Any) -> str:
    if page.dtype is None or page.bitspersample not in _DEPTHS:
        raise UnsupportedDepth(
            f"The TIFF has {page.bitspersample} bits a sample; 1, 4, 8, 10, 12, 14, 16 and 32 can be read. Save it with"
            " one of these depths."
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
        if page.compression in (JPEG, *JPEG_2000):
            stream.seek(start)
            _refuse_larger(stream.read(count), page)


def _refuse_larger(strip: bytes, page: Any) -> None:
    """A strip of JPEG or JPEG 2000 is whole, and declares no more pixels than its place in the image has."""
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    height, width = _declared(strip) if page.compression == JPEG else _declared_2000(strip)
    ends = strip.rstrip(b"\0").endswith(_END_OF_STRIP)
    if not ends or not 0 < height <= max(rows, 1) or not 0 < width <= columns:
        raise CorruptImage(
            f"A strip or tile of the TIFF declares {height} x {width} pixels in its {page.compression.name} data, of"
            f" {rows} x {columns}, or has no end marker: it is damaged. Save the image again."
        )


def _declared(strip: bytes) -> tuple[int, int]:
    """Rows and columns by the frame header of a JPEG, (0, 0) without one."""
    for marker, body in jpeg.segments(BytesIO(strip)):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 5:
            return struct.unpack(">HH", body[1:5])
    return 0, 0


def _declared_2000(strip: bytes) -> tuple[int, int]:
    """Rows and columns by the SIZ segment of a codestream, (0, 0) without one."""
    at = strip.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(strip) < at + 24:
        return 0, 0
    right, bottom, left, top = struct.unpack(">IIII", strip[at + 8 : at + 24])
    return bottom - top, right - left


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
