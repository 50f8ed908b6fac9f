"""What every endpoint does before and after its own lines.

Before: the body is strict JSON (no NaN, no repeated key, at most 32 levels, UTF-8 without BOM) and not compressed.
After: the answer of a POST that carried an Idempotency-Key is stored in the transaction of the deed, and a file that
is not what its Content-Type says is told of in a header.
Every file of routes makes its router with `noun_router()`, so this holds everywhere; `uploads` and `downloads` say in
one line what an endpoint that takes or sends bytes has in common with the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from app.errors import (
    ExpandsTooLarge,
    Forbidden,
    HeadersTooLarge,
    IncompleteBody,
    Invalid,
    InvalidJson,
    InvalidRequest,
    InvalidToken,
    NotFound,
    ProjectNotChosen,
    SlowRequest,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
    UriTooLong,
    may_answer,
)
from app.http.callers import require
from app.http.limits import body_up_to
from app.http.media_types import WARNING
from app.strict_json import parse

PROBLEM = "application/problem+json"
Id = Annotated[UUID, Path(examples=["01936f5e-7c00-7000-8000-000000000001"])]
"""The id of something in an address."""


def _plain_number(text: object) -> object:
    """The text of a whole number; NotFound for other ways to write one, so that a version has one address."""
    if isinstance(text, str) and re.search(r"\d", text) and not re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        raise NotFound
    return text


VersionNumber = Annotated[
    int, BeforeValidator(_plain_number), Path(ge=1, le=2**31 - 1, description="The version's number.", examples=[3])
]
Derived = Annotated[bool, Query(description="Delete what was made from it as well; GET .../deletion lists it.")]
Responses = dict[int | str, dict[str, Any]]

ANY_PROBLEMS = may_answer(
    InvalidRequest,
    ProjectNotChosen,
    Unauthenticated,
    InvalidToken,
    Forbidden,
    UriTooLong,
    Invalid,
    HeadersTooLarge,
    Unavailable,
)
"""What every request may be answered."""
BODY_PROBLEMS = may_answer(InvalidJson, IncompleteBody, SlowRequest, TooLarge, ExpandsTooLarge, UnsupportedMediaType)
"""What a request with a body may be answered as well."""


def noun_router(name: str, prefix: str = "/v1", **options: Any) -> APIRouter:
    """A router for one noun; its endpoints read strictly and say which problems any endpoint may answer."""
    return APIRouter(prefix=prefix, tags=[name], route_class=Endpoint, **options)


def uploads(shape: type | None, scope: str, most: str, body: dict[str, Any], answers: Responses) -> dict[str, Any]:
    """Options of an endpoint that reads its body itself: `@router.post("/images", **uploads(...))`.

    shape  of the JSON that it answers; None: it answers bytes, too
    most   name of the setting that limits the body
    body   what `app.openapi.bodies.body` says of it
    """
    answered = {"response_class": Response} if shape is None else {"response_model": shape}
    return answered | {"openapi_extra": body, "dependencies": [require(scope), body_up_to(most)], "responses": answers}


def downloads(*scopes: str, answers: Responses) -> dict[str, Any]:
    """Options of an endpoint that answers bytes."""
    return {"response_class": Response, "dependencies": [require(*scopes)], "responses": answers}


def merged(*responses: Responses) -> Responses:
    """Several `responses` as one; problems of the same status stand side by side."""
    found: Responses = {}
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


def validated(kind: Any, value: Any, *place: str) -> Any:
    """A part of the body as that type; the refusal names the field in it that is wrong.

    place  where in the body the value stood
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        found = [{**item, "loc": ("body", *place, *item["loc"])} for item in error.errors()]
        for part in reversed(place):
            value = {part: value}
        raise RequestValidationError(found, body=value) from None


def created(shown: Any, new: bool) -> Response:
    """The answer of a POST that made `shown`: 201 with its address, or 200 when it was there before."""
    return Response(shown.model_dump_json(), 201 if new else 200, {"Location": shown.links["self"]}, "application/json")


class Endpoint(APIRoute):
    """A route whose body is read strictly and whose answer may be remembered."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any):
        has_body = not set(options.get("methods") or ()).isdisjoint(("POST", "PUT", "PATCH"))
        options["responses"] = merged(ANY_PROBLEMS, BODY_PROBLEMS if has_body else {}, options.get("responses") or {})
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            _check_encoding(request)
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


def _check_encoding(request: Request) -> None:
    """Refuse what was not inflated on its way in (`app.http.limits.Body`); /v2 reads its own."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    path = request.url.path
    if path.startswith("/v2/") or encoding == "identity" or (encoding == "gzip" and path.startswith("/v1/")):
        return
    raise UnsupportedMediaType(
        f"The body is compressed by {encoding[:32]!r}. Send it without Content-Encoding, or to /v1 with gzip."
    )


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
