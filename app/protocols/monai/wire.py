"""What all calls of MONAI Label share: routers, and JSON in odd places."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError

from app.errors import Invalid, InvalidRequest
from app.http.endpoints import noun_router
from app.services import Services
from app.store import labels, tables
from app.strict_json import parse

Shape = TypeVar("Shape", bound=BaseModel)


def new_router() -> APIRouter:
    """A router under `/monai`. Its calls are described by MONAI Label's own document, not by ours."""
    return noun_router("MONAI Label", prefix="/monai", include_in_schema=False)


def params_of(text: str | bytes | None) -> dict[str, Any]:
    """The JSON object in a form field or a body; empty where nothing was sent."""
    if not text:
        return {}
    sent = parse(text if isinstance(text, bytes) else text.encode())
    if not isinstance(sent, dict):
        raise InvalidRequest("params must be a JSON object.")
    return sent


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object of a body, whatever its Content-Type; empty where there is none."""
    return params_of(await request.body())


def checked(shape: type[Shape], given: dict[str, Any]) -> Shape:
    """The parameters as that shape; Invalid names the first that is wrong."""
    try:
        return shape.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = "/".join(map(str, first["loc"])) or "params"
        raise Invalid(f"{name}: {first['msg']}.", errors=[{"pointer": f"/{name}", "detail": first["msg"]}]) from None


def written(when: datetime) -> str:
    """A time as MONAI Label writes it, in UTC."""
    return f"{when:%Y-%m-%d %H:%M:%S}"


def image_of(services: Services, project_id: UUID, name: str) -> tables.Image:
    """The stored image of that id or name, or NotFound."""
    with services.database.read() as session:
        return labels.image_named(session, project_id, name)
