"""Registers a trained or imported network as the next version of a model.

Each job or content makes one version at most.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.rows import locked, next_number
from app.store.tables import Model, ModelVersion

Blob = tuple[str, int]
"""(sha256, bytes) of something stored."""


def register(
    session: Session,
    *,
    project_id: uuid.UUID,
    model: str,
    job_id: uuid.UUID | None = None,
    onnx: Blob,
    weights: Blob | None = None,
    **columns: Any,
) -> ModelVersion:
    """The version that this job made; the same one when it is registered again. The model is made when it does not
    exist.

    columns  manifest, spec, metrics, and of a training its dataset_version_id and training_s
    Call it in the transaction that finishes the job.
    """
    row = locked(Model, session, project_id, model)
    existing = session.scalar(select(ModelVersion).where(ModelVersion.job_id == job_id)) if job_id is not None else None
    if existing is not None:
        return existing
    columns |= dict(zip(("onnx_sha256", "onnx_bytes"), onnx, strict=True))
    columns |= dict(zip(("weights_sha256", "weights_bytes"), weights or (None, None), strict=True))
    owner = {"project_id": project_id, "model_id": row.id, "job_id": job_id}
    version = ModelVersion(**owner, number=next_number(session, row), **columns)
    session.add(version)
    session.flush()
    return version


def register_import(
    session: Session, *, project_id: uuid.UUID, model: str, manifest: dict[str, Any], onnx: Blob
) -> tuple[ModelVersion, bool]:
    """The version of an imported network, and whether it is new: the same bytes with the same manifest are the same
    version.
    """
    row = locked(Model, session, project_id, model)
    earlier = select(ModelVersion).where(
        ModelVersion.model_id == row.id, ModelVersion.onnx_sha256 == onnx[0], ModelVersion.job_id.is_(None)
    )
    for version in session.scalars(earlier):
        if version.manifest == manifest:
            return version, False
    return register(
        session, project_id=project_id, model=model, onnx=onnx, manifest=manifest, spec={}, metrics={}
    ), True
