"""Rows of metrics of model versions, and whether they pass the gate of an alias.

A figure is a mean over images and classes: of the validation images as training reported it, or of the newest
evaluation on a dataset version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app.metric_table import METRICS
from app.store.tables import Job, Measurement, ModelVersion, Prediction


def record(session: Session, figures: Mapping[str, Mapping[str, Any]], **of: Any) -> None:
    """One row for each class, from what `topology.metrics.measure` answers.

    figures  by name of the class; what the table of metrics does not have is left out
    of       whose they are (job_id, image_id, ...) and how they were measured (metric_spec, metric_digest)
    """
    for class_name, measured in figures.items():
        kept = {name: value for name, value in measured.items() if name in METRICS or name == "broken_rules"}
        session.add(Measurement(class_name=class_name, **of, **kept))
        session.flush()  # in this order, so that ids keep the order of the classes


def record_of(session: Session, prediction: Prediction, figures: Mapping[str, Mapping[str, Any]], **facts: Any) -> None:
    """The rows of a prediction: `record` with what its own row says."""
    of = {name: getattr(prediction, name) for name in ("project_id", "model_version_id", "image_id")}
    record(session, figures, prediction_id=prediction.id, **of, **facts)


def evaluations(version: ModelVersion, dataset_version_id: UUID | str | None = None) -> Select[Job]:
    """The evaluations of a model version, all or only those on one dataset version; those that finished last first."""
    query = select(Job).where(
        Job.project_id == version.project_id,
        Job.kind == "evaluate",
        Job.state == "succeeded",
        Job.spec["model_version_id"].as_string() == str(version.id),
    )
    if dataset_version_id is not None:
        query = query.where(Job.spec["dataset_version_id"].as_string() == str(dataset_version_id))
    return query.order_by(Job.finished_at.desc(), Job.id.desc())


def newest_evaluation(session: Session, version: ModelVersion, dataset_version_id: UUID | str) -> Job | None:
    """The evaluation that finished last for this model version on that dataset version."""
    return session.scalar(evaluations(version, dataset_version_id).limit(1))


def measured_items(session: Session, job: Job) -> int:
    """How many items a job has measured."""
    count = select(func.count(func.distinct(Measurement.item_name))).where(Measurement.job_id == job.id)
    return session.scalar(count) or 0


def means(session: Session, job: Job) -> dict[str, float]:
    """Mean of every metric that the job measured, over images and classes."""
    columns = [func.avg(getattr(Measurement, name)) for name in METRICS]
    row = session.execute(
        select(*columns).where(Measurement.job_id == job.id, Measurement.project_id == job.project_id)
    ).one()
    return {name: float(value) for name, value in zip(METRICS, row, strict=True) if value is not None}


def shortfalls(bounds: dict[str, float], figures: dict[str, float]) -> list[str]:
    """One sentence for each bound (`min_dice`, `max_beta0_error`) that the figures do not keep; not measured is not
    kept.
    """
    found = []
    for bound, limit in bounds.items():
        side, _, metric = bound.partition("_")
        figure = figures.get(metric)
        if figure is None:
            found.append(f"{metric} was not measured; {bound} is {limit:g}")
        elif not (figure >= limit if side == "min" else figure <= limit):  # written so that NaN keeps no bound
            found.append(f"{metric} is {figure:.4g}, {bound} is {limit:g}")
    return found
