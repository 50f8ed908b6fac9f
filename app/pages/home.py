"""The home page: running jobs, workers, recent results, and first steps."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from app import queue
from app.http.callers import Caller
from app.http.resources import Read, ServicesDep
from app.pages import predictions
from app.pages.rendering import Facts, new_router, page
from app.representations import jobs, models
from app.settings import Settings
from app.store.session import clock
from app.store.tables import Dataset, Image, Job, Model, ModelVersion, Owned, Prediction, Worker

router = new_router()
FEW = 6
MOST_COUNTED = 10_000
"""Rows of a kind that are counted; of more the page says that there are at least so many."""
FORGET_S = 24 * 3600
"""Workers that were silent for longer are history."""


@page(router, "/", "home.html")
def home(caller: Caller, session: Read, services: ServicesDep) -> Facts:
    """Only what the caller may see; the operator of the machine sees the workers."""
    sees_jobs, sees_images = caller.may("jobs:read"), caller.may("images:read")
    return {
        "open_to_all": services.settings.open,
        "counts": _counts(session, caller),
        "running": _jobs(session, caller, "running", "cancelling") if sees_jobs else [],
        "queued": _queued(session, caller) if sees_jobs else [],
        "queued_count": _count(session, Job, Job.project_id == caller.project_id, Job.state == "queued")
        if sees_jobs
        else 0,
        "most_counted": MOST_COUNTED,
        "workers": _workers(session, caller, services.settings),
        "lease_s": services.settings.lease_s,
        "models": _models(session, caller) if caller.may("models:read") else [],
        "predictions": predictions.cards(session, caller.project_id, limit=2 * FEW) if sees_images else [],
    }


def _counts(session: Session, caller: Caller) -> dict[str, int]:
    tables: dict[str, type[Owned]] = {
        "images": Image,
        "datasets": Dataset,
        "jobs": Job,
        "models": Model,
        "predictions": Prediction,
    }
    return {name: _count(session, table, table.project_id == caller.project_id) for name, table in tables.items()}


def _count(session: Session, table: type[Owned], *conditions: ColumnElement[bool]) -> int:
    """How many rows fit, counted up to MOST_COUNTED: a million of them would take half a second."""
    some = select(table.id).where(*conditions).limit(MOST_COUNTED).subquery()
    return session.scalar(select(func.count()).select_from(some)) or 0


def _jobs(session: Session, caller: Caller, *states: str) -> list[Any]:
    """Jobs in these states, the oldest first."""
    found = [job for state in states for job in queue.list_jobs(session, caller.project_id, state=state, limit=100)]
    return jobs.describe_all(session, sorted(found, key=lambda job: job.id))


def _queued(session: Session, caller: Caller) -> list[Any]:
    """The jobs of the project that are served next."""
    mine = select(Job).where(Job.project_id == caller.project_id, Job.state == "queued").order_by(Job.id).limit(FEW)
    return jobs.describe_all(session, session.scalars(mine).all())


def _models(session: Session, caller: Caller) -> list[Any]:
    rows = session.scalars(
        select(ModelVersion)
        .where(ModelVersion.project_id == caller.project_id)
        .order_by(ModelVersion.id.desc())
        .limit(FEW)
    )
    return [models.describe_version(session, row) for row in rows]


def _workers(session: Session, caller: Caller, settings: Settings) -> list[dict[str, Any]]:
    """Workers seen lately; a job of another project is shown as work without a name."""
    rows = session.execute(
        select(Worker, (clock() - Worker.seen_at).label("seen_s")).order_by(Worker.id, Worker.lane)
    ).all()
    ours = set(
        session.scalars(
            select(Job.id).where(
                Job.project_id == caller.project_id, Job.id.in_([worker.job_id for worker, _ in rows if worker.job_id])
            )
        )
    )
    return [
        {
            "id": worker.id,
            "lane": worker.lane,
            "device": worker.device,
            "seen_s": max(0.0, round(seen_s, 1)),
            "lost": seen_s > settings.lease_s,
            "busy": worker.job_id is not None,
            "job": worker.job_id if worker.job_id in ours else None,
        }
        for worker, seen_s in rows
        if seen_s < FORGET_S
    ]
