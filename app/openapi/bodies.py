"""Bodies, files and headers as the OpenAPI document describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.errors import BlobCorrupt, Gone, NotFound, RangeNotSatisfiable, may_answer
from app.schemas.base import Schema

Content = dict[str, dict[str, Any]]
Responses = dict[int | str, dict[str, Any]]
FILE = {"type": "string", "format": "binary"}
TEXT = {"type": "string"}


def files(*media_types: str) -> Content:
    """A file in one of these forms."""
    return {media: {"schema": FILE} for media in media_types}


def form(required: Sequence[str], **fields: dict[str, Any]) -> Content:
    """A form of several parts."""
    schema = {"type": "object", "required": list(required), "properties": fields, "additionalProperties": False}
    return {"multipart/form-data": {"schema": schema}}


def body(content: Content, said: str | None = None) -> dict[str, Any]:
    """The `openapi_extra` of an endpoint that reads its body itself."""
    about = {} if said is None else {"description": said}
    return {"requestBody": {"required": True, **about, "content": content}}


def download(content: Content, said: str, known: str) -> Responses:
    """A file that may be asked for in parts.

    said   what it is
    known  that the caller has it
    """
    return {
        200: {"content": content, "description": said},
        206: {"content": content, "description": "The range that was asked for."},
        304: {"description": known},
        **may_answer(NotFound, Gone, RangeNotSatisfiable, BlobCorrupt),
    }


def stored_before(shape: type[Schema], made: Responses, said: str) -> Responses:
    """The answer with 200 of a POST whose content was stored before; else it answers as `made` says, with 201."""
    return {200: {"model": shape, "content": made[201]["content"], "description": said}}


def example_of(schema: type[Schema]) -> Any:
    """The example that a schema shows of itself."""
    extra: Any = schema.model_config["json_schema_extra"]
    return extra["examples"][0]


def header(said: str, **schema: Any) -> dict[str, Any]:
    """A response header, a text unless `schema` says otherwise."""
    return {"schema": TEXT | schema, "description": said}
