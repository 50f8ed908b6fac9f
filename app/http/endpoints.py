"""What every endpoint does before and after its own lines.

Before: the body is strict JSON (no NaN, no repeated key, at most 32 levels, UTF-8 without BOM) and not compressed.
After: the answer of a POST that carried an Idempotency-Key is stored in the transaction of the deed, and a file that
is not what its Content-Type says is told of in a header.
Every room makes its router with `noun_router()`, so this holds everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.params import Form
from fastapi.routing import APIRoute

from app.errors import (
    Forbidden,
    HeadersTooLarge,
    IncompleteBody,
    Invalid,
    InvalidJson,
    InvalidRequest,
    SlowRequest,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
    UriTooLong,
    may_answer,
)
from app.http.media_types import WARNING

PROBLEM = "application/problem+json"
DEEPEST = 32
"""Levels of nesting in a JSON body."""
DIGITS = 400
"""Characters of one number; beyond them a number only costs time."""
BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""Texts as a whole, closed or not, and the brackets between them; possessive, so that no text makes it slow."""


ANY_PROBLEMS = may_answer(InvalidRequest, Unauthenticated, Forbidden, UriTooLong, Invalid, HeadersTooLarge, Unavailable)
"""What every request may be answered."""
BODY_PROBLEMS = may_answer(InvalidJson, IncompleteBody, SlowRequest, TooLarge, UnsupportedMediaType)
"""What a request with a body may be answered as well."""


def noun_router(name: str, prefix: str = "/v1", **options: Any) -> APIRouter:
    """A router for one noun; its endpoints read strictly and say which problems any endpoint may answer."""
    return APIRouter(prefix=prefix, tags=[name], route_class=Endpoint, **options)


def merged(*responses: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Several `responses` as one; problems of the same status stand side by side."""
    found: dict[int | str, dict[str, Any]] = {}
    for status, answer in (pair for each in responses for pair in each.items()):
        before = found.get(status)
        if before is None or PROBLEM not in before.get("content", {}) or PROBLEM not in answer.get("content", {}):
            found[status] = {**(before or {}), **answer}
            continue
        examples = before["content"][PROBLEM]["examples"] | answer["content"][PROBLEM]["examples"]
        said = "; ".join(dict.fromkeys(f"{before['description']}; {answer['description']}".split("; ")))
        found[status] = {
            **answer,
            "description": said,
            "content": {**answer["content"], PROBLEM: {**answer["content"][PROBLEM], "examples": examples}},
        }
    return found


class Endpoint(APIRoute):
    """A route whose body is read strictly and whose answer may be remembered."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any):
        has_body = not set(options.get("methods") or ()).isdisjoint(("POST", "PUT", "PATCH"))
        options["responses"] = merged(ANY_PROBLEMS, BODY_PROBLEMS if has_body else {}, options.get("responses") or {})
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if "content-encoding" in request.headers and not request.url.path.startswith("/v2/"):
                raise UnsupportedMediaType("The body is compressed. Send it without Content-Encoding.")
            if self.body_field is not None and not isinstance(self.body_field.field_info, Form):
                _check_content_type(request)
                request = StrictRequest(request.scope, request.receive)
            response = await handler(request)
            if warning := getattr(request.state, "warning", None):
                response.headers[WARNING] = warning
            attempt = getattr(request.state, "idempotency", None)
            if attempt is not None:
                await run_in_threadpool(attempt.remember, response)
            return response

        return handle


def _check_content_type(request: Request) -> None:
    media, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media.strip().lower() == "application/json" and charset in ("", "utf-8", "utf8"):
        return
    if media or request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        raise UnsupportedMediaType(
            "The body must be JSON in UTF-8. Send it as `Content-Type: application/json`, not as"
            f" `{media[:64] or 'nothing'}`."
        )


class StrictRequest(Request):
    """A request whose `json()` refuses what other readers would read differently."""

    async def json(self) -> Any:
        """The body, or `InvalidJson` with the place."""
        if not hasattr(self, "_json"):
            self._json = parse(await self.body())
        return self._json


def parse(body: bytes) -> Any:
    """Strict JSON, or `InvalidJson` that says where it stops being that."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJson(f"The body is not UTF-8: byte {error.start} cannot be read.") from None
    if text.startswith("\ufeff"):
        raise InvalidJson("The body starts with a byte order mark. Leave it out.")
    _check_depth(text)
    try:
        value = json.loads(
            text, object_pairs_hook=_each_once, parse_constant=_no_constant, parse_int=_whole, parse_float=_real
        )
    except json.JSONDecodeError as error:
        raise InvalidJson(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    if "\\u" in text:  # only an escape can be half of a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidJson("A text holds half of a surrogate pair.") from None
    return value


def _check_depth(text: str) -> None:
    """Count levels before the parser recurses into them."""
    depth = 0
    for token in BRACKETS.finditer(text):
        bracket = token.group()
        if bracket in ("[", "{"):
            depth += 1
            if depth > DEEPEST:
                raise InvalidJson(f"The body is nested more than {DEEPEST} levels deep.")
        elif bracket in ("]", "}"):
            depth -= 1


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidJson("An object names the same key more than once. Keep one of them.")
    return found


def _no_constant(name: str) -> Any:
    raise InvalidJson(f"{name} is not JSON. Leave the field out or send null.")


def _whole(digits: str) -> int:
    _check_length(digits)
    return int(digits)


def _real(digits: str) -> float:
    _check_length(digits)
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise InvalidJson("A number is too large to be represented.")
    return value


def _check_length(digits: str) -> None:
    if len(digits) > DIGITS:
        raise InvalidJson(f"A number has {len(digits)} characters; {DIGITS} are accepted.")
