"""The pages of models: the list, and one version with metrics, aliases and a form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.admission import aliases
from app.errors import Invalid, NotFound
from app.http.callers import Caller, require
from app.http.endpoints import validated
from app.http.finding import Wanted, finding
from app.http.paging import Page
from app.http.resources import Read, ServicesDep
from app.metric_table import METRICS
from app.pages import predictions, words
from app.pages.rendering import Facts, new_router, next_page, page, see
from app.pages.words import HEADLINE
from app.representations import models as shapes
from app.roles import Principal
from app.schemas.base import Name
from app.schemas.models import Gate, MoveAlias
from app.services import Services
from app.store import measurements, models as store, rows, tables
from app.store.finding import MODEL_VERSIONS
from app.store.tables import Alias, AliasMove, ModelVersion

router = new_router()
NAME = TypeAdapter(Name)
MOVES = 30


@page(router, "/models", "models.html", "models:read")
def models(
    request: Request,
    caller: Caller,
    session: Read,
    listed: Page,
    wanted: Annotated[Wanted, finding(MODEL_VERSIONS, form=True)],
) -> Facts:
    """Every version of every model, newest first or as wanted."""
    query = rows.owned(ModelVersion, caller.project_id)
    listing = listed.found(session, query, wanted, lambda version: shapes.describe_version(session, version))
    return {"models": listing.items, "found": wanted.form(), "page": {"next": next_page(request, listing.next_cursor)}}


@router.get("/models/{name}", dependencies=[require("models:read")])
def newest(name: str, caller: Caller, session: Read) -> Response:
    """The name of a model alone: its newest version."""
    version = store.resolve(session, caller.project_id, store.require(session, caller.project_id, name).name)[1]
    return see(f"/models/{quote(name)}/versions/{version.number}")


@page(
    router,
    "/models/{name}/versions/{number}",
    "model.html",
    "models:read",
    dressed=lambda facts: {"card": _card(facts["version"]["manifest"], facts["version"]["spec"])},
)
def model(name: str, number: str, caller: Caller, session: Read, services: ServicesDep) -> Facts:
    """The card of a version."""
    row = store.require(session, caller.project_id, name)
    version = store.require_version(session, row, number_of(number))
    before = select(func.max(ModelVersion.number)).where(
        ModelVersion.model_id == row.id, ModelVersion.number < version.number
    )
    return {
        "version": shapes.card(session, version, services.registry),
        "previous": session.scalar(before),
        "live": _live(services, version),
        "evaluations": _evaluations(session, version),
        "predictions": predictions.cards(
            session, caller.project_id, tables.Prediction.model_version_id == version.id, limit=8
        ),
        "moves": _moves(session, row),
        "promotion": _promotion(session, row, version),
    }


@router.post("/models/{name}/versions/{number}/alias", dependencies=[require("models:promote")])
async def move(name: str, number: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that points an alias to this version, past the gate whose fields are filled in."""
    async with request.form() as form:
        fields = {field: value.strip() for field, value in form.items() if isinstance(value, str)}
    alias = fields.get("alias", "").removeprefix("@")
    try:
        alias = NAME.validate_python(alias)
    except ValidationError:
        raise Invalid(
            f"{alias[:64]!r} is not a name. Use a letter or digit, then letters, digits, `.`, `_` or `-`; 64 at most."
        ) from None
    target = MoveAlias(version=number_of(number), gate=_gate(fields))
    return await run_sync(_moved, services, caller, name, alias, target)


def _gate(fields: Mapping[str, str]) -> Gate | None:
    """The bounds that were filled in; None where none was."""
    wanted: dict[str, Any] = {}
    for metric in METRICS.values():
        if text := fields.get(metric.bound):
            try:
                wanted[metric.bound] = float(text)
            except ValueError:
                raise Invalid(f"{metric.bound} is {text[:32]!r}; it must be a number.") from None
    dataset = fields.get("dataset") or None
    return validated(Gate, {"dataset": dataset, **wanted}, "gate") if wanted else None


def _moved(services: Services, caller: Principal, name: str, alias: str, target: MoveAlias) -> Response:
    with services.database.write() as session:
        aliases.move(session, caller, name, alias, target)
    return see(f"/models/{quote(name)}/versions/{target.version}")


def number_of(text: str) -> int:
    """The number of a version in an address; what is no number is as unknown as any other."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise NotFound
    return int(text)


def _live(services: Services, version: ModelVersion) -> Facts:
    """How fast the version is now, as far as this process knows; another gateway has figures of its own."""
    live = services.registry.statistics.live(version.id)
    return {
        "process": os.getpid(),
        "loaded": services.registry.network(version.id) is not None,
        "requests": live.requests,
        "failures": live.failures,
        "images": live.images,
        "last_at": datetime.fromtimestamp(live.last_ms / 1000, UTC) if live.last_ms else None,
        "per_s": round(live.per_s, 3),
        "latency_ms": {f"p{quantile * 100:g}": round(ms, 3) for quantile, ms in live.quantiles_ms.items()},
        "of": live.of,
        "phases_ms": {phase: round(ms, 3) for phase, ms in live.phases_ms.items()},
    }


def _evaluations(session: Session, version: ModelVersion) -> list[dict[str, Any]]:
    return [
        {
            "job": job.id,
            "dataset": job.spec.get("dataset"),
            "images": measurements.measured_items(session, job),
            "means": measurements.means(session, job),
            "finished_at": job.finished_at,
        }
        for job in session.scalars(measurements.evaluations(version).limit(10))
    ]


def _promotion(session: Session, model: tables.Model, version: ModelVersion) -> Facts:
    """The figures of the version that the alias names now beside those of this one, and where each may be held to."""
    held = session.execute(
        select(Alias.alias, ModelVersion)
        .join(ModelVersion, (ModelVersion.model_id == Alias.model_id) & (ModelVersion.number == Alias.number))
        .where(Alias.model_id == model.id, Alias.number != version.number)
        .order_by(Alias.moved_at.desc())
        .limit(1)
    ).first()
    old: Mapping[str, Any] = held[1].metrics if held else {}
    return {
        "alias": held[0] if held else "champion",
        "current": held[1].number if held else None,
        "rows": [
            {"name": name, "bound": metric.bound, "old": old.get(name), "new": version.metrics.get(name)}
            for name, metric in METRICS.items()
            if name in HEADLINE or name in version.metrics
        ],
        "datasets": sorted({str(job.spec["dataset"]) for job in session.scalars(measurements.evaluations(version))}),
    }


def _moves(session: Session, model: tables.Model) -> list[dict[str, Any]]:
    """The newest moves of every alias; the one that is in force now is marked."""
    rows = session.scalars(
        select(AliasMove).where(AliasMove.model_id == model.id).order_by(AliasMove.id.desc()).limit(MOVES)
    ).all()
    newest = {row.alias: row.id for row in reversed(rows)}
    return [
        shapes.describe_move(row).model_dump() | {"current": newest[row.alias] == row.id and row.to_number is not None}
        for row in rows
    ]


SCALINGS = {
    "image": "each image by itself",
    "min_max": "each image to 0 to 1",
    "percentile": "each image between two of its percentiles",
    "dataset": "by figures of the training images",
    "clipped": "cut off and scaled by figures of the training structures",
}
"""What the kinds of scaling are called on the card."""


def _card(manifest: Mapping[str, Any], spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The manifest in the words of the page."""
    network, scaling = spec.get("network") or {}, manifest.get("scaling") or {}
    facts = {
        "Network": words.network_sentence(network) if network else None,
        "Classes": ", ".join(manifest.get("classes", [])[1:]) or None,
        "Reads": (
            f"{manifest['channels']} {'channel' if manifest['channels'] == 1 else 'channels'},"
            f" {manifest.get('dimensions')}D"
            if "channels" in manifest
            else None
        ),
        "Scaling": SCALINGS.get(scaling.get("kind", "")),
        "Threshold": manifest.get("threshold"),
        "Tile": " × ".join(map(str, manifest["tile"])) + " px" if manifest.get("tile") else None,
        "Sees": f"{manifest['receptive_field']} px around a pixel" if manifest.get("receptive_field") else None,
        "ONNX opset": manifest.get("opset"),
        "Seed": spec.get("seed"),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]
