"""Models, their versions and their aliases as the API and the pages show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.schemas.models import Alias, AliasMove, File, Model, ModelVersion
from app.store import datasets, models as store, tables

if TYPE_CHECKING:
    from app.serving.registry import Registry


def describe(session: Session, model: tables.Model) -> Model:
    """The model as the API and the pages show it."""
    latest, here = store.newest(session, model), f"/v1/models/{model.name}"
    return Model.of(
        model,
        latest=latest.number if latest else None,
        aliases=[describe_alias(alias) for alias in store.aliases(session, model)],
        links={"self": here, "versions": f"{here}/versions", "aliases": f"{here}/aliases"},
    )


def describe_version(session: Session, version: tables.ModelVersion) -> ModelVersion:
    """The card of a version as the API and the pages show it."""
    model = session.get_one(tables.Model, version.model_id)
    here = f"/v1/models/{model.name}/versions/{version.number}"
    pointing = (
        select(tables.Alias.alias)
        .where(tables.Alias.model_id == model.id, tables.Alias.number == version.number)
        .order_by(tables.Alias.alias)
    )
    weights = (
        File(sha256=version.weights_sha256, bytes=version.weights_bytes or 0, href=f"{here}/safetensors")
        if version.weights_sha256
        else None
    )
    return ModelVersion.of(
        version,
        model=model.name,
        version=version.number,
        ref=f"{model.name}:{version.number}",
        source="trained" if version.job_id else "imported",
        aliases=list(session.scalars(pointing)),
        dataset=datasets.ref_of(session, version.dataset_version_id) if version.dataset_version_id else None,
        job=version.job_id,
        software=version.manifest.get("software") or {},
        onnx=File(sha256=version.onnx_sha256, bytes=version.onnx_bytes, href=f"{here}/onnx"),
        safetensors=weights,
        links={"self": here, "model": f"/v1/models/{model.name}", "manifest": f"{here}/manifest.json"}
        | ({"job": f"/v1/jobs/{version.job_id}"} if version.job_id else {}),
    )


def card(session: Session, version: tables.ModelVersion, registry: Registry) -> ModelVersion:
    """A version with what runs it in this process."""
    network = registry.network(version.id)
    now = {"provider": network.place, "threads": network.threads, "batch": network.batch} if network else {}
    return describe_version(session, version).model_copy(update=now)


def describe_alias(alias: tables.Alias) -> Alias:
    """An alias as the API and the pages show it."""
    return Alias.of(alias, version=alias.number, etag=store.etag(alias))


def describe_move(move: tables.AliasMove) -> AliasMove:
    """A line of an alias's history as the API and the pages show it."""
    return AliasMove.of(move, from_version=move.from_number, to_version=move.to_number, moved_at=move.created_at)
