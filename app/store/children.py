"""Jobs that belong to another job: which there are, and how far they are together."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app.job_kinds import KINDS
from app.store.tables import FINISHED, Job


def listed(project_id: UUID, parent_id: UUID | None) -> Select[Job]:
    """The jobs of a project that belong to this one; of None those that belong to no other."""
    return select(Job).where(Job.project_id == project_id, Job.parent_id == parent_id)


def of(session: Session, job: Job) -> Sequence[Job]:
    """The jobs that belong to this one, in the order in which they were planned."""
    return session.scalars(select(Job).where(Job.parent_id == job.id).order_by(Job.id)).all()


def below(session: Session, job: Job) -> list[Job]:
    """The jobs that belong to this one and to those, each before the one that it belongs to.

    Whoever locks several locks them in this order and this one last, so that nobody waits for each other.
    """
    return [each for child in of(session, job) for each in (*below(session, child), child)]


def unfinished(session: Session, job: Job) -> int:
    """How many jobs that belong to this one have not finished."""
    query = select(func.count()).where(Job.parent_id == job.id, Job.state.not_in(FINISHED))
    return session.scalar(query) or 0


def progress(session: Session, job: Job) -> dict[str, Any]:
    """Where the jobs of a job stand together: phase, fraction, step, steps (jobs), and seconds to the end.

    The time is known once one of them has run: what is left of each, shared by as many workers as are busy with them.
    """
    rows = of(session, job)
    done = [row for row in rows if row.state in FINISHED]
    open_ = [row for row in rows if row.state not in FINISHED]
    took = [
        (row.finished_at - row.started_at).total_seconds() / row.steps
        for row in done
        if row.state == "succeeded" and row.finished_at and row.started_at and row.steps
    ]
    each = fmean(took) if took else None
    left: list[float | None] = []
    for row in open_:
        if KINDS[row.kind].makes == "comparison" and row.state == "waiting":
            left.append(progress(session, row)["eta_s"])
        elif row.state == "running" and row.eta_s is not None:
            left.append(row.eta_s)
        else:
            left.append(None if each is None else each * row.spec.get("steps", 0) * (1 - row.fraction))
    known = [seconds for seconds in left if seconds is not None]
    busy = sum(row.state == "running" for row in rows)
    # One that has not begun takes as long as those that have; unknown as long as nothing has.
    eta = sum(known) * len(left) / len(known) / max(1, busy) if known else None
    shares = [1.0 if row.state in FINISHED else row.fraction for row in rows]
    return {
        "phase": "compare",
        "fraction": fmean(shares) if shares else 0.0,
        "step": len(done),
        "steps": len(rows),
        "eta_s": eta if open_ else None,
    }
