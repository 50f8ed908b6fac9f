"""JSON read strictly: UTF-8 without BOM, no NaN, no repeated key, at most 32 levels."""

from __future__ import annotations

import json
import re
from typing import Any

from app.errors import InvalidJson

DEEPEST = 32
"""Levels of nesting in a JSON body."""
DIGITS = 400
"""Characters of one number; beyond them a number only costs time."""
BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""Texts as a whole, closed or not, and the brackets between them; possessive, so that no text makes it slow."""


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
