"""Voxels behind a text header, raw or compressed, read into exactly the declared size."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from app.errors import BadAffine, CorruptImage, ManyFrames
from app.imaging.picture import NOWHERE, Header

_CHUNK = 64 * 1024
_WBITS = {"gzip": 31, "zlib": 15}
_MAX_TRAILING = 1024 * 1024
FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Left, back, up to right, front, up."""


def header_of(
    sizes: tuple[int, ...], channels: int, dtype: np.dtype[Any], spacing: tuple[float, ...] | None, affine: np.ndarray
) -> Header:
    """A header from sides, fastest first: of an image where there are two, or the third is 1.

    spacing  in mm, fastest first; None: unknown
    affine   (4, 4) from (column, row, plane) to millimetres right, front, up; all zero: the file states no place
    """
    if not 2 <= len(sizes) <= 3:
        raise ManyFrames(
            f"The image has {len(sizes)} axes beside its channels; 2 or 3 can be read. Save one plane or one volume."
        )
    if min(sizes) < 0:
        raise CorruptImage(f"The image declares sides of {sizes}. Save it again.")
    placed = bool(affine.any())
    if not placed:
        affine = np.diag([*(spacing or (1.0,) * len(sizes)), *(1.0,) * (4 - len(sizes))])
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    if not (np.isfinite(volume) and volume > 0):
        raise BadAffine("The directions or sizes of the axes are singular or not finite. Save the image again.")
    flat = len(sizes) == 2 or sizes[2] == 1
    shape = sizes[:2][::-1] if flat else sizes[::-1]
    known = None if spacing is None else tuple(float(size) for size in spacing[: len(shape)][::-1])
    return Header(shape, channels, dtype.newbyteorder("=").name, known, affine, forms=None if placed else NOWHERE)


def read(stream: BinaryIO, start: int, encoding: str, count: int, dtype: np.dtype[Any]) -> np.ndarray:
    """(count,) voxels in native byte order from byte `start` of the file.

    encoding  raw, gzip, zlib or bzip2
    Raises CorruptImage where the file ends early, is damaged, or holds more than the voxels.
    """
    stored = np.empty(count, dtype)
    target = stored.data.cast("B") if count else memoryview(b"")
    done = trailing = 0
    stream.seek(start)
    for piece in _pieces(stream, encoding):
        part = memoryview(piece)[: len(target) - done]
        target[done : done + len(part)] = part
        done, trailing = done + len(part), trailing + len(piece) - len(part)
        if trailing > _MAX_TRAILING:
            raise CorruptImage(f"More than {_MAX_TRAILING} bytes follow the last voxel. Save the image again.")
    if done < len(target):
        raise CorruptImage(
            f"The file is truncated: it holds {done} of {len(target)} bytes of voxels. Send the whole file."
        )
    return stored.astype(dtype.newbyteorder("="), copy=False)


def _pieces(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    if encoding == "raw":
        yield from iter(lambda: stream.read(_CHUNK), b"")
        return
    import bz2  # only decoders need it

    unpack: Any = bz2.BZ2Decompressor() if encoding == "bzip2" else zlib.decompressobj(wbits=_WBITS[encoding])
    more = _more_bz2 if encoding == "bzip2" else _more_zlib
    while not unpack.eof:
        raw = stream.read(_CHUNK)
        if not raw:
            raise CorruptImage("The compressed voxels are truncated. Send the whole file.")
        try:
            yield from more(unpack, raw)
        except (zlib.error, OSError, EOFError) as error:
            raise CorruptImage(f"The compressed voxels are damaged ({error}). Send the file again.") from None


def _more_zlib(unpack: Any, raw: bytes) -> Iterator[bytes]:
    while raw and not unpack.eof:
        yield unpack.decompress(raw, 16 * _CHUNK)
        raw = unpack.unconsumed_tail


def _more_bz2(unpack: Any, raw: bytes) -> Iterator[bytes]:
    yield unpack.decompress(raw, 16 * _CHUNK)
    while not unpack.eof and not unpack.needs_input:
        yield unpack.decompress(b"", 16 * _CHUNK)


def numbers(text: str, count: int, what: str, kind: Callable[[str], Any] = float) -> tuple[Any, ...]:
    """So many numbers of a field; CorruptImage names the field."""
    try:
        found = tuple(kind(part) for part in text.split())
    except ValueError:
        found = ()
    if len(found) != count:
        raise CorruptImage(f"The field {what} is {text[:60]!r}; {count} numbers belong there. Save the image again.")
    return found
