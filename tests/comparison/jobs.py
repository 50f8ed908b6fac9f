"""Submits comparisons as the API does, and says how the stand-in trainer behaves in each candidate."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from app.admission import jobs as admission
from app.roles import Principal
from app.schemas.comparisons import CompareSpec
from app.schemas.jobs import TrainSpec
from app.settings import Settings
from app.store.session import Database
from app.store.tables import Job

TRAINING = {
    "network": {"channels": [4, 8]},
    "patch": [32, 32],
    "batch": 2,
    "steps": 6,
    "checkpoint_every": 2,
    "devices": "cpu",
    "folds": 2,
}
LOSSES = [
    {"name": "plain"},
    {"name": "scnp", "loss": {"neighbour_penalty": {"window": 3}}},
]


def compare_spec(training: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A comparison as it is sent: two losses, two folds, one seed."""
    training = {name: value for name, value in {**TRAINING, **(training or {})}.items() if value is not None}
    return {"kind": "compare", "dataset": "rings", "training": training, "losses": LOSSES, **changes}


def submit_comparison(
    database: Database,
    settings: Settings,
    project_id: uuid.UUID,
    behaviours: Mapping[str | None, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Job:
    """A comparison with its trainings in the queue; `behaviours` is by candidate, None the shared pre-training."""
    caller = Principal(project_id, "test", "engineer", frozenset(("jobs:write",)))
    spec = CompareSpec.model_validate(compare_spec(**changes))
    with database.write() as session:
        job = admission.submit(session, caller, spec, settings, request_id=None)
        for child in session.scalars(select(Job).where(Job.parent_id == job.id)):
            behaviour = (behaviours or {}).get(child.spec["trial"]["candidate"], {})
            child.spec = child.spec | {"behaviour": {"step_s": 0.0, **behaviour}}
        return job


def submit_training(
    database: Database,
    settings: Settings,
    project_id: uuid.UUID,
    behaviours: Mapping[str | None, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Job:
    """A training as the API admits it, with all jobs that belong to it; `behaviours` as for a comparison."""
    small = {name: value for name, value in TRAINING.items() if name != "folds"}
    sent = {"kind": "train", "dataset": "rings", "model": "rings", **small, "steps": 20, **changes}
    caller = Principal(project_id, "test", "engineer", frozenset(("jobs:write",)))
    with database.write() as session:
        job = admission.submit(session, caller, TrainSpec.model_validate(sent), settings, request_id=None)
        for row in session.scalars(select(Job).where(Job.kind == "train")):
            behaviour = (behaviours or {}).get((row.spec.get("trial") or {}).get("candidate"), {})
            row.spec = row.spec | {"behaviour": {"step_s": 0.0, **behaviour}}
        return job


def trainings(database: Database, job: Job) -> list[Job]:
    """The trainings of a comparison as they are now, in the order in which they were planned."""
    with database.read() as session:
        return list(session.scalars(select(Job).where(Job.parent_id == job.id).order_by(Job.id)))
