"""The OpenAPI document as pages without script: by tag, by shape, or found by text."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup, escape

from app.errors import NotFound
from app.openapi.document import describe, operations
from app.roles import ROLES, SCOPES

Json = dict[str, Any]
Pieces = list[tuple[str, str | None]]
"""Text, and the shape that it links to."""
ID = "01936f5e-7c00-7000-8000-000000000001"
FILES = {"image/png": "image.png", "application/zip": "dataset.zip", "application/octet-stream": "file.bin"}
"""Media types of bodies, the usual one first, and the file that an example sends."""
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
LENGTHS = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}


@dataclass(frozen=True)
class Operation:
    """One call, as the page shows it."""

    method: str
    path: str
    facts: Json

    @property
    def id(self) -> str:
        return str(self.facts["operationId"])

    @property
    def tag(self) -> str:
        return str((self.facts.get("tags") or ["other"])[0])

    @property
    def sentence(self) -> str:
        """The first sentence of its description."""
        return re.split(r"(?<=\.)\s", self.facts.get("description", ""), maxsplit=1)[0]

    def mentions(self, words: list[str]) -> bool:
        parameters = [f"{each['name']} {each.get('description', '')}" for each in self.facts.get("parameters", [])]
        text = " ".join([self.method, self.path, self.facts.get("description", ""), *parameters]).lower()
        return all(word in text for word in words)


def page(app: FastAPI, tag: str = "", q: str = "", shape: str = "") -> str:
    """The calls of a tag in full, one shape, what a text is found in, or the list of everything; NotFound for a tag
    and a shape that are none.
    """
    spec = describe(app)
    groups: dict[str, list[Operation]] = {}
    for method, path, facts in operations(spec):
        each = Operation(method, path, facts)
        groups.setdefault(each.tag, []).append(each)
    shapes = spec["components"]["schemas"]
    if tag and tag not in groups:
        raise NotFound(f"There is no tag {tag[:32]!r}. There are {', '.join(groups)}.")
    if shape and shape not in shapes:
        raise NotFound(f"There is no shape {shape[:64]!r}. /docs lists all.")
    words = q.lower().split()
    found = {name: kept for name, calls in groups.items() if (kept := [each for each in calls if each.mentions(words)])}
    return _page().render(
        spec=spec,
        groups=groups,
        tag=tag,
        q=q,
        shape=shape,
        listed={} if tag or shape else found,
        shown=groups[tag] if tag else [],
        shapes={name: facts for name, facts in shapes.items() if _shape_mentions(name, facts, words)},
        facts=shapes.get(shape),
        kind=kind,
        examples=partial(examples, spec),
        shape_example=lambda facts: (facts.get("examples") or [None])[0],
        scopes=SCOPES,
        roles=ROLES,
    )


def _shape_mentions(name: str, facts: Json, words: list[str]) -> bool:
    text = " ".join([name, *facts.get("properties", {})]).lower()
    return all(word in text for word in words)


# Types ---------------------------------------------------------------------------------------------------------------


def kind(schema: Json) -> Pieces:
    """What a value of a schema is, in words: `number, above 0, below 1`."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return [(name, name)]
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return [piece for k, each in enumerate(schema[several]) for piece in [*_or(k), *kind(each)]]
    if "const" in schema:
        return [(json.dumps(schema["const"]), None)]
    if "enum" in schema:
        return [(" or ".join(json.dumps(value) for value in schema["enum"]), None)]
    said = "".join(f", {words} {schema[name]:g}" for name, words in BOUNDS.items() if name in schema)
    said += "".join(f", {words.format(schema[name])}" for name, words in LENGTHS.items() if name in schema)
    if schema.get("type") == "array":
        return [("list of ", None), *kind(schema.get("items", {})), (said, None)]
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return [("object of ", None), *kind(schema["additionalProperties"])]
    named = {"uuid": "UUID", "date-time": "time", "date": "date", "binary": "bytes"}.get(schema.get("format", ""))
    plain = {"string": "text", "integer": "whole number", "boolean": "true or false"}
    name = str(schema.get("type", "anything"))
    return [((named or plain.get(name, name)) + said, None)]


def _or(k: int) -> Pieces:
    return [(" or ", None)] if k else []


# Examples ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """One call with values filled in."""

    method: str
    path: str
    params: dict[str, str]
    key: bool
    """Whether it needs a key."""
    media_type: str = ""
    file: str = ""
    json: Any = None
    saved: str = ""
    """The file that the answer goes into; empty: it is JSON."""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        return self.path + (f"?{urlencode(self.params)}" if self.params else "")


def examples(spec: Json, call: Operation) -> tuple[str, str]:
    """The call by curl and with the Python client, with the values of the document; URL and KEY are the reader's."""
    values = {
        place: {each["name"]: _value(each) for each in call.facts.get("parameters", []) if each["in"] == place}
        for place in ("path", "query")
    }
    needed = {each["name"] for each in call.facts.get("parameters", []) if each.get("required")}
    filled = re.sub(r"{(\w+)(:\w+)?}", lambda name: values["path"].get(name[1], name[1]), call.path)
    params = {name: value for name, value in values["query"].items() if name in needed}
    request = _Request(
        call.method,
        filled,
        params,
        bool(call.facts.get("security")),
        **_body(spec, call.facts),
        saved=_saved(call.facts, call.path),
    )
    return _curl(request), _python(request)


def _value(parameter: Json) -> str:
    schema = parameter.get("schema", {})
    given = [*parameter.get("examples", []), *schema.get("examples", [])]
    usual = {"integer": "1", "boolean": "true"}.get(schema.get("type", ""), parameter["name"])
    return str(given[0]) if given else ID if schema.get("format") == "uuid" else str(schema.get("enum", [usual])[0])


def _body(spec: Json, facts: Json) -> Json:
    content = facts.get("requestBody", {}).get("content", {})
    for media_type, file in FILES.items():
        if media_type in content:
            return {"media_type": media_type, "file": file}
    if "application/json" in content:
        return {"media_type": "application/json", "json": _example(spec, content["application/json"])}
    return {}


def _example(spec: Json, content: Json) -> Any:
    if "example" in content:
        return content["example"]
    for each in content.get("examples", {}).values():
        return each["value"]
    schema = content.get("schema", {})
    if "$ref" in schema:
        schema = spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return (schema.get("examples") or [{}])[0]


def _saved(facts: Json, path: str) -> str:
    answers = [answer.get("content", {}) for status, answer in facts["responses"].items() if status.startswith("2")]
    kinds = {media_type for content in answers for media_type in content}
    last = re.sub(r"[{}]", "", path.rpartition("/")[2])
    return "" if not kinds or any("json" in each for each in kinds) else f"answer-{last}"


def _curl(request: _Request) -> str:
    method = (
        "" if request.method == "GET" or (request.method == "POST" and request.media_type) else f" -X {request.method}"
    )
    lines = [f'curl{method} "$URL{request.target}"']
    if request.key:
        lines.append('-H "Authorization: Bearer $KEY"')
    if request.media_type:
        lines.append(f'-H "Content-Type: {request.media_type}"')
    if request.file:
        lines.append(f"--data-binary @{request.file}")
    elif request.media_type:
        lines.append(f"--data {shlex.quote(json.dumps(request.json, ensure_ascii=False))}")
    if request.saved:
        lines.append(f"--output {request.saved}")
    return " \\\n  ".join(lines)


def _python(request: _Request) -> str:
    told = [f'"{request.method}"', json.dumps(request.path)]
    told += [f"params={request.params!r}"] if request.params else []
    told += (
        [f'content=Path("{request.file}")', f'headers={{"Content-Type": "{request.media_type}"}}']
        if request.file
        else []
    )
    told += [f"json={request.json!r}"] if request.media_type and not request.file else []
    paths = ["from pathlib import Path", ""] if request.file or request.saved else []
    done = f'Path("{request.saved}").write_bytes(answer.content)' if request.saved else "print(answer.text)"
    return "\n".join(
        [
            *paths,
            "from toposerve_client import Client",
            "",
            "with Client(URL, KEY) as client:" if request.key else "with Client(URL) as client:",
            f"    answer = client.request({', '.join(told)})",
            f"    {done}",
        ]
    )


def _prose(text: str | None) -> Iterator[Markup]:
    """The paragraphs of a text, with its names in backquotes as code."""
    for paragraph in (text or "").split("\n\n"):
        yield Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(paragraph))))


def _inline(text: str | None) -> Markup:
    return Markup(" ").join(_prose(text))


@lru_cache
def _page() -> Any:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "prose": _prose,
        "inline": _inline,
    }
    return environment.get_template("reference.html")
