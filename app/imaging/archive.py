"""Reads untrusted zip archives: entries are checked against the directory before they are inflated.

The directory is parsed here and not by `zipfile`, which builds an object for each of a million claimed entries, cuts
names at NUL, allows overlaps and duplicates, and trusts the directory more than the entries. Nothing is extracted:
names are labels, entries are bytes in memory, one at a time. Format: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local
header), 4.3.12 (directory), 4.3.14 to 4.3.16 (ends), 4.5.3 (zip64).
"""

from __future__ import annotations

import io
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from app.errors import BadArchive, ChecksumMismatch, ExpandsTooLarge, TooLarge, UnsupportedArchive

if TYPE_CHECKING:
    from app.settings import Settings

_LOCAL, _DIRECTORY, _END, _END64, _LOCATOR64 = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"
_STORED, _DEFLATED = 0, 8
_UTF8, _SECRET = 1 << 11, 1 << 0 | 1 << 6 | 1 << 13  # flags: UTF-8 name; encrypted, strongly encrypted, masked headers
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the zip64 field"
_NAME_BYTES = 255
_RECORD_BYTES = 1024  # of one directory record; real ones stay below 400
_CHUNK = 64 * 1024
_NESTED = re.compile(r"\.(zip|7z|rar|tar|tgz|tbz2?|txz|bz2|xz|zst|(?<!\.nii\.)gz)$", re.IGNORECASE)
_UNSAFE = re.compile("[\x00-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # controls, text direction overrides


@dataclass(frozen=True)
class Entry:
    """A file in the archive, as its directory describes it."""

    index: int
    name: str
    size: int
    compressed: int
    crc: int
    deflated: bool
    header: int  # offset of its local header
    start: int = 0  # offset of its data


class Archive:
    """The files of a zip archive, in the order of its directory; folders are left out.

    Raises UnsupportedArchive (not a zip), BadArchive (an entry that is not accepted, named by its index),
    ExpandsTooLarge and TooLarge (over the limits). All of it from the directory and the local headers; `read` checks
    size and checksum again.
    """

    def __init__(self, stream: IO[bytes], limits: Settings):
        self._stream = stream
        start, size, count = _end_of_directory(stream)
        if count > limits.max_archive_entries or size > limits.max_archive_entries * _RECORD_BYTES:
            raise ExpandsTooLarge(
                f"The archive declares {count} entries in a directory of {size} bytes; at most"
                f" {limits.max_archive_entries} entries are accepted. Split the dataset."
            )
        stream.seek(start)
        entries = list(_records(stream.read(size), count))
        _refuse_too_large(entries, limits)
        _refuse_twins(entries)
        self.entries = [entry for entry in _placed(stream, entries, start) if not entry.name.endswith("/")]

    def read(self, entry: Entry) -> bytes:
        """The bytes of one entry; never more than it declares, and exactly what its checksum says."""
        data = bytearray()
        for piece in self.pieces(entry):
            data += piece
        return bytes(data)

    def pieces(self, entry: Entry) -> Iterator[bytes]:
        """The bytes of one entry piece by piece; valid only when the last one has come."""
        size = crc = 0
        for piece in self._inflated(entry):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            if size > entry.size:
                raise ExpandsTooLarge(
                    f"Entry {entry.index} of the archive expands beyond the {entry.size} bytes it declares. Make the"
                    " archive again."
                )
            yield piece
        if size < entry.size:
            raise BadArchive(
                f"Entry {entry.index} of the archive holds {size} of the {entry.size} bytes it declares. Make the"
                " archive again."
            )
        if crc != entry.crc:
            raise ChecksumMismatch(
                f"Entry {entry.index} of the archive does not match its checksum: the archive was damaged on its way."
                " Send it again."
            )

    def _inflated(self, entry: Entry) -> Iterator[bytes]:
        inflater = zlib.decompressobj(-15)
        self._stream.seek(entry.start)
        left = entry.compressed
        while left and (raw := self._stream.read(min(_CHUNK, left))):
            left -= len(raw)
            if not entry.deflated:
                yield raw
                continue
            while raw:
                try:
                    yield inflater.decompress(raw, 16 * _CHUNK)
                except zlib.error:
                    raise BadArchive(
                        f"Entry {entry.index} of the archive cannot be inflated: it is damaged. Send it again."
                    ) from None
                raw = inflater.unconsumed_tail


def _end_of_directory(stream: IO[bytes]) -> tuple[int, int, int]:
    """Where the directory starts, its bytes and the number of its records, zip64 or not."""
    end = stream.seek(0, 2)
    stream.seek(0)
    if stream.read(4) not in (_LOCAL, _END):
        raise UnsupportedArchive(
            f"The {end} bytes are not a zip archive{': the body is empty' if not end else ''}. Send the dataset as .zip"
            " or .tar.gz (not 7z or rar)."
        )
    tail_at = stream.seek(max(0, end - 22 - _FULL16))
    tail = stream.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise BadArchive("The zip archive has no end record: it is truncated. Send the whole file.")
    count, size, start = struct.unpack("<HII", tail[at + 10 : at + 20])
    if count == _FULL16 or _FULL32 in (size, start):
        count, size, start = _end64(stream, tail_at + at) or (count, size, start)
    if start + size > tail_at + at:
        raise BadArchive(
            f"The zip directory claims bytes {start} to {start + size} of {end}: the archive is truncated or damaged."
            " Send the whole file."
        )
    return start, size, count


def _end64(stream: IO[bytes], end_at: int) -> tuple[int, int, int] | None:
    stream.seek(max(0, end_at - 20))
    locator = stream.read(20)
    if locator[:4] != _LOCATOR64:
        return None
    stream.seek(struct.unpack("<Q", locator[8:16])[0] & 0x7FFFFFFFFFFFFFFF)
    record = stream.read(56)
    if record[:4] != _END64 or len(record) < 56:
        raise BadArchive("The zip64 end record is missing: the archive is truncated or damaged. Send the whole file.")
    count, size, start = struct.unpack("<QQQ", record[32:56])
    return count, size, start


def _records(directory: bytes, count: int) -> Iterator[Entry]:
    at = 0
    for index in range(count):
        record = directory[at : at + 46]
        if len(record) < 46 or record[:4] != _DIRECTORY:
            raise BadArchive(
                f"The zip directory ends after {index} of {count} entries: the archive is truncated or damaged. Send"
                " the whole file."
            )
        _made_by, flags, method = struct.unpack("<5xB2xHH", record[:12])
        crc, compressed, size, name_bytes, extra_bytes, comment_bytes = struct.unpack("<IIIHHH", record[16:34])
        attributes, header = struct.unpack("<II", record[38:46])
        name = directory[at + 46 : at + 46 + name_bytes]
        extra = directory[at + 46 + name_bytes : at + 46 + name_bytes + extra_bytes]
        size, compressed, header = _wide(extra, size, compressed, header)
        _refuse_kind(index, flags, method, attributes >> 16)
        yield Entry(index, _safe_name(index, name, flags), size, compressed, crc, method == _DEFLATED, header)
        at += 46 + name_bytes + extra_bytes + comment_bytes
    if at != len(directory):
        raise BadArchive(
            f"The zip directory holds {len(directory) - at} bytes beyond its {count} entries. Make the archive again."
        )


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """Replace each value that says "see the zip64 field" by the next number there."""
    numbers = b""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 1:
            numbers = extra[4 : 4 + length]
        extra = extra[4 + length :]
    wide = iter(struct.unpack(f"<{len(numbers) // 8}Q", numbers[: len(numbers) // 8 * 8]))
    return tuple(next(wide, value) if value == _FULL32 else value for value in values)


def _refuse_kind(index: int, flags: int, method: int, mode: int) -> None:
    if flags & _SECRET:
        raise BadArchive(f"Entry {index} of the archive is encrypted. Make the archive without a password.")
    if method not in (_STORED, _DEFLATED):
        raise BadArchive(
            f"Entry {index} of the archive is compressed by method {method}; stored and deflated are accepted. Make the"
            " archive with `zip`."
        )
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadArchive(
            f"Entry {index} of the archive is a link or a device; only files and folders are accepted. Put the file"
            " itself into the archive."
        )


def _safe_name(index: int, raw: bytes, flags: int) -> str:
    """The name in NFC, if it could stand below any folder on any system."""
    try:
        name = unicodedata.normalize("NFC", raw.decode("utf-8" if flags & _UTF8 else "cp437"))
        name = name.replace("\\", "/").removeprefix("./")  # as Windows and bsdtar write them
    except UnicodeDecodeError:
        raise BadArchive(f"The name of entry {index} of the archive is not UTF-8. Rename the file.") from None
    parts = name.removesuffix("/").split("/")
    if (
        len(raw) > _NAME_BYTES
        or _UNSAFE.search(name)
        or re.match("[A-Za-z]:", name)
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise BadArchive(
            f"The name of entry {index} of the archive is not a plain relative path of at most {_NAME_BYTES} bytes (no"
            " .., drive or control character). Rename the file."
        )
    if _NESTED.search(name):
        raise BadArchive(f"Entry {index} of the archive is itself an archive. Put its files into one zip.")
    return name


def _refuse_too_large(entries: list[Entry], limits: Settings) -> None:
    size, compressed = sum(entry.size for entry in entries), sum(entry.compressed for entry in entries)
    if size > limits.max_dataset_bytes:
        raise ExpandsTooLarge(
            f"The archive declares {size} bytes; at most {limits.max_dataset_bytes} are accepted. Split the dataset."
        )
    if size > limits.max_archive_ratio * max(compressed, 1):
        raise ExpandsTooLarge(
            f"The archive declares {size} bytes from {compressed}, more than {limits.max_archive_ratio} to 1. Store the"
            " images compressed, as PNG or .nii.gz."
        )
    for entry in entries:
        if entry.size > limits.max_upload_bytes:
            raise TooLarge(
                f"Entry {entry.index} of the archive declares {entry.size} bytes; at most {limits.max_upload_bytes} are"
                " accepted for one image."
            )


def _refuse_twins(entries: list[Entry]) -> None:
    seen: dict[str, int] = {}
    for entry in entries:
        first = seen.setdefault(entry.name.rstrip("/").casefold(), entry.index)
        if first != entry.index:
            raise BadArchive(
                f"Entries {first} and {entry.index} of the archive have the same name, or differ in case only. Rename"
                " one."
            )


def _placed(stream: IO[bytes], entries: list[Entry], directory: int) -> Iterator[Entry]:
    """Each entry with the offset of its data, once all local headers agree with the directory and no two entries
    overlap.
    """
    free = 0
    placed = {}
    for entry in sorted(entries, key=lambda entry: entry.header):
        stream.seek(entry.header)
        local = stream.read(30)
        if entry.header < free or len(local) < 30 or local[:4] != _LOCAL:
            raise BadArchive(
                f"Entry {entry.index} of the archive overlaps another or does not begin where the directory says. Make"
                " the archive again."
            )
        flags, method = struct.unpack("<HH", local[6:10])
        name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
        start = entry.header + 30 + name_bytes + extra_bytes
        free = start + entry.compressed
        if (
            free > directory
            or flags & _SECRET
            or (method == _DEFLATED) != entry.deflated
            or not (entry.deflated or entry.size == entry.compressed)
        ):
            raise BadArchive(
                f"Entry {entry.index} of the archive and the directory contradict each other. Make the archive again."
            )
        if _safe_name(entry.index, stream.read(name_bytes), flags) != entry.name:
            raise BadArchive(
                f"Entry {entry.index} of the archive has another name than the directory gives it. Make the archive"
                " again."
            )
        placed[entry.index] = Entry(**{**vars(entry), "start": start})
    return (placed[entry.index] for entry in entries)


# Written ------------------------------------------------------------------------------------------------------------


class Outbox(io.RawIOBase):
    """A file that only remembers what was written since somebody last took it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._pieces.append(bytes(content))
        return len(content)

    def take(self) -> bytes:
        """Everything since the last time."""
        taken, self._pieces = b"".join(self._pieces), []
        return taken


def entry(name: str, size: int, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    """An entry of the archive; masks are compressed already.

    Its size says beforehand whether it needs the 64 bit form.
    """
    entry = zipfile.ZipInfo(name)
    entry.file_size, entry.compress_type, entry.external_attr = size, compression, 0o644 << 16
    return entry
