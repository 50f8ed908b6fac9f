"""The compare job: says what its trainings found, once all of them have ended."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.comparison.table import compared, winner
from app.store import children
from app.store.tables import Checkpoint, Job
from workers.work import Failed, Work


def compare(work: Work) -> None:
    """Compare the figures of the trainings and drop their checkpoints; one that failed is a row with its reason."""
    work.heartbeat.progress(phase="compare")
    with work.database.read() as session:
        table = compared(session, session.get_one(Job, work.claim.id))
    if not table.candidates[0].measured:
        raise Failed("baseline_failed", table.verdict)

    def rows(session: Session) -> dict[str, Any]:
        jobs = children.of(session, session.get_one(Job, work.claim.id))
        failed = [job for job in jobs if job.state != "succeeded"]
        if not failed:  # else they are what a resumed training starts from
            session.execute(delete(Checkpoint).where(Checkpoint.job_id.in_([job.id for job in jobs])))
        return {
            "verdict": table.verdict,
            "baseline": table.baseline,
            "winner": winner(table),
            "helps": table.helps,
            "trainings": len(jobs),
            "failed": len(failed),
            "images": table.images,
        }

    work.finish(rows)
