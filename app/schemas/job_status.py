"""A job as the API shows it, and how one is stopped."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from app.job_kinds import KINDS, Kind
from app.schemas.base import Address, Flag, Schema

State = Literal["waiting", "queued", "running", "cancelling", "cancelled", "succeeded", "failed", "interrupted"]
RESULTS = "; ".join(f"{kind.name}: {kind.result}" for kind in KINDS.values()) + "."


class Progress(Schema):
    """Where a job stands."""

    phase: str | None = None
    """prepare, train, export, predict, measure ..."""
    fraction: float = 0.0
    """0 to 1, of the whole job."""
    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    seconds_per_step: float | None = None
    eta_s: float | None = None
    """Seconds to the end, from measured step times; for a queued job to its start, where it can be known."""
    queue_position: int | None = None
    """1 is next; 1000 for all that are so far behind or farther; null when it is not queued."""


class JobError(Schema):
    """Why a job failed, in a sentence its submitter can act on."""

    code: str
    detail: str


class Job(Schema):
    """A job as the API shows it."""

    id: UUID
    kind: Kind
    title: str
    """What it does, in a few words."""
    parent: UUID | None = None
    """The job that it belongs to: a training of a comparison."""
    state: State
    created_at: datetime
    submitted_by: str | None = None
    """`ts_<prefix>` of the key that asked for it, or `open`."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int
    """How often it was started."""
    progress: Progress
    error: JobError | None = None
    result: Annotated[dict[str, Any] | None, Field(description=RESULTS)] = None
    spec: dict[str, Any]
    """The request, with every default filled in."""
    links: dict[str, Address]


class Cancel(Schema):
    """How to stop a job."""

    keep: Flag = False
    """Stop and keep: the job ends as `interrupted`, its checkpoint stays, and resume goes on from there."""

    model_config = {**Schema.model_config, "json_schema_extra": {"examples": [{"keep": True}]}}
