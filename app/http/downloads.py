"""Sends stored bytes: with their media type, as an attachment, whole or one range.

Their digest is verified before the first byte leaves, and their name travels as RFC 6266 says. A browser never runs
them.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from app.errors import InvalidRequest, RangeNotSatisfiable
from app.settings import MiB
from app.store.blobs import Blobs

PIECE = MiB // 4
"""What one slow reader holds in memory."""
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
SANDBOX = "sandbox; default-src 'none'"


def download(
    request: Request, blobs: Blobs, project_id: uuid.UUID, sha256: str, size: int, *, media_type: str, name: str
) -> Response:
    """A blob as an answer; 304 when the caller has it, 206 for a range, RangeNotSatisfiable for a wrong one."""
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": disposition(name),
        "Content-Security-Policy": SANDBOX,
        "Cache-Control": "private, no-cache",
    }
    if unchanged(request, etag):
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    if wanted is None or request.headers.get("if-range", etag) != etag:
        start, end, status = 0, size, 200
    else:
        start, end = _range(wanted, size)
        headers["Content-Range"], status = f"bytes {start}-{end - 1}/{size}", 206
    headers["Content-Length"] = str(end - start)
    blobs.verify(project_id, sha256)
    return StreamingResponse(_pieces(blobs, project_id, sha256, start, end), status, headers, media_type)


def unchanged(request: Request, etag: str) -> bool:
    """True when the caller already has this representation."""
    known = request.headers.get("if-none-match")
    return known is not None and (
        known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))
    )


def disposition(name: str) -> str:
    """`attachment` with a plain ASCII name and the real one beside it."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _range(wanted: str, size: int) -> tuple[int, int]:
    if not wanted.startswith("bytes="):
        raise InvalidRequest("Range must be in bytes: `bytes=0-1023`.")
    match = RANGE.fullmatch(wanted.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        raise RangeNotSatisfiable
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise RangeNotSatisfiable(f"There are {size} bytes. Ask for one range inside them, such as `bytes=0-1023`.")
    return start, end


def _pieces(blobs: Blobs, project_id: uuid.UUID, sha256: str, start: int, end: int) -> Iterator[bytes]:
    with blobs.open(project_id, sha256) as file:
        file.seek(start)
        while start < end:
            piece = file.read(min(PIECE, end - start))
            if not piece:
                return
            start += len(piece)
            yield piece
