"""The page that lays the curves of several trainings over each other."""

from __future__ import annotations

import math
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import BeforeValidator
from sqlalchemy.orm import Session

from app import queue
from app.errors import Invalid
from app.http.callers import Caller
from app.http.resources import Read
from app.job_kinds import KINDS
from app.metric_table import METRICS
from app.pages import charts, jobs
from app.pages.rendering import Facts, new_router, page
from app.pages.words import loss_sentence
from app.store import rows, tables

router = new_router()
MOST = 5
"""Runs in one chart: there are as many kinds of lines."""
CHOICES = 40
LOSS = "loss"
"""What is drawn unless a metric of the validations is."""


def _dressed(facts: Facts) -> Facts:
    """The chart, smoothed and on the scale that was asked for."""
    figure = facts["figure"]
    series: dict[str, charts.Points] = {run["label"]: smoothed(run["points"], facts["smooth"]) for run in facts["runs"]}
    title = "Training loss" if figure == LOSS else f"Validation: {METRICS[figure].label}"
    unit = "" if figure == LOSS else METRICS[figure].unit
    end = max((run["steps"] or 0 for run in facts["runs"]), default=None)
    return {"chart": charts.draw(title, unit, series, end=end, log=facts["log"])}


@page(router, "/jobs/curves", "curves.html", "jobs:read", dressed=_dressed)
def curves(
    caller: Caller,
    session: Read,
    job: Annotated[list[UUID] | None, Query(max_length=MOST)] = None,
    figure: str = LOSS,
    log: bool = False,
    smooth: Annotated[float, BeforeValidator(lambda text: text or 0), Query(ge=0, lt=1)] = 0.0,
) -> Facts:
    """The curves of the chosen trainings, and what there is to choose from.

    figure  the training loss or a metric
    smooth  weight of what came before in the running mean, 0 to below 1
    """
    if figure != LOSS and figure not in METRICS:
        raise Invalid(f"There is no figure {figure[:32]!r} to draw. There are: {', '.join([LOSS, *METRICS])}.")
    chosen = [queue.get(session, caller.project_id, each) for each in dict.fromkeys(job or ())]
    newest = session.scalars(
        rows.owned(tables.Job, caller.project_id)
        .where(tables.Job.kind == "train")
        .order_by(tables.Job.id.desc())
        .limit(CHOICES)
    )
    return {
        "runs": [_run(session, each, figure) for each in chosen],
        "choices": [_choice(each, each in chosen) for each in newest],
        "figure": figure,
        "figures": [(LOSS, "Training loss"), *((name, metric.label) for name, metric in METRICS.items())],
        "log": log,
        "smooth": smooth,
        "most": MOST,
    }


def smoothed(points: list[tuple[float, float]], weight: float) -> list[tuple[float, float]]:
    """Running means of the values of (step, value), each with that weight on the mean before it, corrected for the
    start: the first mean is the first value.
    """
    kept, mean, total = [], 0.0, 0.0
    for step, value in points:
        if not math.isfinite(value):
            continue
        mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        kept.append((step, mean / total))
    return kept


def _choice(job: tables.Job, chosen: bool) -> Facts:
    return {
        "id": str(job.id),
        "title": KINDS[job.kind].title_of(job.spec),
        "loss": loss_sentence(job.spec.get("loss")),
        "state": job.state,
        "created_at": job.created_at,
        "chosen": chosen,
    }


def _run(session: Session, job: tables.Job, figure: str) -> Facts:
    points: list[Any] = (
        jobs.loss_curves(session, job).get(LOSS, [])
        if figure == LOSS
        else jobs.metric_curves(jobs.validations_of(session, job)).get(figure, [])
    )
    label = f"{job.id.hex[-6:]} {loss_sentence(job.spec.get('loss'))}"
    return {"id": str(job.id), "label": label, "steps": job.steps, "points": points}
