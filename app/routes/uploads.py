"""One file out of a request, as raw body or as the only file of a multipart form, hashed while it arrives.

It waits in a temporary file without a name, so that a client that hangs up, a refusal or a crash leaves nothing behind.
Up to `IN_MEMORY` bytes stay in memory; beyond that a request costs a piece of memory, whatever the size of its file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import io
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import ChecksumMismatch, IncompleteBody, Invalid, InvalidRequest, UnsupportedMediaType
from app.routes.resources import Services
from app.settings import MiB

IN_MEMORY = 1 * MiB
MOST_PARTS = 8
MOST_FIELD_BYTES = 1024
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Upload:
    """A file that has arrived completely; `file` can seek and stands at its start."""

    file: IO[bytes]
    sha256: str
    bytes: int
    name: str | None
    """The client's file name, made harmless: a label, never a path."""


@asynccontextmanager
async def received(request: Request, services: Services, *media_types: str) -> AsyncIterator[Upload]:
    """The file of this request, sent raw as one of `media_types` (`image/*` is a pattern) or as multipart/form-data."""
    media, options = parse_options_header(request.headers.get("content-type"))
    kind = media.decode("latin-1")
    with closing(_Spool(services.settings.scratch)) as spool:
        if kind == "multipart/form-data":
            name = await _read_form(request, options.get(b"boundary"), spool)
        elif any(re.fullmatch(pattern.replace("*", "[a-z0-9.+-]+"), kind) for pattern in media_types):
            name = None
            async for chunk in request.stream():
                await spool.write(chunk)
        else:
            raise UnsupportedMediaType(f"Send the file as {', '.join(media_types)} or multipart/form-data, not as {kind[:64] or 'nothing'}.")
        await spool.finish()
        _check_digest(request, spool.digest.digest())
        yield Upload(spool.file, spool.digest.hexdigest(), spool.size, label(name))


class _Spool:
    """Collects small chunks, so that a thread is asked once for a piece and not once for a packet."""

    def __init__(self, folder: Path):
        self.file: IO[bytes] = io.BytesIO()
        self.digest, self.size = hashlib.sha256(), 0
        self._folder, self._pending = folder, bytearray()

    async def write(self, chunk: bytes) -> None:
        self._pending += chunk
        if len(self._pending) >= IN_MEMORY:
            await run_in_threadpool(self._flush)

    async def finish(self) -> None:
        """Write what is pending and go back to the start."""
        await run_in_threadpool(self._flush)
        self.file.seek(0)

    def close(self) -> None:
        self.file.close()

    def _flush(self) -> None:
        if self.size == 0 and len(self._pending) >= IN_MEMORY:
            self.file = _nameless(self._folder)
        self.file.write(self._pending)
        self.digest.update(self._pending)
        self.size += len(self._pending)
        self._pending.clear()


def _nameless(folder: Path) -> IO[bytes]:
    """An open file that no folder lists; the kernel removes it with the process. `TemporaryFile` would do, but readers of images want a name that is a text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"upload-{uuid.uuid4().hex}"
    file = path.open("x+b")
    path.unlink()
    return file


class _Form:
    """The parts of a form: exactly one is a file; the only other one may be called `name`."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.name: str | None = None
        self.files = self.parts = 0
        self.complete = False
        self._disposition, self._header, self._value = b"", b"", b""
        self._field: bytearray | None = None

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin, "on_header_field": self._take_header, "on_header_value": self._take_value,
            "on_header_end": self._end_header, "on_headers_finished": self._open, "on_part_data": self._take_data,
            "on_part_end": self._end_part, "on_end": self._end,
        }  # fmt: skip

    def _begin(self) -> None:
        self.parts += 1
        self._disposition, self._field = b"", None
        if self.parts > MOST_PARTS:
            raise Invalid(f"The form has more than {MOST_PARTS} parts; send one file and at most a `name`.")

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" in options:
            self.files += 1
            if self.files > 1:
                raise Invalid("The form has more than one file; send one request for each.")
            self.name = self.name or options[b"filename"].decode("utf-8", "replace")
        elif options.get(b"name") == b"name":
            self._field = bytearray()
        else:
            raise Invalid("The form has a field that is neither a file nor `name`. Leave it out.")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.chunks.append(data[start:end])
            return
        self._field += data[start:end]
        if len(self._field) > MOST_FIELD_BYTES:
            raise Invalid(f"`name` is longer than {MOST_FIELD_BYTES} bytes.")

    def _end_part(self) -> None:
        if self._field:
            self.name = self._field.decode("utf-8", "replace")

    def _end(self) -> None:
        self.complete = True


async def _read_form(request: Request, boundary: bytes | None, spool: _Spool) -> str | None:
    if not boundary:
        raise InvalidRequest("multipart/form-data needs a boundary in its Content-Type.")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        async for chunk in request.stream():
            parser.write(chunk)
            for part in form.chunks:
                await spool.write(part)
            form.chunks.clear()
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest("The form is not valid multipart/form-data.") from error
    if not form.complete:
        raise IncompleteBody("The form ended before its last boundary. Send it again.")
    if form.files == 0:
        raise Invalid("The form has no file. Send the image as a part with a file name.")
    return form.name


def label(name: str | None) -> str | None:
    """A file name as a label: its last part, without control and direction characters, 255 bytes at most."""
    if name is None:
        return None
    last = PurePosixPath(UNPRINTABLE.sub("", name).replace("\\", "/")).name.lstrip(".").strip()
    return last.encode()[:255].decode("utf-8", "ignore") or None


def _check_digest(request: Request, digest: bytes) -> None:
    """RFC 9530: `Content-Digest: sha-256=:...:`; other algorithms are ignored, as it says."""
    for field in request.headers.get("content-digest", "").split(","):
        algorithm, _, value = field.strip().partition("=")
        if algorithm.lower() != "sha-256":
            continue
        try:
            sent = base64.b64decode(value.strip(":"), validate=True)
        except binascii.Error:
            raise InvalidRequest("Content-Digest must be `sha-256=:<base64>:`.") from None
        if not hmac.compare_digest(sent, digest):
            raise ChecksumMismatch("The bytes that arrived are not those that Content-Digest announces. Send them again.")
