"""Which bytes rows name: what a sweep must keep, and what a backup must hold."""

from __future__ import annotations

import uuid

from sqlalchemy import Column, select
from sqlalchemy.orm import Session

from app.store.tables import Base, ModelVersion, Prediction


def all_named(session: Session) -> set[tuple[uuid.UUID, str]]:
    """(project, sha256) of everything that a row names: each column that ends in sha256, the artifacts of predictions,
    the variants of models.
    """
    named = {
        (project_id, sha256)
        for column in digest_columns()
        for project_id, sha256 in session.execute(select(column.table.c.project_id, column))
        if sha256
    }
    for project_id, artifacts in session.execute(select(Prediction.project_id, Prediction.artifacts)).yield_per(1000):
        named |= {(project_id, artifact["sha256"]) for artifact in artifacts.values()}
    for project_id, manifest in session.execute(select(ModelVersion.project_id, ModelVersion.manifest)).yield_per(1000):
        named |= {
            (project_id, variant["onnx_sha256"])
            for variant in (manifest.get("variants") or {}).values()
            if variant["onnx_sha256"]
        }
    return named


def digest_columns() -> list[Column[str]]:
    """Every column that names bytes."""
    return [
        column for table in Base.metadata.sorted_tables for column in table.columns if column.name.endswith("sha256")
    ]
