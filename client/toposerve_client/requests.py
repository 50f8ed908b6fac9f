"""What the service is asked, step by step, without knowing how requests are sent.

A flow is a generator that yields steps and is given what came of each. `toposerve_client.transport` performs the steps,
blocking or with asyncio, so that everything else is written once.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx

from toposerve_client.errors import ToposerveError, Unreachable, refusal

T = TypeVar("T")
RETRIED = {429, 502, 503, 504}
"""Statuses of a service that is busy, or not there for a moment."""
IN_PROGRESS = "idempotency_in_progress"
"""The code of 409 for a request whose first sending has no answer yet."""
ARRIVED = (httpx.ReadTimeout, httpx.ReadError, httpx.WriteError, httpx.WriteTimeout, httpx.RemoteProtocolError)
"""What goes wrong when the request may have arrived."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 60.0
OCTETS = "application/octet-stream"


@dataclass(frozen=True)
class Request:
    """One request.

    content     the body; a path is read while it is sent
    json        the body as JSON, in place of content
    files       parts of a form, in place of content
    repeatable  whether it may be sent again when nobody knows whether it arrived
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Path | None = None
    json: Any = None
    files: Mapping[str, tuple[str, bytes]] | None = None
    repeatable: bool = True


@dataclass(frozen=True)
class Pause:
    """Wait before the next step."""

    seconds: float


@dataclass(frozen=True)
class Save:
    """Send a request and write the body of a good answer to a file; what comes of it is the answer without its body."""

    request: Request
    path: Path


@dataclass(frozen=True)
class Open:
    """Send a request whose answer is read line by line; what comes of it is `Lines`."""

    request: Request


@dataclass
class Lines:
    """The lines of an answer, which arrive while they are read."""

    response: httpx.Response
    iterator: Any


@dataclass(frozen=True)
class NextLine:
    """Read a line; None after the last."""

    lines: Lines


@dataclass(frozen=True)
class Item(Generic[T]):
    """Hand a value to the caller before going on."""

    value: T


Step = Request | Pause | Save | Open | NextLine
Flow = Generator[Step, Any, T]
"""Steps that end in a value."""
Listing = Generator[Step | Item[T], Any, None]
"""Steps that give values on their way."""


def address(*parts: object) -> str:
    """The path of something under /v1, each part quoted."""
    return "/v1/" + "/".join(quote(str(part), safe="@:") for part in parts)


def new_key() -> str:
    """An Idempotency-Key that nobody used."""
    return uuid4().hex


def exchange(request: Request, url: str, retries: int, *, path: Path | None = None) -> Flow[httpx.Response]:
    """The answer to a request; sent again while the service is busy or not there, with growing pauses.

    url      of the service, for the sentence when it is not there
    retries  how often at most
    path     the file that the body is written to
    Raises Refused for an answer with an error status, Unreachable when there is none.
    """
    for attempt in range(retries + 1):
        wait: float | None = pause_s(attempt)
        try:
            response: httpx.Response = yield (request if path is None else Save(request, path))
        except httpx.TransportError as error:
            why: ToposerveError = unreachable(url, error)
            if isinstance(error, ARRIVED) and not request.repeatable:
                wait = None
        else:
            if not response.is_error:
                return response
            why = refused = refusal(response)
            wait = _told(response, refused.code, wait)
        if wait is None or attempt == retries:
            raise why
        yield Pause(wait)
    raise AssertionError("the last attempt returns or raises")


def pause_s(attempt: int) -> float:
    """Seconds to wait after an attempt, counted from 0; drawn, so that clients do not come back together."""
    return float(min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))


def unreachable(url: str, error: httpx.TransportError) -> Unreachable:
    """The exception for a request that got no answer."""
    said = str(error) or type(error).__name__
    return Unreachable(f"No service answers at {url} ({said}). Check the address, or start one with `toposerve up`.")


def _told(response: httpx.Response, code: str, pause: float | None) -> float | None:
    """Seconds after which a refused request may be accepted; None: never, or later than anybody waits for."""
    if response.status_code not in RETRIED and code != IN_PROGRESS:
        return None
    told = response.headers.get("Retry-After", "")
    wanted = float(told) if told.isdecimal() else pause
    return None if wanted is None or wanted > LONGEST_PAUSE_S else wanted
