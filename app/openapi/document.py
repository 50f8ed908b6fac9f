"""The OpenAPI document of the service."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from app.http.callers import SCHEMES, asks_who
from app.schemas.base import ProblemBody
from app.schemas.edits import StoredMap
from app.schemas.predictions import ReferenceImage

NAMED_BY_HAND = (ProblemBody, ReferenceImage, StoredMap)
"""Shapes that endpoints refer to without taking or returning them as a type."""

DESCRIPTION = """Images in, jobs in, predictions out, results shown.

Send a key as `Authorization: Bearer ts_...`, or a token of the OpenID provider if one is configured; who is a member
of several projects names one in `X-Project`. Everything belongs to that project; what belongs to another does not exist
(404). Errors are `application/problem+json` (RFC 9457) with a stable `code`. Lists page by cursor. A
POST that creates takes `Idempotency-Key`. Times are UTC, ids are UUIDv7, unknown fields are refused."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once per application."""
    if app.openapi_schema is None:
        spec = get_openapi(
            title=app.title, version=app.version, summary=app.summary, description=DESCRIPTION, routes=app.routes
        )
        schemas = spec.setdefault("components", {}).setdefault("schemas", {})
        for shape in NAMED_BY_HAND:
            schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {}) | {shape.__name__: schema}
        spec["components"]["securitySchemes"] = SCHEMES
        for route in app.routes:
            if isinstance(route, APIRoute) and route.include_in_schema and asks_who(route.dependant):
                for method in route.methods or ():
                    spec["paths"][route.path_format][method.lower()]["security"] = [{name: []} for name in SCHEMES]
        for path, item in spec["paths"].items():
            if path.startswith("/v2"):
                _as_plain_json(item)
        app.openapi_schema = spec
    return app.openapi_schema


def _as_plain_json(item: dict[str, Any]) -> None:
    """Clients of the Open Inference Protocol read an error only when it calls itself JSON; see problems.py."""
    for operation in item.values():
        for answer in operation["responses"].values():
            content = answer.get("content", {})
            if "application/problem+json" in content:
                content["application/json"] = content.pop("application/problem+json")


def operations(spec: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of everything that can be asked."""
    return [
        (method.upper(), path, operation) for path, item in spec["paths"].items() for method, operation in item.items()
    ]
