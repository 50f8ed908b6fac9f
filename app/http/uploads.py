"""Receives files, as raw body or multipart form, and hashes them while they arrive.

What they are is decided by their bytes; a declared type that says otherwise is answered with a header and refuses
nothing. A file waits in a temporary file without a name, so that a client that hangs up, a refusal or a crash leaves
nothing behind. Up to `IN_MEMORY` bytes stay in memory; beyond that a request costs a piece of memory, whatever the size
of its file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import io
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import ChecksumMismatch, IncompleteBody, Invalid, InvalidRequest, UnsupportedMediaType
from app.http.media_types import JSON, contradiction, is_form, is_json, kind_of
from app.imaging import door
from app.imaging.formats import HEAD_BYTES
from app.services import Services
from app.settings import MiB
from app.upload import Upload, label

IN_MEMORY = 1 * MiB
TELLING = 512
"""Bytes after which it is known whether a body is JSON, a form or a file."""
MOST_PARTS = 8
ANY = "file"
"""What the only file of a request is called here, whatever its part is named."""
MOST_FIELD_BYTES = 8 * 1024


@asynccontextmanager
async def received(
    request: Request, services: Services, *, fields: Sequence[str] = ("name",), images: bool = True
) -> AsyncIterator[Upload]:
    """The file of this request, sent raw or as multipart/form-data with these other fields.

    images  whether it is an image, which leaves its identities at the door (`app.imaging.door`)
    """
    async with _arrived(request, services, _Form(None, fields), or_json=False, images=images) as uploads:
        assert isinstance(uploads, dict)
        yield uploads[ANY]


@asynccontextmanager
async def received_or_json(
    request: Request,
    services: Services,
    *,
    files: Sequence[str] = (ANY,),
    fields: Sequence[str] = (),
    images: bool = True,
) -> AsyncIterator[dict[str, Upload] | bytes]:
    """The files of this request by name, the first one of `files` sent raw or some of them as multipart/form-data; or
    its body when that is JSON, up to the limit of JSON.

    images  as in `received`
    """
    form = _Form(None if files == (ANY,) else files, fields)
    async with _arrived(request, services, form, or_json=True, images=images) as body:
        yield body


@dataclass(frozen=True)
class FormSent:
    """A form that has arrived: its files and its other fields, each by name."""

    files: dict[str, Upload]
    fields: dict[str, str]


@asynccontextmanager
async def received_form(
    request: Request, services: Services, *, files: Sequence[str], fields: Sequence[str]
) -> AsyncIterator[FormSent]:
    """A form of another program: it may lack any of these files and fields, and other fields in it are passed over."""
    declared, options = parse_options_header(request.headers.get("content-type"))
    form, stream = _Form(files, fields, strict=False), request.stream()
    head = await _start(stream)
    if not is_form(declared.decode("latin-1"), head):
        raise UnsupportedMediaType("Send the files and fields as multipart/form-data.")
    with ExitStack() as opened:
        spools = {name: opened.enter_context(closing(_Spool(services.settings.scratch))) for name in files}
        await _read_form(head, stream, options.get(b"boundary"), form, spools)
        for spool in spools.values():
            await spool.finish()
        uploads = {name: _upload(spools[name], sent, form.fields) for name, sent in form.files.items()}
        admitted = {name: await _admitted(request, services, upload) for name, upload in uploads.items()}
        yield FormSent({name: opened.enter_context(upload) for name, upload in admitted.items()}, form.fields)


@asynccontextmanager
async def _arrived(
    request: Request, services: Services, form: _Form, *, or_json: bool, images: bool
) -> AsyncIterator[dict[str, Upload] | bytes]:
    declared, options = parse_options_header(request.headers.get("content-type"))
    kind = declared.decode("latin-1")
    stream = request.stream()
    head = await _start(stream)
    if or_json and is_json(kind, head):
        request.scope["toposerve.body"].accept_at_most(services.settings.max_json_bytes)
        warn(request, contradiction(kind, JSON))
        yield b"".join([head, *[chunk async for chunk in stream]])
        return
    with ExitStack() as opened:
        spools = {name: opened.enter_context(closing(_Spool(services.settings.scratch))) for name in form.expected}
        first = spools[form.expected[0]]
        if is_form(kind, head):
            await _read_form(head, stream, options.get(b"boundary"), form, spools)
        else:
            form.files[form.expected[0]], form.types[form.expected[0]] = "", kind
            await first.write(head)
            async for chunk in stream:
                await first.write(chunk)
        for name, spool in spools.items():
            await spool.finish()
            warn(request, contradiction(form.types.get(name, ""), kind_of(spool.head)))
        _check_digest(request, first.digest.digest())
        uploads = {
            name: _upload(spools[name], form.fields.get("name") or sent, form.fields)
            for name, sent in form.files.items()
        }
        boundary = options.get(b"boundary", b"").decode("latin-1") if kind == door.RELATED else None
        yield {
            name: opened.enter_context(await _admitted(request, services, upload, boundary)) if images else upload
            for name, upload in uploads.items()
        }


@contextmanager
def _open(upload: Upload) -> Iterator[Upload]:
    with closing(upload.file):
        yield upload


async def _admitted(
    request: Request, services: Services, upload: Upload, boundary: str | None = None
) -> AbstractContextManager[Upload]:
    """The upload without identities, and sentences for the answer; see `app.imaging.door`."""
    head = upload.file.read(HEAD_BYTES)
    upload.file.seek(0)
    if boundary is None and not door.names_people(head):
        return nullcontext(upload)
    look = partial(door.admitted, services.decoders, services.settings, upload, boundary=boundary)
    found, warnings = await run_sync(look, limiter=services.decode_slots)
    warn(request, " ".join(warnings))
    return _open(found)


def warn(request: Request, sentence: str | None) -> None:
    """Leave a sentence for the header of the answer, beside those that are there; see `app.http.endpoints`."""
    if sentence:
        said = getattr(request.state, "warning", None)
        request.state.warning = f"{said} {sentence}" if said else sentence


async def _start(stream: AsyncIterator[bytes]) -> bytes:
    """The first bytes of a body, enough to tell what it is."""
    head = bytearray()
    async for chunk in stream:
        head += chunk
        if len(head) >= TELLING:
            break
    return bytes(head)


def _upload(spool: _Spool, name: str, fields: dict[str, str]) -> Upload:
    return Upload(spool.file, spool.digest.hexdigest(), spool.size, label(name), fields)


class _Spool:
    """Collects small chunks, so that a thread is asked once for a piece and not once for a packet."""

    def __init__(self, folder: Path):
        self.file: BinaryIO = io.BytesIO()
        self.digest, self.size, self.head = hashlib.sha256(), 0, b""
        self._folder, self._pending = folder, bytearray()

    async def write(self, chunk: bytes) -> None:
        self._pending += chunk
        if len(self._pending) >= IN_MEMORY:
            await run_in_threadpool(self._flush)

    async def finish(self) -> None:
        """Write what is pending and go back to the start."""
        if self.size or len(self._pending) >= IN_MEMORY:
            await run_in_threadpool(self._flush)
        else:
            self._flush()  # into memory, which costs less than the way to a thread and back
        self.file.seek(0)

    def close(self) -> None:
        self.file.close()

    def _flush(self) -> None:
        if self.size == 0:  # the first piece is the whole file, or longer than any head
            self.head = bytes(self._pending[:HEAD_BYTES])
        if self.size == 0 and len(self._pending) >= IN_MEMORY:
            self.file = _nameless(self._folder)
        self.file.write(self._pending)
        self.digest.update(self._pending)
        self.size += len(self._pending)
        self._pending.clear()


def _nameless(folder: Path) -> BinaryIO:
    """An open file that no folder lists; the kernel removes it with the process.

    `TemporaryFile` would do, but readers of images want a name that is a text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"upload-{uuid.uuid4().hex}"
    file = path.open("x+b")
    path.unlink()
    return file


class _Form:
    """The parts of a form: the files and the fields that are expected, each at most once; one file under any name when
    `files` is None.

    strict  the first file must be there, and a field of another name is refused
    """

    def __init__(self, files: Sequence[str] | None, fields: Sequence[str], *, strict: bool = True) -> None:
        self.expected, self._any, self._known, self.strict = list(files or [ANY]), files is None, fields, strict
        self.chunks: list[tuple[str, bytes]] = []
        self.files: dict[str, str] = {}
        self.types: dict[str, str] = {}
        self.fields: dict[str, str] = {}
        self.complete = False
        self._parts = 0
        self._disposition, self._type, self._header, self._value = b"", b"", b"", b""
        self._open_file, self._open_field, self._text = "", "", bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._take_header,
            "on_header_value": self._take_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._parts += 1
        self._disposition, self._type, self._open_file, self._open_field = b"", b"", "", ""
        if self._parts > MOST_PARTS:
            raise Invalid(f"The form has more than {MOST_PARTS} parts. {self._wanted()}")

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        elif self._header.lower() == b"content-type":
            self._type = self._value
        self._header, self._value = b"", b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            name = ANY if self._any else name
            if name in self.files or name not in self.expected:
                raise Invalid(f"The form has a file too many, or one of another name. {self._wanted()}")
            self._open_file, self.files[name] = name, options[b"filename"].decode("utf-8", "replace")
            self.types[name] = parse_options_header(self._type)[0].decode("latin-1")
        elif name in self._known and name not in self.fields:
            self._open_field, self._text = name, bytearray()
        elif self.strict or name in self._known:
            raise Invalid(
                f"The form has a field that is neither a file nor known here, or comes twice. {self._wanted()}"
            )

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._open_file:
            self.chunks.append((self._open_file, data[start:end]))
            return
        if not self._open_field:  # one that is passed over
            return
        self._text += data[start:end]
        if len(self._text) > MOST_FIELD_BYTES:
            raise Invalid(f"`{self._open_field}` is longer than {MOST_FIELD_BYTES} bytes.")

    def _end_part(self) -> None:
        if self._open_field:
            self.fields[self._open_field] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self.complete = True

    def _wanted(self) -> str:
        files = "one file" if self._any else " and ".join(f"a file `{name}`" for name in self.expected)
        return f"Send {files}" + (f" and at most the fields {', '.join(self._known)}." if self._known else ".")


async def _read_form(
    head: bytes, stream: AsyncIterator[bytes], boundary: bytes | None, form: _Form, spools: dict[str, _Spool]
) -> None:
    if not boundary:
        raise InvalidRequest("multipart/form-data needs a boundary in its Content-Type.")
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]  # a dict, not its TypedDict
        chunk = head
        while chunk:
            parser.write(chunk)
            for name, part in form.chunks:
                await spools[name].write(part)
            form.chunks.clear()
            chunk = await anext(stream, b"")
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest("The form is not valid multipart/form-data.") from error
    if not form.complete:
        raise IncompleteBody("The form ended before its last boundary. Send it again.")
    if form.strict and form.expected[0] not in form.files:
        raise Invalid("The form has no file. Send it as a part with a file name.")


def _check_digest(request: Request, digest: bytes) -> None:
    """RFC 9530: `Content-Digest: sha-256=:...:`; other algorithms are ignored, as it says.

    It is that of the bytes on the wire, so of a gzipped body it is not known here; gzip has a checksum of its own.
    """
    if "content-encoding" in request.headers:
        return
    for field in request.headers.get("content-digest", "").split(","):
        algorithm, _, value = field.strip().partition("=")
        if algorithm.lower() != "sha-256":
            continue
        try:
            sent = base64.b64decode(value.strip(":"), validate=True)
        except binascii.Error:
            raise InvalidRequest("Content-Digest must be `sha-256=:<base64>:`.") from None
        if not hmac.compare_digest(sent, digest):
            raise ChecksumMismatch(
                "The bytes that arrived are not those that Content-Digest announces. Send them again."
            )
