"""For every request an id, a log line, metrics, and security headers.

Labels are route templates, never addresses, so that no id or name becomes a label. `X-Request-ID` is taken from the
caller when it is a plain word, or from `traceparent`, else made; it is in the answer, in every log line and in
problems.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import Request
from fastapi.routing import iter_route_contexts
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Problem
from app.http.problems import answer

disable_created_metrics()  # one line more for each of the others, which nobody reads

log = structlog.get_logger()

SECONDS = Histogram(
    "toposerve_request_seconds",
    "Time to the end of the answer.",
    ["route"],  # alone: each label more would multiply the lines of every bucket
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
REQUESTS = Counter("toposerve_requests", "Answers, by what was asked and how it ended.", ["method", "route", "status"])
IN_FLIGHT = Gauge("toposerve_requests_in_flight", "Requests being answered.")
FAILURES = Counter("toposerve_failures_total", "Answers nobody foresaw.", ["route"])

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
QUIET = {"/livez", "/readyz", "/metrics"}
"""Asked every few seconds by machines; their lines are written at level debug."""

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": (
        b"default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self';"
        b" frame-ancestors 'none'"
    ),
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}


class Telemetry:
    """The outermost layer: nothing leaves the process without it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["request_id"] = request_id = _request_id(scope)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, told = time.perf_counter(), _Told(send, request_id)
        with IN_FLIGHT.track_inprogress():
            try:
                await self.app(scope, receive, told)
            except Exception as error:
                log.exception("unhandled_exception", route=_template(scope))
                FAILURES.labels(_template(scope)).inc()
                if told.status is not None:
                    raise  # the answer is half sent; the server cuts the connection, so nobody takes it for whole
                await answer(Request(scope), Problem())(scope, receive, told)
                del error
            finally:
                _note(scope, told.status, time.perf_counter() - started)


class _Told:
    """`send`, with our headers added and the status remembered."""

    def __init__(self, send: Send, request_id: str):
        self._send, self._request_id = send, request_id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name for name, _ in message["headers"]}
            ours = [(name, value) for name, value in HEADERS.items() if name not in given]
            message = {**message, "headers": [*message["headers"], *ours, (b"x-request-id", self._request_id.encode())]}
        await self._send(message)


def server_timing(spent_ms: Mapping[str, float]) -> dict[str, str]:
    """The header that tells a browser how many milliseconds each phase took."""
    return {"Server-Timing": ", ".join(f"{phase};dur={spent:.3f}" for phase, spent in spent_ms.items())}


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name == b"x-request-id" and REQUEST_ID.fullmatch(text):
            return text
        if name == b"traceparent" and (trace := TRACEPARENT.fullmatch(text)):
            return trace.group(1)
    return uuid.uuid4().hex


def _note(scope: Scope, status: int | None, seconds: float) -> None:
    route = _template(scope)
    method = scope["method"] if scope["method"] in METHODS else "other"
    # 499: the client hung up before it was answered.
    REQUESTS.labels(method, route, str(status or 499)).inc()
    SECONDS.labels(route).observe(seconds)
    write = log.debug if route in QUIET else log.info
    write("request", method=method, route=route, status=status or 499, ms=round(seconds * 1000, 1))


def _template(scope: Scope) -> str:
    """`/v1/images/{image_id}`; `unknown` where no route answers."""
    route: Any = scope.get("route")
    return getattr(route, "path_format", None) or "unknown"


def templates(app: Any) -> set[str]:
    """Every label that `route` can have, for the test that holds them small."""
    made = [each for route in app.router.routes for each in (route.load() if hasattr(route, "load") else [route])]
    return {context.path_format for context in iter_route_contexts(made) if context.path_format} | {"unknown"}
