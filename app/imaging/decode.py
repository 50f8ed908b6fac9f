"""Decodes bytes to pixels, after the header's sizes were checked.

Nothing is decoded in part.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from app.errors import CorruptImage, MaskMismatch, NonFinite, UnsupportedColor, UnsupportedDtype
from app.imaging.exif import upright
from app.imaging.formats import FORMATS
from app.imaging.grids import onto
from app.imaging.header import header_of, opened
from app.imaging.picture import Header, Limits, Picture, Source

KEPT = ("uint8", "uint16", "int16", "float32")
"""The dtypes of a `Picture`; a wider type becomes the first of these that holds all its values."""


def decode(source: Source, limits: Limits) -> Picture:
    """The pixels of an image with their spacing and affine.

    Full depth is kept (16 bit, float). Palettes become RGB, 1 bit becomes 0 and 255, an alpha channel that is the same
    everywhere is dropped, the EXIF orientation is applied. Refuses what `read_header` refuses, and: CorruptImage
    (damaged, cut short), ChecksumMismatch (gzip), NonFinite (NaN, infinity), UnsupportedColor (transparency that
    varies), UnsupportedDtype (complex, 64-bit integers, 32-bit integers beyond 2^24 that no kept type holds).
    """
    with opened(source) as stream:
        header = header_of(stream, limits)
        _refuse_dtype(header.dtype, wide="")
        pixels = narrowed(_pixels(stream, header, raw=False))
    return _picture(pixels, header)


def decode_map(source: Source, limits: Limits) -> Picture:
    """A mask or a probability map: one number a pixel, in a kept dtype.

    The number is the stored one: a palette image gives its indexes, white that is stored as zero stays zero, 1 bit
    gives 0 and 255. RGB is accepted when its channels are equal. Refuses as `decode` does (but takes int64), and with
    UnsupportedColor several channels that differ.
    """
    pixels, header = _single(source, limits)
    return _picture(narrowed(pixels)[None], header)


def decode_labels(source: Source, limits: Limits, *, above: float | None = None, colours: bool = False) -> Picture:
    """The labels of an image: one channel of uint8, uint16, int16 or int32, the stored numbers as in `decode_map`.

    Float is accepted when every value is a whole number; RGB whose channels differ, where `colours` says so, gives
    red * 65536 + green * 256 + blue.

    above   labels are 1 where the value is above it and 0 elsewhere: for masks that compression or resampling blurred
    Refuses as `decode_map` does, and with MaskMismatch channels that differ, or fractions.
    """
    try:
        pixels, header = _single(source, limits, colours=colours)
    except UnsupportedColor as problem:
        raise MaskMismatch(problem.detail) from problem
    labels = _whole_numbers(pixels) if above is None else (pixels > above).astype(np.uint8)
    return _picture(labels[None], header)


def decode_mask(
    source: Source, limits: Limits, *, like: Picture | Header | None = None, resample: bool = False
) -> np.ndarray:
    """(H, W) or (D, H, W): the pixels of `decode_labels`, on the grid of `like` (see `app.imaging.grids.onto`)."""
    labels = decode_labels(source, limits)
    return (labels if like is None else onto(labels, like, resample=resample)).pixels[0]


def _picture(pixels: np.ndarray, header: Header) -> Picture:
    return Picture(
        np.ascontiguousarray(pixels),
        header.format,
        header.spacing_mm,
        header.affine,
        header.orientation,
        header.forms,
        header.is_bilevel,
        header.sparse,
    )


def _single(source: Source, limits: Limits, *, colours: bool = False) -> tuple[np.ndarray, Header]:
    """One number a pixel, in the stored dtype or the first 32 or 64 bits that hold it."""
    with opened(source) as stream:
        header = header_of(stream, limits)
        _refuse_dtype(header.dtype, wide="int64")
        pixels = _pixels(stream, header, raw=True)
    if len(pixels) == 1 or (pixels[1:] == pixels[:1]).all():
        return pixels[0], header
    if colours and len(pixels) == 3 and pixels.dtype == np.uint8:
        red, green, blue = pixels.astype(np.int32)
        return red << 16 | green << 8 | blue, header
    raise UnsupportedColor(
        f"The mask has {len(pixels)} channels that differ; one number a pixel is needed. Save it as grey or as a"
        " palette image."
    )


def _pixels(stream: BinaryIO, header: Header, *, raw: bool) -> np.ndarray:
    """(C, ...) in the stored dtype, finite, upright, without alpha."""
    samples = upright(FORMATS[header.format].reader.read_pixels(stream, header, raw=raw), header.orientation)
    if samples.shape[:-1] != header.shape:
        raise CorruptImage(f"The image declares {header.shape} and decodes to {samples.shape[:-1]}. Save it again.")
    channels = 1 if raw and samples.shape[-1] < header.channels else header.channels
    pixels = np.moveaxis(_without_alpha(samples, channels), -1, 0)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        bad = pixels.size - int(np.isfinite(pixels).sum())
        raise NonFinite(f"{bad} of {pixels.size} pixels are NaN or infinite. Replace them by finite numbers.")
    return pixels


def _without_alpha(pixels: np.ndarray, channels: int) -> np.ndarray:
    alpha = pixels[..., channels:]
    if alpha.size and not (alpha == alpha.flat[0]).all():
        raise UnsupportedColor(
            "The image has transparency that varies, so its colours depend on a background. Flatten it and save it"
            " without an alpha channel."
        )
    return pixels[..., :channels]


def _refuse_dtype(dtype: str, *, wide: str) -> None:
    if np.dtype(dtype).kind not in "uif" or dtype in {"int64", "uint64", "float128"} - {wide}:
        raise UnsupportedDtype(
            f"The pixels are {dtype}; integers up to 32 bits and float16 to float64 can be read. Convert to uint16 or"
            " float32."
        )


def narrowed(pixels: np.ndarray) -> np.ndarray:
    """The first of `KEPT` that holds every value; float64 is rounded."""
    if pixels.dtype.name in KEPT:
        return pixels
    if pixels.dtype.kind == "f":
        return _rounded(pixels)
    low, high = int(pixels.min()), int(pixels.max())
    for dtype in KEPT[:3]:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return pixels.astype(dtype)
    single = pixels.astype(np.float32)
    if max(-low, high) > 2**24 and not (single.astype(np.float64) == pixels).all():
        raise UnsupportedDtype(
            f"The {pixels.dtype} pixels run from {low} to {high}, more than float32 can tell apart. Scale them to 16"
            " bits or save them as float32."
        )
    return single


def _rounded(pixels: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = pixels.astype(np.float32)
    if not np.isfinite(single).all():
        raise NonFinite(
            f"The {pixels.dtype} pixels reach {np.abs(pixels).max():g}, beyond float32 (3.4e38). Scale them down."
        )
    return single


def _whole_numbers(mask: np.ndarray) -> np.ndarray:
    """Integers of at most 32 bits, equal to the values of the mask."""
    if mask.dtype.kind == "f" and (mask != np.round(mask)).any():
        fractions = int((mask != np.round(mask)).sum())
        raise MaskMismatch(
            f"{fractions} of {mask.size} mask values are fractions; labels are whole numbers. Threshold the mask, or"
            " send it as an image."
        )
    low, high = mask.min(), mask.max()
    for dtype in ("uint8", "uint16", "int16", "int32"):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return mask.astype(dtype, copy=False)
    raise UnsupportedDtype(
        f"The mask values run from {low} to {high}; labels must fit in 32 bits. Renumber them from 0."
    )
