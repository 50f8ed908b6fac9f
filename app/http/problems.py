"""The one place where something that went wrong becomes an answer.

Whatever is raised below, the caller gets a problem: as `application/problem+json`, as `{"error": ...}` under /v2 and as
`{"detail": ...}` under the addresses of `ONLY_DETAIL`, because clients of those protocols read nothing else. A browser
that asks for HTML gets `app.state.problem_page`, when the pages set one.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app import errors
from app.errors import Problem

log = structlog.get_logger()

SQLITE_FULL, DISK_FULL = 13, "53100"
"""How SQLite and Postgres name a full disk."""

ONLY_DETAIL = ("/monai/", "/nninteractive/", "/label-studio/")
"""Where clients read an error as `{"detail": ...}` and nothing else."""

BY_STATUS: dict[int, type[Problem]] = {
    400: errors.InvalidRequest,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    406: errors.NotAcceptable,
    413: errors.TooLarge,
    415: errors.UnsupportedMediaType,
    422: errors.Invalid,
    503: errors.Unavailable,
}


def install(app: FastAPI) -> None:
    """Answer every exception of the application."""
    for kind in (
        Problem,
        HTTPException,
        RequestValidationError,
        OSError,
        ClientDisconnect,
        DataError,
        IntegrityError,
        OperationalError,
        PoolTimeout,
    ):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status == 500:
        log.error("server_error", code=problem.code, exc_info=error)
    elif problem.status > 500:  # a traceback for each refusal would cost more than the refusal
        log.warning("not_available", code=problem.code, reason=str(error.__cause__ or error)[:300])
    headers = {"Allow": ", ".join(sorted(_methods(request)))} if problem.status == 405 else {}
    return answer(request, problem, headers)


def problem_of(error: Exception) -> Problem:
    """The problem that an exception means; one that nobody foresaw is `internal`."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            wrong = [_field_error(item, error.body) for item in error.errors()]
            return errors.Invalid(
                " ".join(f"{item['pointer'] or 'body'}: {item['detail'].rstrip('.')}." for item in wrong[:3]),
                errors=wrong,
            )
        case HTTPException():
            return _from_http(error)
        case ClientDisconnect():
            return errors.IncompleteBody()
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return errors.StorageFull()
        case OperationalError() if _disk_is_full(error.orig):
            return errors.StorageFull()
        case OperationalError() | PoolTimeout():
            return errors.Unavailable("The database did not answer in time. Try again in a second.", retry_after_s=1)
        case DataError():
            return errors.Invalid("A value is outside what can be stored.")
        case IntegrityError():
            return errors.Conflict(
                "Another request changed the same thing at the same time. Read it again, then decide."
            )
    return Problem()


def _disk_is_full(cause: BaseException | None) -> bool:
    """Whether the database, SQLite or Postgres, had no room to write."""
    return getattr(cause, "sqlite_errorcode", None) == SQLITE_FULL or getattr(cause, "sqlstate", None) == DISK_FULL


def _from_http(error: HTTPException) -> Problem:
    # FastAPI wraps what happens while it reads a body in a 400; the cause says what it really was.
    cause = error.__cause__
    if isinstance(cause, (Problem, OSError, ClientDisconnect)):
        return problem_of(cause)
    kind = BY_STATUS.get(error.status_code, errors.InvalidRequest if error.status_code < 500 else Problem)
    said = (
        error.detail if isinstance(error.detail, str) and error.detail != HTTPStatus(error.status_code).phrase else None
    )
    return kind(said)


def _field_error(item: Mapping[str, Any], body: Any) -> dict[str, str]:
    """One wrong field, without its value: the value may be a name, a key or a number JSON cannot write."""
    in_body = bool(item["loc"]) and item["loc"][0] == "body"
    place = _sent_names(item["loc"][1:], body, missing=item["type"] == "missing") if in_body else item["loc"]
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in place)
    detail = (
        "There is no field of this name."
        if item["type"] == "extra_forbidden"
        else item["msg"].removeprefix("Value error, ")
    )
    return {"pointer": pointer, "detail": detail}


def _sent_names(place: Sequence[str | int], body: Any, *, missing: bool) -> Iterator[str | int]:
    """The place as the caller knows it: without the names of union members, which pydantic adds and nobody sent."""
    for position, part in enumerate(place):
        sent = isinstance(body, dict) and part in body
        if sent or (isinstance(body, list) and isinstance(part, int) and part < len(body)):
            body = body[part]
            yield part
        elif missing and position == len(place) - 1:
            yield part


def _methods(request: Request) -> Iterator[str]:
    """Every method that some route answers at this address."""
    for context in iter_route_contexts(request.app.router.routes):
        regex = getattr(context, "path_regex", None)
        if regex is not None and regex.match(request.url.path):
            yield from context.methods or ()


def answer(request: Request, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The response that tells a problem, in the words of whoever asks."""
    page = getattr(request.app.state, "problem_page", None)
    path = request.url.path
    # The client is told to hang up where part of its body is still on the way.
    closing = {"Connection": "close"} if problem.status in (400, 408, 413, 431) else {}
    headers = problem.headers() | closing | dict(headers or {})
    if (
        page is not None
        and not path.startswith(("/v1/", "/v2", *ONLY_DETAIL))
        and "text/html" in request.headers.get("accept", "")
    ):
        return page(request, problem, headers)
    body = problem.body(instance=path, request_id=request.scope.get("request_id"))
    media = "application/problem+json"
    if path == "/v2" or path.startswith("/v2/"):
        body, media = body | {"error": problem.detail}, "application/json"
    elif path.startswith(ONLY_DETAIL):
        body, media = {"detail": problem.detail}, "application/json"
    return Response(json.dumps(body, allow_nan=False), problem.status, headers, media)
