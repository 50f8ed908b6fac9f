"""What MONAI Label says of itself: information, logs, and who may come in.

A key of this service is the password of any user name; its client then sends it as a bearer token. Where the service
is open there is no `/auth/`, which its client takes for "no password needed".
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

from fastapi import Form, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.http.callers import Caller, by_key, require
from app.http.resources import Read, ServicesDep
from app.protocols.monai import training
from app.protocols.monai.infer import EXTENSIONS
from app.protocols.monai.next_sample import STRATEGIES
from app.protocols.monai.wire import new_router
from app.representations import events
from app.roles import Principal
from app.store import labels, models, tables
from app.version import VERSION

router = new_router()

READS = ("models:read", "images:read", "jobs:read")
MOST_LINES = 10_000


@router.get("/info/", dependencies=[require(*READS)])
def info(caller: Caller, session: Read) -> dict[str, Any]:
    """Models, trainers, strategies and figures, all in one answer."""
    offered, trainers, names = {}, {}, dict[str, None]()
    for model in session.scalars(models.all_of(caller.project_id).order_by(tables.Model.name)):
        newest = models.newest(session, model)
        if newest is None:
            continue
        aliases = [alias.alias for alias in models.aliases(session, model)]
        for ref in (model.name, *(f"{model.name}@{alias}" for alias in aliases)):
            _, version = models.resolve(session, caller.project_id, ref)
            offered[ref] = _model(model, version)
            names |= dict.fromkeys(version.manifest["classes"][1:])
        if newest.job_id is not None:
            trainers[model.name] = training.described(model, newest)
    return {
        "name": "toposerve",
        "description": "Segmentation that keeps its topology",
        "version": VERSION,
        "labels": list(names),
        "models": offered,
        "trainers": trainers,
        "strategies": {name: {"description": said, "config": {}} for name, said in STRATEGIES.items()},
        "scoring": {},
        "train_stats": training.statistics(session, caller.project_id),
        "datastore": datastore(session, caller),
    }


def _model(model: tables.Model, version: tables.ModelVersion) -> dict[str, Any]:
    manifest = version.manifest
    config = {"topology": True, "expect": "", "repair": False, "result_extension": list(EXTENSIONS)}
    threshold = {"threshold": manifest["threshold"]} if manifest["activation"] == "sigmoid" else {}
    return {
        "type": "segmentation",
        "labels": manifest["classes"][1:],
        "dimension": manifest["dimensions"],
        "description": f"{model.name}, version {version.number}",
        "config": threshold | config,
    }


def datastore(session: Session, caller: Principal) -> dict[str, Any]:
    """How many images there are and how many of them are labelled."""
    tags = labels.counts(session, caller.project_id)
    total = session.scalar(select(func.count()).where(tables.Image.project_id == caller.project_id)) or 0
    return {"total": total, "completed": tags.get(labels.FINAL, 0), "label_tags": tags}


# Logs ----------------------------------------------------------------------------------------------------------------


@router.get("/logs/", dependencies=[require("jobs:read")])
def logs(
    caller: Caller,
    session: Read,
    services: ServicesDep,
    lines: Annotated[int, Query(ge=1, le=MOST_LINES)] = 300,
    html: bool = True,
    text: str = "",
    refresh: int = 0,
) -> Response:
    """The last lines of the newest job, as text, or as a page that shows it."""
    job = session.scalar(
        select(tables.Job).where(tables.Job.project_id == caller.project_id).order_by(tables.Job.id.desc()).limit(1)
    )
    told = "" if job is None else "".join(events.log_lines(services, job.id))
    last = "".join(line for line in told.splitlines(keepends=True)[-lines:] if text in line)
    if not html:
        return PlainTextResponse(last)
    shown = last.replace("&", "&amp;").replace("<", "&lt;")
    return HTMLResponse(f"<!doctype html><title>Log</title><pre>{shown}</pre>")


@router.get("/logs/gpu", dependencies=[require("jobs:read")])
def devices(caller: Caller, session: Read) -> Response:
    """The devices of the workers that were seen last."""
    seen = session.scalars(select(tables.Worker).order_by(tables.Worker.seen_at.desc()))
    return PlainTextResponse("".join(f"{row.id} {row.lane} {row.device or 'cpu'}\n" for row in islice(seen, 100)))


# Who may come in -----------------------------------------------------------------------------------------------------


@router.get("/auth/")
def auth(services: ServicesDep) -> dict[str, Any]:
    """That a password is needed; NotFound where none is."""
    if services.settings.open:
        raise NotFound("This service is open: no password is needed.")
    return {"enabled": True, "client_id": "toposerve", "realm": "toposerve"}


@router.post("/auth/token")
async def token(
    request: Request, services: ServicesDep, password: Annotated[str, Form(max_length=256)] = ""
) -> dict[str, str]:
    """The bearer token of a key, which is the key; Unauthenticated for one that is not valid."""
    await by_key(request, services, password)
    return {"access_token": password, "token_type": "Bearer"}


@router.get("/auth/token/valid")
def token_is_valid(caller: Caller) -> dict[str, str]:
    """Whom the token stands for."""
    return {"username": caller.who}
