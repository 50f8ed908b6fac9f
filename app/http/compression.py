"""Gzips long texts that are answered to GET.

Left out: images and masks, which are compressed already; answers in pieces, such as events; and answers with an ETag
that may come back in If-Match, because a compressed answer is another representation. Pages are packed although they
hold a token beside what an address says (BREACH): the cookie is SameSite=Strict, so nobody else can ask for them.
"""

from __future__ import annotations

import gzip

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.accept import takes_gzip

TEXTS = ("application/json", "application/problem+json", "text/html", "text/csv", "application/graphml+xml")
STATIC = ("text/css", "text/javascript", "image/svg+xml")
"""Files of ours: their ETag is only ever compared, so it may become a weak one."""
LEAST = 1024
"""Bytes below which an answer fits into a packet or two as it is."""
LONG = 64 * 1024
"""Bytes from which a thread packs them, so that the event loop goes on."""
LEVEL = 5


class Compression:
    """Packs the answers to callers that name gzip in Accept-Encoding, and says to caches what it depends on."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            accepted = next((value for name, value in scope["headers"] if name == b"accept-encoding"), b"")
            send = _Packed(send, wanted=takes_gzip(accepted.decode("latin-1")))
        await self.app(scope, receive, send)


class _Packed:
    """`send` of one answer."""

    def __init__(self, send: Send, *, wanted: bool):
        self.send, self.wanted = send, wanted
        self.start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            message = {**message, "headers": headers.raw}
            if _may_be_packed(headers):
                headers.add_vary_header("Accept-Encoding")
                if self.wanted:
                    self.start = message
                    return
        elif self.start is not None:
            start, self.start = self.start, None
            message = await _packed(start, message)
            await self.send(start)
        await self.send(message)


def _may_be_packed(headers: MutableHeaders) -> bool:
    media = headers.get("content-type", "").partition(";")[0]
    kept = "content-encoding" in headers or ("etag" in headers and media not in STATIC)
    return media in (*TEXTS, *STATIC) and not kept and int(headers.get("content-length", 0)) >= LEAST


async def _packed(start: Message, body: Message) -> Message:
    """The whole body, packed, with what `start` says of it; as it is where more of it is to come."""
    content = body.get("body", b"")
    if body.get("more_body"):
        return body
    headers = MutableHeaders(raw=start["headers"])
    if not content:  # the answer to HEAD: how long the packed one would be is not known
        del headers["content-length"]
        return body
    if len(content) >= LONG:
        content = await run_in_threadpool(_gzip, content)
    else:
        content = _gzip(content)
    headers["content-encoding"], headers["content-length"] = "gzip", str(len(content))
    if "etag" in headers:
        headers["etag"] = "W/" + headers["etag"]
    return {**body, "body": content}


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, LEVEL, mtime=0)
