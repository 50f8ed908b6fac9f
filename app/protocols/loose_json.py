"""JSON objects that other programs send in bodies, headers and fields, read leniently."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.errors import Invalid, InvalidRequest
from app.strict_json import parse

Shape = TypeVar("Shape", bound=BaseModel)


def params_of(text: str | bytes | None) -> dict[str, Any]:
    """The JSON object in a form field, a header or a body; empty where nothing was sent."""
    if not text:
        return {}
    sent = parse(text if isinstance(text, bytes) else text.encode())
    if not isinstance(sent, dict):
        raise InvalidRequest("What is sent along must be a JSON object.")
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
