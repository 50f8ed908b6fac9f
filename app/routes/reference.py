"""What the service can be asked, for programs and for people."""

from __future__ import annotations

import json

from fastapi import Request, Response
from fastapi.responses import HTMLResponse

from app.http.callers import Caller
from app.http.endpoints import noun_router
from app.openapi.document import describe, page

router = noun_router("service", prefix="")


@router.get(
    "/openapi.json",
    response_class=Response,
    responses={200: {"content": {"application/json": {"example": {"openapi": "3.1.0"}}}}},
)
def document(request: Request, _caller: Caller) -> Response:
    """This description, for programs."""
    return Response(json.dumps(describe(request.app)), media_type="application/json")


@router.get(
    "/docs", response_class=HTMLResponse, responses={200: {"content": {"text/html": {"example": "<!doctype html>"}}}}
)
def docs(request: Request, _caller: Caller) -> HTMLResponse:
    """This description, for people."""
    return HTMLResponse(page(request.app))
