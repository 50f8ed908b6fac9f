"""Stores the checkpoints of a training and finds the last intact one.

They are blobs; a job keeps its last two, and one is used only if every byte is right.
"""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import BlobCorrupt, Gone
from app.store.tables import Checkpoint, Job
from workers.work import Work

log = structlog.get_logger()

KEPT = 2


def keep(work: Work, step: int, path: Path, sha256: str) -> None:
    """Store a checkpoint that the child wrote, record it as an event of the job, and drop all but the last two.

    A checkpoint is progress: the crashes before it are forgotten. One whose bytes are not those that the child named is
    dropped.
    """
    try:
        stored, size = work.blobs.put(work.claim.project_id, path)
    except Gone:
        return  # the child has already written two newer ones
    if stored != sha256:
        record_corrupt(work, step, "it was damaged while it was written")
        return

    def rows(session: Session, job: Job) -> None:
        row = session.scalar(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step == step))
        if row is None:
            session.add(Checkpoint(project_id=job.project_id, job_id=job.id, step=step, sha256=stored, bytes=size))
        else:
            row.sha256, row.bytes = stored, size
        job.crashes = 0
        session.flush()
        for old in _newest_first(session, job.id)[KEPT:]:
            session.delete(old)  # its bytes have no name any more; a sweep collects them

    work.write(rows)
    work.heartbeat.record("checkpoint", step=step, bytes=size, sha256=stored)


def last_good(work: Work, job_id: uuid.UUID | None = None) -> tuple[int, Path] | None:
    """Step and file of the newest checkpoint whose bytes are right; a damaged one is noted and forgotten.

    job_id  whose checkpoint; of this job unless given
    """
    with work.database.read() as session:
        rows = _newest_first(session, job_id or work.claim.id)
    for row in rows:
        try:
            return row.step, work.blobs.local_path(work.claim.project_id, row.sha256)
        except (BlobCorrupt, Gone) as problem:
            record_corrupt(work, row.step, problem.code)
            work.write(partial(_forget, row.id))
            work.blobs.delete(work.claim.project_id, row.sha256)
    return None


def record_corrupt(work: Work, step: int, reason: str) -> None:
    """Record as an event of the job, and log, that a checkpoint cannot be used."""
    log.error("checkpoint_corrupt", step=step, reason=reason)
    message = (
        f"The checkpoint of step {step} is damaged and was not used ({reason}); training goes on from the one before."
    )
    work.heartbeat.record("log", level="warning", code="checkpoint_corrupt", step=step, message=message)


def _newest_first(session: Session, job_id: uuid.UUID) -> list[Checkpoint]:
    return list(session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc())))


def _forget(checkpoint_id: uuid.UUID, session: Session, _: Job) -> None:
    row = session.get(Checkpoint, checkpoint_id)
    if row is not None:
        session.delete(row)
