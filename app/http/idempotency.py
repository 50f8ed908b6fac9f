"""`Idempotency-Key`: a POST that is sent again does nothing again and gets the first answer.

    @router.post("/jobs", dependencies=[require("jobs:write"), once])

The same key with the same request gets the stored answer (with `Idempotency-Replayed: true`), with another request 422,
while the first still runs 409. The claim, the deed and the answer are one transaction, that of `Write`. An endpoint
that streams its body cannot be told apart from another before it was read; it takes `Once` and calls `write` itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.errors import Conflict, IdempotencyConflict
from app.http.callers import Caller
from app.http.resources import Write
from app.store import idempotency as store
from app.store.session import Database
from app.store.tables import IdempotentRequest

KEPT_HEADERS = {"content-type", "location", "etag", "link", "retry-after", "preference-applied"}
REPLAYED = "Idempotency-Replayed"


class Replay(Exception):
    """The answer of the first request, to be given again."""

    def __init__(self, response: Response):
        self.response = response


class Attempt:
    """One request that may have been sent before."""

    def __init__(self, request: Request, caller: Caller, key: str | None):
        self._request, self._project_id, self._key = request, caller.project_id, key
        self._session: Session | None = None

    def look(self, database: Database, body_digest: str) -> None:
        """Raise what the caller must be told when the request was answered before; takes nothing."""
        if self._key is None:
            return
        with database.read() as session:
            row = store.find(session, self._project_id, self._key)
        if row is not None:
            raise _again(row, self._fingerprint(body_digest))

    def write(self, database: Database, body_digest: str, deed: Callable[[Session], Response]) -> Response:
        """What `deed` answers, in one transaction with what it writes and with the claim; raises as `claim` does."""
        with database.write() as session:
            self.claim(session, body_digest)
            response = deed(session)
            self.remember(response)
        return response

    def claim(self, session: Session, body_digest: str) -> None:
        """Go on when this is the first time; otherwise raise what the caller must be told.

        `session` is the transaction of the deed; when that is `Write`, the answer is stored in it after the endpoint
        returned.
        """
        if self._key is None:
            return
        fingerprint = self._fingerprint(body_digest)
        row = store.claim(session, self._project_id, self._key, fingerprint)
        if row is not None:
            raise _again(row, fingerprint)
        self._session = session
        self._request.state.idempotency = self

    def _fingerprint(self, body_digest: str) -> str:
        url = self._request.url
        return hashlib.sha256(f"{self._request.method} {url.path}?{url.query} {body_digest}".encode()).hexdigest()

    def remember(self, response: Response) -> None:
        """Store the answer beside the deed; one that is marked `no-store`, such as a new key, is not kept."""
        if self._session is None or self._key is None:
            return
        headers = {name: value for name, value in response.headers.items() if name in KEPT_HEADERS}
        body = None if response.headers.get("cache-control") == "no-store" else bytes(response.body)
        store.remember(
            self._session, self._project_id, self._key, status=response.status_code, headers=headers, body=body
        )
        self._session = None


def _again(row: IdempotentRequest, fingerprint: str) -> Exception:
    if row.fingerprint != fingerprint:
        return IdempotencyConflict()
    if row.body is None:
        return Conflict(
            "This request was answered already, and its answer held a secret that is not kept. Undo it, or use a new"
            " Idempotency-Key."
        )
    return Replay(Response(row.body, row.status or 200, (row.headers or {}) | {REPLAYED: "true"}))


async def _attempt(
    request: Request,
    caller: Caller,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            pattern=r"^[\x21-\x7e]+$",
            examples=["9b1f0c52-upload-7"],
            description=(
                "Any visible ASCII text of yours that names this request; sent again within 24 hours, it gets the first"
                " answer."
            ),
        ),
    ] = None,
) -> Attempt:
    return Attempt(request, caller, key)


Once = Annotated[Attempt, Depends(_attempt)]
"""For endpoints that stream their body: `look` before the work, `write` for the transaction of the deed."""


async def _body_digest(request: Request) -> str:
    return hashlib.sha256(await request.body()).hexdigest()


def _claim(attempt: Once, digest: Annotated[str, Depends(_body_digest)], session: Write) -> None:
    attempt.claim(session, digest)


once = Depends(_claim)
"""For every other POST that creates: `dependencies=[once]`, and the endpoint writes through `Write`."""


def install(app: FastAPI) -> None:
    """Let a replay end an endpoint from anywhere below it."""

    async def replay(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Replay)
        return error.response

    app.add_exception_handler(Replay, replay)
