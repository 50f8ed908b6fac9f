"""Reads an image's header, and checks that it is small enough to decode."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from app.errors import EmptyImage, ExpandsTooLarge, TooManyPixels
from app.imaging.formats import HEAD_BYTES, sniff
from app.imaging.picture import Header, Limits, Source

BYTES_PER_VOXEL = 4
"""A volume may take `max_voxels` times this once decoded: the widest type that `decode` gives."""


class File(io.BufferedReader):
    """A file without a path; readers of images want a name that is a text."""

    name = "image"


def read_header(source: Source, limits: Limits) -> Header:
    """Format, shape, channels, dtype and spacing of an image, without decoding a pixel.

    Reads a few kilobytes of a file of any size. Raises UnsupportedImage (not one of ours), CorruptImage, EmptyImage,
    TooManyPixels and ExpandsTooLarge (over `limits`), ManyFrames, UnsupportedColor, UnsupportedDepth, UnsupportedDtype,
    BadAffine.
    """
    with opened(source) as stream:
        return header_of(stream, limits)


def header_of(stream: BinaryIO, limits: Limits) -> Header:
    """`read_header` of an open stream."""
    stream.seek(0)
    format = sniff(stream.read(HEAD_BYTES))
    header = replace(format.reader.read_header(stream), format=format.name)
    _refuse_size(header, limits)
    return header


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """A seekable stream over bytes or a file; a stream that is given stays open."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            yield stream
    elif isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    else:
        yield source


def _refuse_size(header: Header, limits: Limits) -> None:
    sides = " x ".join(map(str, header.shape))
    if header.pixels == 0 or header.channels == 0:
        raise EmptyImage(
            f"The image declares {sides} pixels and {header.channels} channels. Every side must be at least 1."
        )
    most, unit = (limits.max_voxels, "voxels") if header.is_volume else (limits.max_pixels, "pixels")
    if header.pixels > most:
        raise TooManyPixels(
            f"The image declares {sides} = {header.pixels} {unit}; at most {most} are accepted. Send a smaller image or"
            " a part of it."
        )
    room = limits.max_voxels * BYTES_PER_VOXEL if header.is_volume else limits.max_decoded_bytes
    if header.decoded_bytes > room:
        raise ExpandsTooLarge(
            f"The image declares {header.decoded_bytes} bytes once decoded ({sides}, {header.channels} x"
            f" {header.dtype}); at most {room} are accepted. Send fewer channels or a smaller type."
        )
