"""What the service can be asked, for programs and for people."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import HTMLResponse

from app.errors import NotFound, may_answer
from app.http.callers import Caller
from app.http.endpoints import merged, noun_router
from app.openapi.document import describe
from app.openapi.reference import page
from app.schemas.base import ROOT_PATH

router = noun_router("service", prefix="")
Text = Annotated[str, Query(max_length=100)]


@router.get(
    "/openapi.json",
    response_class=Response,
    responses={200: {"content": {"application/json": {"example": {"openapi": "3.1.0"}}}}},
)
def document(request: Request, _caller: Caller) -> Response:
    """This description, for programs."""
    served = {"servers": [{"url": prefix}]} if (prefix := ROOT_PATH.get()) else {}
    return Response(json.dumps(describe(request.app) | served), media_type="application/json")


@router.get(
    "/docs",
    response_class=HTMLResponse,
    responses=merged({200: {"content": {"text/html": {"example": "<!doctype html>"}}}}, may_answer(NotFound)),
)
def docs(
    request: Request,
    _caller: Caller,
    tag: Annotated[Text, Query(description="Only the calls of this tag, in full.")] = "",
    q: Annotated[Text, Query(description="Only what mentions these words.")] = "",
    shape: Annotated[Text, Query(description="Only this shape, with its fields.")] = "",
) -> HTMLResponse:
    """This description, for people: with types, and an example by curl and one in Python for each call."""
    return HTMLResponse(page(request.app, tag, q, shape))
