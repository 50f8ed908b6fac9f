"""Image and archive files built byte by byte, so any field can be wrong."""

from __future__ import annotations

import gzip
import io
import struct
import zlib

import numpy as np


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with a right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    color: int = 0,
    rows: bytes | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG that declares any size; `rows` are the filtered rows, by default zeros for one row."""
    ihdr = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = zlib.compress(bytes(16) if rows is None else rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + before + chunk(b"IDAT", body) + after + chunk(b"IEND", b"")


def grey_png(pixels: np.ndarray, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A sound 8-bit grey PNG of the given pixels, with other chunks around its data."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(np.uint8))
    return png(pixels.shape[1], pixels.shape[0], rows=rows, before=before, after=after)


def tiff(
    width: int,
    height: int,
    data: bytes,
    *,
    compression: int = 1,
    bits: int = 8,
    samples: int = 1,
    photometric: int = 1,
    more: tuple[tuple[int, int, int, int], ...] = (),
    following: int = 0,
    count: int | None = None,
    start: int | None = None,
) -> bytes:
    """A little-endian TIFF of one strip;
    `more` are (tag, type, count, value), `following` the offset of the next page.
    """
    replaced = {tag for tag, *_ in more}
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, compression),
        (262, 3, 1, photometric),
        (273, 4, 1, -1),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, 1, len(data) if count is None else count),
    ]
    tags = sorted([tag for tag in tags if tag[0] not in replaced] + list(more))
    place = 8 + 2 + 12 * len(tags) + 4 if start is None else start
    directory = b"".join(
        struct.pack("<HHII", tag, kind, n, place if value == -1 else value) for tag, kind, n, value in tags
    )
    return (
        b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + directory + struct.pack("<I", following) + data
    )


def nifti(
    dims: tuple[int, ...] = (4, 3, 2),
    data: bytes | None = None,
    *,
    datatype: int = 2,
    bitpix: int = 8,
    count: int | None = None,
    pixdim: tuple[float, ...] = (1, 1, 1, 1, 1, 1, 1),
    slope: float = 1.0,
    inter: float = 0.0,
    offset: float = 352.0,
    units: int = 2,
    sform: tuple[tuple[float, ...], ...] | None = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)),
    qform: tuple[float, ...] | None = None,
) -> bytes:
    """A little-endian NIfTI-1 file; `dims` and `pixdim` are (i, j, k, ...), `count` overrides dim[0]."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, len(dims) if count is None else count, *(tuple(dims) + (1,) * 7)[:7])
    struct.pack_into("<hh", head, 70, datatype, bitpix)
    struct.pack_into("<8f", head, 76, 1.0, *(tuple(pixdim) + (1.0,) * 7)[:7])
    struct.pack_into("<fff", head, 108, offset, slope, inter)
    head[123] = units
    struct.pack_into("<hh", head, 252, int(qform is not None), int(sform is not None))
    if qform is not None:
        struct.pack_into("<6f", head, 256, *qform)
    if sform is not None:
        struct.pack_into("<12f", head, 280, *(number for row in sform for number in row))
    head[344:348] = b"n+1\0"
    if data is None:
        data = bytes(int(np.prod(np.clip(dims, 0, 64))) * bitpix // 8)
    return bytes(head) + data


def zip_of(files: dict[str, bytes]) -> bytes:
    """An ordinary zip archive."""
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def member(
    name: bytes,
    data: bytes = b"x",
    *,
    method: int = 0,
    flags: int = 0,
    mode: int = 0o100644,
    crc: int | None = None,
    size: int | None = None,
    compressed: int | None = None,
    local_name: bytes | None = None,
    header: int | None = None,
) -> dict:
    """One entry for `raw_zip`; every field may be a lie."""
    packed = zlib.compress(data, 9, -15) if method == 8 else data
    return {
        "name": name,
        "packed": packed,
        "method": method,
        "flags": flags,
        "mode": mode,
        "crc": zlib.crc32(data) if crc is None else crc,
        "size": len(data) if size is None else size,
        "compressed": len(packed) if compressed is None else compressed,
        "local_name": name if local_name is None else local_name,
        "header": header,
    }


def raw_zip(*members: dict, count: int | None = None, comment: bytes = b"") -> bytes:
    """A zip written field by field: local headers, directory, end record."""
    body, directory = bytearray(), bytearray()
    for entry in members:
        at = len(body) if entry["header"] is None else entry["header"]
        facts = struct.pack(
            "<HHHHHIII", 20, entry["flags"], entry["method"], 0, 0x21, entry["crc"], entry["compressed"], entry["size"]
        )
        body += (
            b"PK\3\4" + facts + struct.pack("<HH", len(entry["local_name"]), 0) + entry["local_name"] + entry["packed"]
        )
        directory += (
            b"PK\1\2"
            + struct.pack("<H", 3 << 8 | 20)
            + facts
            + struct.pack("<HHHHHII", len(entry["name"]), 0, 0, 0, 0, entry["mode"] << 16, at)
            + entry["name"]
        )
    number = len(members) if count is None else count
    return (
        bytes(body + directory)
        + b"PK\5\6"
        + struct.pack("<HHHHIIH", 0, 0, min(number, 65535), min(number, 65535), len(directory), len(body), len(comment))
        + comment
    )


def exif(orientation: int) -> bytes:
    """A TIFF block with the orientation tag only."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def gzipped(data: bytes) -> bytes:
    """One gzip member."""
    return gzip.compress(data, 6, mtime=0)
