"""Registers a trained or imported network as the next version of a model.

Each job or content makes one version at most.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from app.store.tables import Model, ModelVersion, now

Blob = tuple[str, int]
"""(sha256, bytes) of something stored."""


def register(
    session: Session,
    *,
    project_id: uuid.UUID,
    job_id: uuid.UUID | None,
    model: str,
    manifest: dict[str, Any],
    spec: dict[str, Any],
    metrics: dict[str, Any],
    onnx: Blob,
    weights: Blob | None,
    dataset_version_id: uuid.UUID | None,
    training_s: float | None,
) -> ModelVersion:
    """The version that this job made; the same one when it is registered again. The model is made when it does not
    exist.

    The number comes from a counter in the model's row, which also makes those who register at once wait for each other,
    so numbers have no holes. Call it in the transaction that finishes the job.
    """
    model_id = _locked(session, project_id, model)
    existing = session.scalar(select(ModelVersion).where(ModelVersion.job_id == job_id)) if job_id is not None else None
    if existing is not None:
        return existing
    number = session.scalar(
        update(Model)
        .where(Model.id == model_id)
        .values(last_version=Model.last_version + 1)
        .returning(Model.last_version)
    )
    version = ModelVersion(
        project_id=project_id,
        model_id=model_id,
        number=number,
        job_id=job_id,
        dataset_version_id=dataset_version_id,
        spec=spec,
        manifest=manifest,
        metrics=metrics,
        onnx_sha256=onnx[0],
        onnx_bytes=onnx[1],
        weights_sha256=weights[0] if weights else None,
        weights_bytes=weights[1] if weights else None,
        training_s=training_s,
    )
    session.add(version)
    session.flush()
    return version


def register_import(
    session: Session, *, project_id: uuid.UUID, model: str, manifest: dict[str, Any], onnx: Blob
) -> tuple[ModelVersion, bool]:
    """The version of an imported network, and whether it is new: the same bytes with the same manifest are the same
    version.
    """
    model_id = _locked(session, project_id, model)
    earlier = select(ModelVersion).where(
        ModelVersion.model_id == model_id, ModelVersion.onnx_sha256 == onnx[0], ModelVersion.job_id.is_(None)
    )
    for version in session.scalars(earlier):
        if version.manifest == manifest:
            return version, False
    facts: dict[str, Any] = {
        "job_id": None,
        "spec": {},
        "metrics": {},
        "weights": None,
        "dataset_version_id": None,
        "training_s": None,
    }
    return register(session, project_id=project_id, model=model, manifest=manifest, onnx=onnx, **facts), True


def _locked(session: Session, project_id: uuid.UUID, name: str) -> uuid.UUID:
    # Two jobs may make the same model at once: the loser of the insert takes the winner's row.
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert
    values = {"id": uuid7(), "created_at": now(), "project_id": project_id, "name": name, "last_version": 0}
    session.execute(insert(Model).values(values).on_conflict_do_nothing())
    return session.scalars(
        select(Model.id).where(Model.project_id == project_id, Model.name == name).with_for_update()
    ).one()
