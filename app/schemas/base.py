"""Base types of the schemas: text, whole and real numbers, names.

Unknown fields are refused, because a misspelt option that is silently ignored trains the wrong model for hours. Both
databases must accept what passes here: no NUL, no surrogate, NFC text; finite numbers; integers of 53 bits at most.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


class Schema(BaseModel):
    """A shape that crosses the wire."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True)

    @classmethod
    def of(cls, source: object, /, **facts: Any) -> Self:
        """The shape with these facts; its other fields are the attributes of `source` (a row) of the same name."""
        named = {
            name: getattr(source, name) for name in cls.model_fields if name not in facts and hasattr(source, name)
        }
        return cls(**named, **facts)


PART = ConfigDict(**Schema.model_config, defer_build=True)
"""The model_config of shapes that only occur in others: a validator of their own is built when somebody asks for it."""


def _clean(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not hold a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not hold half of a surrogate pair") from None
    return unicodedata.normalize("NFC", text)


ROOT_PATH: ContextVar[str] = ContextVar("root_path", default="")
"""The path prefix under which the present request reached the service (`app.http.root_path`)."""

Address = Annotated[str, PlainSerializer(lambda address: ROOT_PATH.get() + address, return_type=str)]
"""An address of this service, `/v1/...`; in answers it begins with the prefix of the request."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Label = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_clean)]
"""Words of a person, shown back escaped, never used as a path."""

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=NAME)]
"""An identifier chosen by a person: a letter or digit, then letters, digits, `.`, `_`, `-`; 64 at most."""

Whole = Annotated[int, Field(strict=True, ge=-(2**53) + 1, le=2**53 - 1)]
"""A whole number that JSON readers keep exactly; `true` and `"5"` are refused."""

Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; `"0.5"` is refused."""

_Side = Field(ge=1e-9, le=1e6, description="mm")
"""From a hundredth of an atom: squares of smaller numbers would not be told from 0."""

Spacing = Annotated[list[Annotated[Real, _Side]], Field(min_length=2, max_length=3, examples=[[5, 0.7, 0.7]])]
"""Size of a pixel in mm along rows and columns, or planes, rows and columns."""


def _sides(sent: object) -> object:
    """`5, 0.7, 0.7` as a query may hold it, as a list."""
    return sent[0].split(",") if isinstance(sent, list) and len(sent) == 1 and isinstance(sent[0], str) else sent


SpacingQuery = Annotated[
    list[Annotated[float, _Side]],
    Field(min_length=2, max_length=3, examples=[[5, 0.7, 0.7]]),
    BeforeValidator(_sides),
]
"""The same in a query: `spacing_mm=5,0.7,0.7`."""

Flag = Annotated[bool, Field(strict=True)]

ModelRef = Annotated[
    str,
    Field(
        max_length=160,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[A-Za-z0-9][A-Za-z0-9._-]{0,63}|:[1-9][0-9]{0,8})?$",
        examples=["membranes@champion"],
    ),
]
"""`name` (its newest version), `name@alias` or `name:3`."""

DatasetRef = Annotated[
    str, Field(max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[1-9][0-9]{0,8})?$", examples=["isbi12@1"])
]
"""`name` (its newest version) or `name@1`."""


def by(sides: Iterable[int]) -> str:
    """`256 x 310`: the sides of an image as sentences name them."""
    return " x ".join(str(side) for side in sides)


class FieldError(Schema):
    """One wrong field."""

    pointer: str
    """JSON pointer to the field."""
    detail: str
    """What was expected."""


class ProblemBody(BaseModel):
    """RFC 9457 problem+json: the one shape of every error."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: str
    """A URI that names the kind of problem."""
    title: str
    status: int
    detail: str
    """What was expected, what arrived, what to do next."""
    code: str
    """Stable, for programs."""
    errors: list[FieldError] = []
    instance: str | None = None
    request_id: str | None = None


def example(value: dict[str, Any]) -> ConfigDict:
    """A model_config that shows one realistic example in the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [value]})
