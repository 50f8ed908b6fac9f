"""Rewrites an untrusted tar archive, gzipped or not, as a zip that `Archive` reads.

The headers are parsed here and not by `tarfile`, which reads headers of any declared size into memory and, in the
Pythons that people have (CVE-2025-8194), never comes back from an entry of negative size. Format: POSIX.1 pax, "ustar
Interchange Format"; names beyond it as GNU tar (type L) and pax (type x) write them.
"""

from __future__ import annotations

import gzip
import io
import re
import zipfile
import zlib
from typing import IO, TYPE_CHECKING

from app.errors import BadArchive, ExpandsTooLarge, UnsupportedArchive

if TYPE_CHECKING:
    from app.settings import Settings

GZIP = b"\x1f\x8b"
BLOCK = 512
_CHUNK = 64 * 1024
_MOST_HEADER = 64 * 1024
"""Bytes of a long name or of pax records; real ones stay below 1 KiB."""
_FILE, _FOLDER, _LONG_NAME, _PAX, _PAX_OF_ALL = b"0\0" + b"7", b"5", b"L", b"x", b"g"


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a tar archive, or something gzipped, which may be one."""
    return head.startswith(GZIP) or head[257:262] == b"ustar"


def as_zip(stream: IO[bytes], into: IO[bytes], limits: Settings) -> None:
    """Write the files of a tar archive into a zip, one after the other.

    Raises UnsupportedArchive (gzipped, and no tar), BadArchive (damaged, a link, a device) and ExpandsTooLarge. Names
    are looked at by who reads the zip.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    packed = stream.read(2) == GZIP
    stream.seek(0)
    most = min(limits.max_dataset_bytes, max(size, BLOCK) * limits.max_archive_ratio if packed else size)
    try:
        source: IO[bytes] = gzip.GzipFile(fileobj=stream) if packed else stream  # type: ignore[assignment]
        _rewritten(_Bounded(source, most), into, limits)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise BadArchive("The gzipped archive is truncated or damaged. Send the whole file.") from None


class _Bounded:
    """Reads at most so many bytes."""

    def __init__(self, stream: IO[bytes], most: int):
        self._stream, self._left, self._most = stream, most + 2 * BLOCK * 20, most  # tar fills up to 20 blocks

    def read(self, size: int) -> bytes:
        """Exactly so many bytes; EOFError where the archive ends before."""
        got = self._stream.read(size)
        self._left -= len(got)
        self._refuse_more()
        if len(got) < size:
            raise EOFError
        return got

    def drain(self) -> None:
        """Read what is left, at the end of which gzip checks all of it."""
        while got := self._stream.read(_CHUNK):
            self._left -= len(got)
            self._refuse_more()

    def _refuse_more(self) -> None:
        if self._left < 0:
            raise ExpandsTooLarge(
                f"The archive expands to more than {self._most} bytes. Split the dataset, or store the images"
                " compressed."
            )


def _rewritten(source: _Bounded, into: IO[bytes], limits: Settings) -> None:
    index, long_name = 0, ""
    with zipfile.ZipFile(into, "w", zipfile.ZIP_STORED) as target:
        while (header := source.read(BLOCK)) != bytes(BLOCK):
            size, kind = _checked(header, index), header[156:157]
            if kind in (_LONG_NAME, _PAX, _PAX_OF_ALL):
                said = _extra(source, size, index)
                if kind == _LONG_NAME:
                    long_name = _text(said.rstrip(b"\0"), index)
                elif kind == _PAX:
                    long_name = _pax_path(said, index) or long_name
                continue
            name, long_name = long_name or _name(header, index), ""
            if kind == _FOLDER:
                continue
            if kind not in (b"0", b"\0", b"7"):
                raise BadArchive(
                    f"Entry {index} of the archive is a link or a device; only files and folders are accepted. Put the"
                    " file itself into the archive."
                )
            if index >= limits.max_archive_entries:
                raise ExpandsTooLarge(
                    f"The archive holds more than {limits.max_archive_entries} entries. Split the dataset."
                )
            _copied(source, size, target, name)
            index += 1
    source.drain()


def _copied(source: _Bounded, size: int, target: zipfile.ZipFile, name: str) -> None:
    entry = zipfile.ZipInfo(name)
    entry.file_size = size
    with target.open(entry, "w") as file:
        for start in range(0, size, _CHUNK):
            file.write(source.read(min(_CHUNK, size - start)))
    source.read(-size % BLOCK)


def _checked(header: bytes, index: int) -> int:
    """The size that a header declares, if its checksum is right."""
    stated = _octal(header[148:156], index)
    if stated != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        if index == 0:
            raise UnsupportedArchive(
                "The bytes are neither a zip nor a tar archive. Send the dataset as .zip or .tar.gz (not 7z or rar)."
            )
        raise BadArchive(f"The header of entry {index} of the tar archive is damaged. Send the whole file.")
    return _octal(header[124:136], index)


def _octal(field: bytes, index: int) -> int:
    if field[:1] == b"\x80":  # GNU: binary where eight digits are too few
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        if index == 0:
            raise UnsupportedArchive(
                "The bytes are neither a zip nor a tar archive. Send the dataset as .zip or .tar.gz (not 7z or rar)."
            )
        raise BadArchive(f"The header of entry {index} of the tar archive is damaged. Send the whole file.")
    return int(digits or b"0", 8)


def _extra(source: _Bounded, size: int, index: int) -> bytes:
    if size > _MOST_HEADER:
        raise BadArchive(
            f"A header of entry {index} of the tar archive has {size} bytes; at most {_MOST_HEADER} are read."
        )
    said = source.read(size)
    source.read(-size % BLOCK)
    return said


def _pax_path(records: bytes, index: int) -> str | None:
    """The path among records of the form `length key=value\\n`."""
    while records:
        length, _, _ = records.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(records):
            raise BadArchive(f"A header of entry {index} of the tar archive is damaged. Send the whole file.")
        record, records = records[: int(length)], records[int(length) :]
        key, _, value = record[len(length) + 1 :].rstrip(b"\n").partition(b"=")
        if key == b"path":
            return _text(value, index)
    return None


def _name(header: bytes, index: int) -> str:
    name, prefix = (header[start:stop].split(b"\0")[0] for start, stop in ((0, 100), (345, 500)))
    ustar = header[257:263] == b"ustar\0"
    return _text(prefix + b"/" + name if ustar and prefix else name, index)


def _text(raw: bytes, index: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadArchive(f"The name of entry {index} of the archive is not UTF-8. Rename the file.") from None
