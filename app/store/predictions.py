"""Stored predictions and what was measured on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from app.store import measurements, rows
from app.store.tables import Measurement, ModelVersion, Prediction


def owned(
    project_id: UUID, *, model_version_id: UUID | None = None, image_id: UUID | None = None, job_id: UUID | None = None
) -> Select[Prediction]:
    """The predictions of a project, all or only those of a version, an image or a job."""
    query = rows.owned(Prediction, project_id)
    for column, value in (
        (Prediction.model_version_id, model_version_id),
        (Prediction.image_id, image_id),
        (Prediction.job_id, job_id),
    ):
        if value is not None:
            query = query.where(column == value)
    return query


get = partial(rows.get, Prediction)
"""The prediction of that id in this project, or NotFound."""


def classes_of(session: Session, row: Prediction) -> list[str]:
    """What the positions in the mask of a prediction mean, background first."""
    return list(session.get_one(ModelVersion, row.model_version_id).manifest["classes"])


def add(session: Session, **columns: Any) -> Prediction:
    """A new prediction; its bytes must be stored already."""
    row = Prediction(**columns, violated=_violated(columns.get("report")))
    session.add(row)
    session.flush()
    return row


def _violated(report: Mapping[str, Mapping[str, Any]] | None) -> bool | None:
    """Whether the topology is other than expected; None where nothing was expected."""
    expected = [facts for facts in (report or {}).values() if "expected" in facts]
    return any(facts.get("violations") for facts in expected) if expected else None


def measurements_of(session: Session, row: Prediction) -> list[Measurement]:
    """What was measured on a prediction, one row for each class."""
    query = select(Measurement).where(Measurement.project_id == row.project_id, Measurement.prediction_id == row.id)
    return list(session.scalars(query.order_by(Measurement.id)))


def measurements_by_prediction(session: Session, listed: Sequence[Prediction]) -> dict[UUID, list[Measurement]]:
    """What was measured on each of these predictions of one project, by their ids; one query."""
    found: dict[UUID, list[Measurement]] = {}
    if not listed:
        return found
    query = select(Measurement).where(
        Measurement.project_id == listed[0].project_id, Measurement.prediction_id.in_([row.id for row in listed])
    )
    for measurement in session.scalars(query.order_by(Measurement.id)):
        assert measurement.prediction_id is not None
        found.setdefault(measurement.prediction_id, []).append(measurement)
    return found


def set_reference(
    session: Session,
    row: Prediction,
    reference_sha256: str,
    figures: Mapping[str, Mapping[str, Any]],
    *,
    metric_spec: dict[str, Any],
    metric_digest: str,
) -> None:
    """Give a prediction its reference and the figures of each class; the figures of an earlier reference go."""
    row.reference_sha256 = reference_sha256
    session.execute(
        delete(Measurement).where(Measurement.project_id == row.project_id, Measurement.prediction_id == row.id)
    )
    measurements.record_of(session, row, figures, metric_spec=metric_spec, metric_digest=metric_digest)
