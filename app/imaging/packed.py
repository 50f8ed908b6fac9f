"""Arrays as nnInteractive's clients pack them: a header and chunks of Blosc2.

"NNIA", version 1, codec, number of axes, length of the dtype's name, the name, each side as int64, the number of
chunks; then for each chunk its plain and its packed length as uint64 and its bytes. Little endian, C order.
"""

from __future__ import annotations

import math
import struct
from typing import BinaryIO

import numpy as np

from app.errors import CorruptImage, EmptyImage, NonFinite, TooManyPixels, UnsupportedDtype
from app.imaging.decode import narrowed
from app.imaging.header import opened
from app.imaging.picture import Limits, Picture, Source

MAGIC, VERSION, ZSTD, LZ4 = b"NNIA", 1, 1, 2
CHUNK = 2**30
"""Bytes of a chunk before it is packed; Blosc2 counts in 32 bits."""
DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32", "float64")
FORMAT = "nnia"
BLOSC_HEADER = 16
"""Bytes at the begin of a Blosc2 chunk that say how long it is, packed and not."""


def unpack(source: Source, limits: Limits, *, axes: int) -> Picture:
    """A packed array as a picture without a place: (C, D, H, W) of four axes, (1, D, H, W) of three.

    CorruptImage, UnsupportedDtype, EmptyImage, NonFinite; TooManyPixels where the header states more than
    `limits.max_voxels`, before anything is unpacked.
    """
    with opened(source) as stream:
        stream.seek(0)
        magic, version, codec, count, length = struct.unpack("<4sBBBB", _taken(stream, 8))
        if magic != MAGIC or version != VERSION or codec not in (ZSTD, LZ4):
            raise CorruptImage("The array does not begin as nnInteractive's clients write it. Update the viewer.")
        name = _taken(stream, length).decode("ascii", "replace")
        if count != axes:
            raise CorruptImage(f"The array has {count} axes; {axes} were expected.")
        if name not in DTYPES:
            raise UnsupportedDtype(f"The array is {name[:32]}; it can be one of {', '.join(DTYPES)}.")
        shape = struct.unpack(f"<{count}q", _taken(stream, 8 * count))
        if min(shape) < 1:
            raise EmptyImage(f"The array has the shape {list(shape)}. Every side must be at least 1.")
        if math.prod(shape) > limits.max_voxels:
            raise TooManyPixels(f"The array has {math.prod(shape)} voxels; at most {limits.max_voxels} are accepted.")
        pixels = _chunks(stream, np.empty(shape, np.dtype(name).newbyteorder("<")))
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise NonFinite("The array holds NaN or infinity. Replace them by finite numbers.")
    pixels = narrowed(pixels.view(np.uint8) if pixels.dtype == bool else pixels)
    return Picture(pixels if axes == 4 else pixels[None], FORMAT)


def _taken(stream: BinaryIO, count: int) -> bytes:
    taken = stream.read(count)
    if len(taken) < count:
        raise CorruptImage("The array ends too early. Send it again.")
    return taken


def _chunks(stream: BinaryIO, pixels: np.ndarray) -> np.ndarray:
    """The array, filled from the chunks that follow."""
    import imagecodecs

    out, done = pixels.reshape(-1).view(np.uint8), 0
    (count,) = struct.unpack("<I", _taken(stream, 4))
    for _ in range(count):
        plain, packed = struct.unpack("<QQ", _taken(stream, 16))
        if plain == 0 or plain > min(CHUNK, len(out) - done):
            raise CorruptImage("A chunk of the array is longer than the array that was declared. Send it again.")
        if not BLOSC_HEADER <= packed <= plain + plain // 8 + 4096:
            raise CorruptImage("A chunk of the array declares a length that cannot be. Send it again.")
        chunk = _taken(stream, packed)
        said, _, length = struct.unpack("<III", chunk[4:BLOSC_HEADER])
        if (said, length) != (plain, packed):
            raise CorruptImage("A chunk of the array is not as long as it says. Send it again.")
        try:
            decoded = imagecodecs.blosc2_decode(chunk, numthreads=1)
        except imagecodecs.Blosc2Error as error:
            raise CorruptImage("A chunk of the array cannot be unpacked: it is damaged. Send it again.") from error
        if len(decoded) != plain:
            raise CorruptImage("A chunk of the array is damaged. Send it again.")
        out[done : done + plain] = np.frombuffer(decoded, np.uint8)
        done += plain
    if done != len(out):
        raise CorruptImage(f"The array has {len(out)} bytes and {done} arrived. Send it again.")
    return pixels


def pack(pixels: np.ndarray) -> bytes:
    """An array as such bytes; its dtype is one of `DTYPES`."""
    import imagecodecs

    name = pixels.dtype.name.encode()
    plain = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    # imagecodecs packs elements of 8 bytes, and nobody can read a chunk of zeros that is not a multiple of them.
    whole = len(plain) - len(plain) % 8
    ends = [*range(CHUNK, whole, CHUNK), whole, len(plain)]
    pieces = [plain[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]
    parts = [struct.pack("<4sBBBB", MAGIC, VERSION, ZSTD, pixels.ndim, len(name)), name]
    parts.append(struct.pack(f"<{pixels.ndim}qI", *pixels.shape, len(pieces)))
    for piece in pieces:
        packed = imagecodecs.blosc2_encode(piece.tobytes(), level=3, compressor="zstd", shuffle=0, numthreads=1)
        parts += [struct.pack("<QQ", len(piece), len(packed)), bytes(packed)]
    return b"".join(parts)
