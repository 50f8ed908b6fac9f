"""Reads NIfTI-1 and NIfTI-2, plain or gzipped, with the affine.

The 348 (540) header bytes tell the size, so a bomb is refused before it is inflated. Gzip is inflated as a stream into
an array of exactly the declared size and then to its end, because only the end holds the checksum: a reader that stops
at the last voxel, as nibabel does, never looks at it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from app.errors import BadAffine, ChecksumMismatch, CorruptImage, ManyFrames, UnsupportedColor, UnsupportedDtype
from app.imaging.picture import Forms, Header

_GZIP = b"\x1f\x8b"
_MAGICS = {348: ((344, b"n+1\0"),), 540: ((4, b"n+2\0\r\n\x1a\n"),)}
_CHUNK = 64 * 1024
_MAX_MEMBERS = 65_536  # of one gzip file; bgzip writes one for each 64 KiB
MAX_TRAILING = 1024 * 1024  # bytes after the last voxel
MAX_OFFSET = 16 * 1024 * 1024  # of the first voxel: header extensions lie before it
_NUMPY = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_COLOR = {128: "RGB", 2304: "RGBA"}
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown, metre, millimetre, micrometre


def is_plain(head: bytes) -> bool:
    """Whether a file that begins so is NIfTI, not compressed."""
    if len(head) < 348:
        return False
    sizes = {struct.unpack(order + "i", head[:4])[0] for order in "<>"}
    return any(head[at:].startswith(magic) for size in sizes for at, magic in _MAGICS.get(size, ()))


def is_gzipped(head: bytes) -> bool:
    """Whether a file that begins so is gzip with NIfTI inside; its gzip header may hold a long name."""
    try:
        return head.startswith(_GZIP) and is_plain(zlib.decompressobj(wbits=31).decompress(head, 348))
    except zlib.error:
        return False


def read_header(stream: BinaryIO) -> Header:
    """Shape, type, spacing and affine; every field that sizes or places something is checked, and named when it is
    refused.
    """
    return _header(_fields(_Bytes(stream)))


def read_pixels(stream: BinaryIO, header: Header, *, raw: bool = False) -> np.ndarray:
    """(H, W, C) or (D, H, W, C) in the stored dtype, native byte order; scaled to float32 when the file has a slope or
    intercept.
    """
    source = _Bytes(stream)
    fields = _fields(source)
    dtype = _dtype(fields)
    source.skip(_offset(fields) - source.position)
    stored = np.empty((header.channels, *header.shape), dtype)
    source.fill(stored.data.cast("B") if stored.size else memoryview(b""))
    source.finish()
    slope, inter = _scaling(fields)
    if (slope, inter) == (1.0, 0.0):
        return np.moveaxis(stored.astype(dtype.newbyteorder("="), copy=False), 0, -1)
    return np.moveaxis(_scaled(stored, slope, inter), 0, -1)


def _scaled(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """stored * slope + inter, in float64 plane by plane so that the temporary stays small."""
    pixels = np.empty(stored.shape, np.float32)
    for channel, values in zip(pixels, stored, strict=True):
        for plane, numbers in zip(channel, values, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and refused as such
                plane[...] = numbers * np.float64(slope) + inter
    return pixels


def _fields(source: _Bytes) -> Any:
    """nibabel's header over the first bytes, unchecked: the checks are ours."""
    import nibabel

    start = source.take(4)
    order = "<" if struct.unpack("<i", start)[0] in (348, 540) else ">"
    size = struct.unpack(order + "i", start)[0]
    kind = nibabel.Nifti2Header if size == 540 else nibabel.Nifti1Header
    return kind(start + source.take(size - 4), endianness=order, check=False)


def _header(fields: Any) -> Header:
    dims = _dims(fields)
    dtype = _dtype(fields)
    _offset(fields), _scaling(fields)  # refused here when they make no sense
    spatial = 2 if len(dims) == 2 else 3
    spacing = _spacing(fields, spatial)
    channels = dims[4] if len(dims) == 5 else 1
    return Header(
        tuple(dims[:spatial][::-1]),
        channels,
        dtype.newbyteorder("=").name,
        spacing,
        _affine(fields),
        forms=_forms(fields),
    )


def _dims(fields: Any) -> list[int]:
    """(i, j), (i, j, k) or (i, j, k, 1, C), with trailing axes of length 1 dropped: one slice is an image."""
    count, *sides = (int(n) for n in fields["dim"])
    if not 2 <= count <= 7:
        raise CorruptImage(
            f"The NIfTI field dim[0] says {count} axes; 2 to 5 can be read. Save one plane or one volume."
        )
    sides = sides[:count]
    if min(sides) < 0:
        raise CorruptImage(f"The NIfTI field dim has a negative side: {sides}. Save the image again.")
    while len(sides) > 2 and sides[-1] == 1:
        sides.pop()
    if len(sides) > 5 or (len(sides) > 3 and sides[3] > 1):
        raise ManyFrames(
            f"The NIfTI field dim is {sides}: a series of volumes. Send one volume per file; channels are the fifth"
            " axis."
        )
    return sides


def _dtype(fields: Any) -> np.dtype:
    code = int(fields["datatype"])
    if code in _COLOR:
        raise UnsupportedColor(
            f"The NIfTI field datatype is {code} ({_COLOR[code]}); grey values can be read. Save the channels as"
            " separate volumes."
        )
    if code not in _NUMPY:
        raise UnsupportedDtype(
            f"The NIfTI field datatype is {code}; real numbers of 8 to 64 bits can be read"
            f" ({', '.join(map(str, _NUMPY))}). Convert it to float32 or int16."
        )
    return np.dtype(fields.endianness + _NUMPY[code])


def _offset(fields: Any) -> int:
    smallest = {348: 352, 540: 544}[int(fields["sizeof_hdr"])]
    offset = float(fields["vox_offset"]) or smallest
    if not (smallest <= offset <= MAX_OFFSET and offset == int(offset)):
        raise CorruptImage(
            f"The NIfTI field vox_offset is {offset:g}; the pixels begin between byte {smallest} and byte {MAX_OFFSET}."
            " Save the image again."
        )
    return int(offset)


def _scaling(fields: Any) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0:
        return 1.0, 0.0
    if not np.isfinite([slope, inter]).all():
        raise CorruptImage(
            f"The NIfTI fields scl_slope and scl_inter are {slope} and {inter}; both must be finite. Save the image"
            " again, with slope 1 for unscaled values."
        )
    return slope, inter


def _spacing(fields: Any, spatial: int) -> tuple[float, ...]:
    spacing = [float(size) for size in fields["pixdim"][1 : 1 + spatial]]
    if not all(np.isfinite(size) and size > 0 for size in spacing):
        raise BadAffine(
            f"The NIfTI field pixdim is {spacing}; every size must be finite and above 0. Save the image with its pixel"
            " sizes, in mm."
        )
    unit = _MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7, 1.0)
    return tuple(size * unit for size in spacing[::-1])


def _affine(fields: Any) -> np.ndarray:
    """sform, else qform, else pixel sizes, in millimetres."""
    try:
        affine = np.array(fields.get_best_affine(), np.float64)
        if int(fields["qform_code"]) > 0:
            fields.get_qform()  # what the sform overrules is answered too
    except Exception as error:  # nibabel raises ValueError, HeaderDataError or LinAlgError on bad quaternions
        raise BadAffine(
            f"The NIfTI quaternion (quatern_b, c, d) is not a rotation: {error}. Save the image with a valid sform or"
            " qform."
        ) from error
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    if not (np.isfinite(volume) and volume > 0):
        raise BadAffine("The NIfTI affine is singular or not finite. Save the image with a valid sform or qform.")
    affine[:3] *= _MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7, 1.0)
    return affine


def _forms(fields: Any) -> Forms:
    """Both places as they are, in millimetres; what a code of 0 leaves unsaid is the identity."""
    unit = _MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7, 1.0)
    found: dict[str, Any] = {}
    for name, read in (("sform", fields.get_sform), ("qform", fields.get_qform)):
        code = int(fields[f"{name}_code"])
        matrix = np.array(read() if code else np.eye(4), np.float64)  # a bad qform was refused with the affine
        matrix[:3] *= unit if code else 1.0
        found |= {name: tuple(map(tuple, matrix.tolist())), f"{name}_code": code}
    return Forms(**found)


class _Bytes:
    """The uncompressed bytes of a plain or gzipped file, read once from the front; ends too early mean CorruptImage."""

    def __init__(self, stream: BinaryIO):
        stream.seek(0)
        gzipped = stream.read(len(_GZIP)) == _GZIP
        stream.seek(0)
        self._chunks = _inflated(stream) if gzipped else iter(lambda: stream.read(_CHUNK), b"")
        self._rest = memoryview(b"")
        self.position = 0

    def _next(self, most: int) -> memoryview:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise CorruptImage(
                    f"The NIfTI file is truncated: it ends after {self.position} uncompressed bytes. Send the whole"
                    " file."
                )
            self._rest = memoryview(chunk)
        part, self._rest = self._rest[:most], self._rest[most:]
        self.position += len(part)
        return part

    def fill(self, target: memoryview) -> None:
        """Copy the next bytes into all of target."""
        done = 0
        while done < len(target):
            part = self._next(len(target) - done)
            target[done : done + len(part)] = part
            done += len(part)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        target = bytearray(count)
        self.fill(memoryview(target))
        return bytes(target)

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        while count > 0:
            count -= len(self._next(count))

    def finish(self) -> None:
        """Read on to the end, so that gzip's checksum is seen; a little may follow the last voxel."""
        trailing = len(self._rest)
        for chunk in self._chunks:
            trailing += len(chunk)
            if trailing > MAX_TRAILING:
                raise CorruptImage(
                    f"More than {MAX_TRAILING} bytes follow the last voxel of the NIfTI file. Save the image again."
                )


def _inflated(stream: BinaryIO) -> Iterator[bytes]:
    """Inflate every gzip member in pieces of at most 64 KiB, whatever the stream claims."""
    raw = b""
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            raw = raw or stream.read(_CHUNK)
            if not raw:
                raise CorruptImage("The gzip stream is truncated. Send the whole file.")
            try:
                piece = member.decompress(raw, _CHUNK)
            except zlib.error as error:
                raise _gzip_problem(error) from None
            raw = member.unconsumed_tail
            if piece:
                yield piece
        raw = (member.unused_data or stream.read(_CHUNK)).lstrip(b"\0")  # tar and tapes pad with zeros
        if not raw:
            return
    raise CorruptImage(f"The gzip file has more than {_MAX_MEMBERS} members. Compress it again in one piece.")


def _gzip_problem(error: zlib.error) -> Exception:
    if "check" in str(error):  # "incorrect data check", "incorrect length check"
        return ChecksumMismatch(
            "The gzip trailer does not match the data: the file was damaged on its way. Send it again."
        )
    return CorruptImage("The gzip stream is damaged. Send the file again.")
