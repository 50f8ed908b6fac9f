"""Checks a request's host, address and headers, and the pace of its body.

Plain ASGI, because each layer of a function middleware costs more than reading a small request.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib

from fastapi import Depends, Request
from fastapi.params import Depends as DependsParam
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    ExpandsTooLarge,
    HeadersTooLarge,
    IncompleteBody,
    InvalidRequest,
    Problem,
    SlowRequest,
    TooLarge,
    UriTooLong,
)
from app.http.disconnects import kind_of
from app.http.problems import answer
from app.settings import Settings

MAX_URL = 8 * 1024
MAX_HEADERS = 32 * 1024
MAX_HEADER_COUNT = 200
PACE = 1024
"""Bytes per second that a body must keep up over its whole length, once `body_timeout_s` has passed."""
FORM_ROOM = 64 * 1024
"""What the parts of a multipart form may add to the file in it."""
INFLATED = 256 * 1024
"""Bytes that a piece of a gzipped body gives at once."""
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
MOST_STARTING = 16
"""Requests without a body whose answers are being prepared at once, as many as may read the database: thousands that
come together wait here, where they cost nothing, and those who ask whether the process lives do not wait with them.
"""
PROBES = ("/livez", "/readyz", "/metrics")
PREDICTING = ("/predict", "/infer")
"""How the addresses end at which a program predicts."""
LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


class RequestLimits:
    """Refuse what is too large, too slow or addressed to another host."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings
        # An open service asks for no key; a name that an attacker points at 127.0.0.1 must not reach it.
        self.starting = asyncio.Semaphore(MOST_STARTING)
        self.hosts = LOOPBACK if settings.open and settings.trusted_hosts == ["*"] else settings.trusted_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            await self._as_get(scope, receive, send)
            return
        try:
            self._check(scope)
        except Problem as problem:
            await answer(Request(scope), problem)(scope, receive, send)
            return
        refused = _no_place(scope)
        if refused:
            await asyncio.sleep(scope["app"].state.services.registry.slots.hold_s())
            await answer(Request(scope), refused)(scope, receive, send)
            return
        body = scope["toposerve.body"] = Body(
            scope, receive, self.settings.max_json_bytes, self.settings.body_timeout_s
        )
        if scope["method"] not in ("GET", "HEAD") or scope["path"] in PROBES:
            await self.app(scope, body.receive, send)
            return
        await self.starting.acquire()
        place = _Place(self.starting, send)
        try:
            await self.app(scope, body.receive, place)
        finally:
            place.leave()

    async def _as_get(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer HEAD as GET, without the body; what streams hears that its reader has left."""
        asked = {**scope, "method": "GET"}

        async def head_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})

        try:
            await self(asked, receive, head_only)
        finally:
            if "route" in asked:
                scope["route"] = asked["route"]

    def _check(self, scope: Scope) -> None:
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_URL:
            raise UriTooLong(f"The address is longer than {MAX_URL} bytes.")
        headers = scope["headers"]
        if len(headers) > MAX_HEADER_COUNT or sum(len(name) + len(value) for name, value in headers) > MAX_HEADERS:
            raise HeadersTooLarge(f"At most {MAX_HEADER_COUNT} headers and {MAX_HEADERS} bytes of them are accepted.")
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        named = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if named is None:
            raise InvalidRequest("Send exactly one Host header that names this service.")
        if "*" not in self.hosts and named.group(1).lower() not in self.hosts:
            raise InvalidRequest(
                "This service does not answer to that host name. An administrator may add it to"
                " TOPOSERVE_TRUSTED_HOSTS."
            )


def _no_place(scope: Scope) -> Problem | None:
    """Why a prediction would be refused once it is read, found out here: under overload most are, and each costs time
    that those who are let in wait for.
    """
    if scope["method"] != "POST" or not scope["path"].endswith(PREDICTING):
        return None
    if any(name == b"prefer" for name, _ in scope["headers"]):
        return None  # it becomes a job
    services = getattr(scope["app"].state, "services", None)
    return services.registry.slots.refusal(kind_of(scope)) if services else None


class _Place:
    """`send` of a request that is starting, whose place is free as soon as its answer begins."""

    def __init__(self, places: asyncio.Semaphore, send: Send):
        self._places, self._send, self._left = places, send, False

    async def __call__(self, message: Message) -> None:
        self.leave()
        await self._send(message)

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._places.release()


class Body:
    """The body of one request, bounded in bytes and in time."""

    def __init__(self, scope: Scope, receive: Receive, limit: int, timeout_s: float):
        self.limit, self.timeout_s = limit, timeout_s
        self._receive = receive
        self._declared = _content_length(scope)
        self._got, self._ended = 0, False
        self._started: float | None = None  # when the first piece was waited for
        self._gzip = Gunzip() if _is_gzipped(scope) else None

    async def receive(self) -> Message:
        """The next piece, inflated where the body is gzipped; raises TooLarge, ExpandsTooLarge, SlowRequest,
        IncompleteBody or InvalidRequest.
        """
        if self._gzip is None or self._gzip.has_ended:
            return await self._piece()
        while not self._gzip.has_rest:
            message = await self._piece()
            self._gzip.feed(message.get("body", b""), last=self._ended)
            if self._ended:
                break
        plain = self._gzip.take(self.limit)
        return {"type": "http.request", "body": plain, "more_body": not self._gzip.has_ended}

    async def _piece(self) -> Message:
        """The next piece as it arrives."""
        if self._ended:
            return await self._receive()  # waits for the client to hang up, for as long as the answer takes
        if self._declared is not None and self._declared > self.limit:
            raise self._too_large()
        message = await self._in_time()
        if message["type"] == "http.disconnect":
            raise IncompleteBody
        self._got += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._got > self.limit:
            raise self._too_large()
        if self._ended and self._declared is not None and self._got < self._declared:
            raise IncompleteBody(f"{self._declared} bytes were announced and {self._got} arrived. Send it again.")
        return message

    def accept_at_most(self, limit: int) -> None:
        """Lower the limit, now that it is known what the body is; TooLarge when it is beyond that already."""
        self.limit = limit
        if max(self._declared or 0, self._got) > limit:
            raise self._too_large()
        if self._gzip is not None:
            self._gzip.refuse_more_than(limit)

    async def _in_time(self) -> Message:
        if self._started is None:
            self._started = time.monotonic()
        allowed = self.timeout_s + self._got / PACE - (time.monotonic() - self._started)
        try:
            async with asyncio.timeout(min(self.timeout_s, max(allowed, 0))):
                return await self._receive()
        except TimeoutError:
            raise SlowRequest(
                f"{self._got} bytes of the body arrived and no more came in time. Send it again over a faster"
                " connection."
            ) from None

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than the {self.limit} bytes that this address accepts.")


def _is_gzipped(scope: Scope) -> bool:
    """Whether a body is inflated on its way in; /v2 inflates its own, which may be deflated as well."""
    if not scope["path"].startswith("/v1/"):
        return False
    return [value.strip().lower() for name, value in scope["headers"] if name == b"content-encoding"] == [b"gzip"]


class Gunzip:
    """Inflates a gzipped body in pieces, however much one of them holds."""

    def __init__(self) -> None:
        self._inflater, self._rest, self._last, self._made = zlib.decompressobj(wbits=31), b"", False, 0
        self.has_ended = False
        """All of it was taken."""

    @property
    def has_rest(self) -> bool:
        """Whether there is something to take without feeding more."""
        return bool(self._rest) or self._last

    def feed(self, piece: bytes, *, last: bool) -> None:
        """Add a piece as it arrived."""
        self._rest, self._last = piece, last

    def take(self, limit: int) -> bytes:
        """The next bytes, `INFLATED` at most; ExpandsTooLarge when they are beyond the limit."""
        try:
            plain = self._inflater.decompress(self._rest, INFLATED)
        except zlib.error:
            raise InvalidRequest("The body is not valid gzip. Send it again, or without Content-Encoding.") from None
        if self._inflater.unused_data:
            raise InvalidRequest("The gzip body has something behind its end. Send it as one gzip member.")
        self._rest = self._inflater.unconsumed_tail
        self._made += len(plain)
        self.refuse_more_than(limit)
        if self._last and not self._rest and len(plain) < INFLATED:
            if not self._inflater.eof:
                raise IncompleteBody("The gzip body is cut short. Send it again.")
            self.has_ended = True
        return plain

    def refuse_more_than(self, limit: int) -> None:
        """Raise ExpandsTooLarge when more was made than that."""
        if self._made > limit:
            raise ExpandsTooLarge(
                f"The gzip body expands to more than the {limit} bytes that this address accepts. Send less at once."
            )


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


def body_up_to(setting: str) -> DependsParam:
    """Let an endpoint that streams its body accept as much as a setting says:
    `dependencies=[body_up_to("max_upload_bytes")]`.
    """

    async def allow(request: Request) -> None:
        request.scope["toposerve.body"].limit = getattr(request.app.state.services.settings, setting) + FORM_ROOM

    return Depends(allow)
