"""The form that submits a job, with one field for each field of its spec."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python
from sqlalchemy import Select
from sqlalchemy.orm import Session

from app import queue
from app.admission import jobs as admission
from app.errors import Invalid, InvalidJson, NotFound
from app.http.callers import Caller, require
from app.http.resources import Read, ServicesDep
from app.job_kinds import KINDS, JobSpec
from app.pages import dicomweb_rules
from app.pages.rendering import Facts, new_router, page, render, see, uuid_of, visitor_of
from app.representations.jobs import RESOLVED
from app.roles import Principal
from app.services import Services
from app.store import datasets, models
from app.store.tables import Dataset, Model
from app.strict_json import parse

router = new_router()
SPEC: TypeAdapter[Any] = TypeAdapter(JobSpec)
FIRST = ("dataset", "model", "images", "loss", "network", "patch", "batch", "steps", "start_from", "threshold")
"""Fields that are shown first; the others are folded away."""
MOST_NAMED = 100
"""Datasets and models that the form proposes."""


@page(router, "/jobs/new", "job_form.html", "jobs:write")
def new_job(request: Request, caller: Caller, session: Read, kind: str = "train", like: str = "") -> Facts:
    """An empty form, or one that is filled with the spec of another job (`like`) or with fields of the address."""
    given = {name: text for name, text in request.query_params.items() if name not in ("kind", "like")}
    if like:
        row = queue.get(session, caller.project_id, uuid_of(like))
        kind, given = row.kind, {name: value for name, value in row.spec.items() if name not in RESOLVED}
    return _form(session, caller, kind, given, {})


@router.post("/jobs/new", dependencies=[require("jobs:write")])
async def submit(request: Request, caller: Caller, services: ServicesDep) -> Response:
    """Queue the job that the form describes, or show the form again beside what is wrong in it."""
    async with request.form() as form:
        texts = {name: value for name, value in form.items() if isinstance(value, str)}
    return await run_sync(_submitted, request, caller, services, texts)


def _submitted(request: Request, caller: Principal, services: Services, texts: Mapping[str, str]) -> Response:
    kind = texts.get("kind", "")
    given, wrong = _read(kind, texts)
    if not wrong:
        try:
            spec = SPEC.validate_python({"kind": kind, **given})
            with services.database.write() as session:
                request_id = request.scope.get("request_id")
                job = admission.submit(session, caller, spec, services.settings, request_id=request_id)
                return see(f"/jobs/{job.id}")
        except ValidationError as error:
            wrong = {str(each["loc"][1] if len(each["loc"]) > 1 else ""): each["msg"] for each in error.errors()}
        except Invalid as problem:
            told = problem.errors or [{"pointer": "/", "detail": problem.detail}]
            wrong = {each["pointer"].split("/")[1]: each["detail"] for each in told}
    with services.database.read() as session:
        facts = _form(session, caller, kind, given | {name: texts[name] for name in wrong if name in texts}, wrong)
        visitor = visitor_of(request, caller, session)
    return render(request, "job_form.html", facts, visitor=visitor, place="/jobs", status=422)


def _read(kind: str, texts: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields that were filled in, as JSON values, and what is wrong with the others; empty fields are left out."""
    given: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for field in _fields(kind):
        text = texts.get(field["name"], "").strip()
        if not text:
            continue
        try:
            given[field["name"]] = text if field["input"] in ("text", "select") else parse(text.encode())
        except InvalidJson:
            wrong[field["name"]] = "is not JSON"
    return given, wrong


def _form(session: Session, caller: Principal, kind: str, given: Mapping[str, Any], wrong: Mapping[str, str]) -> Facts:
    fields = _fields(kind)
    for field in fields:
        value = given.get(field["name"], "")
        field["value"] = value if isinstance(value, str) else json.dumps(value)
        field["wrong"] = wrong.get(field["name"])
    return {
        "kind": kind,
        "kinds": tuple(KINDS),
        "fields": sorted(
            (field for field in fields if field["name"] in FIRST), key=lambda field: FIRST.index(field["name"])
        ),
        "more": [field for field in fields if field["name"] not in FIRST],
        "wrong": [f"{name}: {sentence}" if name else sentence for name, sentence in wrong.items()],
        "datasets": _named(session, datasets.all_of(caller.project_id), Dataset.id, "@", datasets.newest),
        "models": _named(session, models.all_of(caller.project_id), Model.id, ":", models.newest),
        "rules": dicomweb_rules.shown(session, caller.project_id) if kind == "dicomweb" else [],
        "spec": {"kind": kind, **given},
    }


def _named(session: Session, query: Select[Any], id_: Any, mark: str, newest: Callable[..., Any]) -> list[str]:
    """References to the newest version of each of the newest objects, for the fields that take one."""
    rows = session.scalars(query.order_by(id_.desc()).limit(MOST_NAMED))
    return [f"{row.name}{mark}{last.number}" for row in rows if (last := newest(session, row)) is not None]


def _fields(kind: str) -> list[dict[str, Any]]:
    """What the schema of a spec says of each field, as a form needs it."""
    if kind not in KINDS:
        raise NotFound(f"There is no kind of job named {kind[:32]!r}. There are: {', '.join(KINDS)}.")
    spec = KINDS[kind].spec
    schema = spec.model_json_schema()
    required = schema.get("required", [])
    usual = {name: facts.get_default(call_default_factory=True) for name, facts in spec.model_fields.items()}
    return [
        _field(name, facts, name in required, None if name in required else to_jsonable_python(usual[name]))
        for name, facts in schema["properties"].items()
        if name != "kind"
    ]


def _field(name: str, facts: Mapping[str, Any], required: bool, usual: Any) -> dict[str, Any]:
    choices = [each for each in facts.get("anyOf", [facts]) if each.get("type") != "null"]
    first = choices[0]
    if "enum" in first:
        shape, options = "select", first["enum"]
    elif first.get("type") == "boolean":
        shape, options = "json", ["true", "false"]
    elif first.get("type") in ("integer", "number"):
        shape, options = "number", None
    elif first.get("type") == "string" and len(choices) == 1:
        shape, options = "text", None
    else:
        shape, options = "json", None
    return {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "input": shape,
        "options": options,
        "required": required,
        "usual": "" if usual is None else usual if isinstance(usual, str) else json.dumps(usual),
        "minimum": first.get("minimum", first.get("exclusiveMinimum")),
        "maximum": first.get("maximum", first.get("exclusiveMaximum")),
        "step": 1 if first.get("type") == "integer" else "any",
        "description": " ".join(str(facts.get("description", "")).split()),
    }
