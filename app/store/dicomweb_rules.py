"""Rules for new series of a PACS, what they found, and their polls.

One worker polls a rule at a time: a poll holds it by `next_poll_at`, which it moves on while it lasts, and every write
of a poll names its number, so one that was taken for lost and comes back writes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.store import rows
from app.store.session import Database, clock
from app.store.tables import FINISHED, SERIES_STATES, DicomwebRule, DicomwebSeries, Job, now

MOST = 100
"""Rules of one project."""
LONGEST_PAUSE_S = 3600
"""Time to the next poll after many that failed, unless the rule itself asks less often."""
AT_ONCE = 500
"""Series in one query."""

owned = partial(rows.owned, DicomwebRule)
"""The rules of a project."""
get = partial(rows.get, DicomwebRule)
"""The rule of that id in this project, or NotFound."""


class PollLost(Exception):
    """The rule was changed, disabled or deleted, or another worker polls it; write nothing more."""


@dataclass(frozen=True)
class Poll:
    """One poll of a rule, and the number that proves that this worker holds it."""

    rule: DicomwebRule
    number: int


def add(session: Session, *, project_id: uuid.UUID, name: str, **columns: Any) -> DicomwebRule:
    """A new rule, due at once; Conflict when the project has one of that name, or too many."""
    if session.scalar(owned(project_id).where(DicomwebRule.name == name)) is not None:
        raise Conflict(f"There is a rule named {name} already. Choose another name, or delete that rule.")
    if (session.scalar(select(func.count()).where(DicomwebRule.project_id == project_id)) or 0) >= MOST:
        raise Conflict(f"The project has {MOST} rules, the most there can be. Delete one that is not needed.")
    row = DicomwebRule(project_id=project_id, name=name, **columns)
    session.add(row)
    session.flush()
    return row


def poll_soon(session: Session, row: DicomwebRule) -> None:
    """Let the next poll begin at once, as if none had failed; a poll that runs is given up."""
    row.polls = DicomwebRule.polls + 1
    row.next_poll_at, row.failures, row.last_error = 0.0, 0, None
    session.flush()
    session.refresh(row)


def series_of(session: Session, project_id: uuid.UUID, rule_id: uuid.UUID) -> Any:
    """The query of the series that a rule has found; NotFound where there is no such rule."""
    get(session, project_id, rule_id)
    return select(DicomwebSeries).where(DicomwebSeries.rule_id == rule_id)


def counted(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, dict[str, int]]:
    """How many series each rule has found, by state."""
    counts = {each: dict.fromkeys(SERIES_STATES, 0) for each in ids}
    query = select(DicomwebSeries.rule_id, DicomwebSeries.state, func.count()).where(DicomwebSeries.rule_id.in_(ids))
    for rule_id, state, number in session.execute(query.group_by(DicomwebSeries.rule_id, DicomwebSeries.state)):
        counts[rule_id][state] = number
    return counts


# The worker's end


def begin(database: Database, *, pacs: Collection[str], hold_s: float) -> Poll | None:
    """The rule of one of these PACS that is due longest, now this worker's for `hold_s`; None when none is due."""
    due = (
        select(DicomwebRule.id)
        .where(DicomwebRule.enabled, DicomwebRule.next_poll_at <= clock(), DicomwebRule.pacs.in_(list(pacs)))
        .order_by(DicomwebRule.next_poll_at, DicomwebRule.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    taken = update(DicomwebRule).where(DicomwebRule.id == due.scalar_subquery())
    values = {"polls": DicomwebRule.polls + 1, "next_poll_at": clock() + hold_s, "last_polled_at": now()}
    with database.write() as session:
        row = session.scalars(
            taken.values(values).returning(DicomwebRule), execution_options={"synchronize_session": False}
        ).one_or_none()
        return None if row is None else Poll(row, row.polls)


def held(session: Session, poll: Poll) -> DicomwebRule:
    """The rule, locked until the end of the transaction; PollLost when it is no longer this poll's."""
    query = select(DicomwebRule).where(DicomwebRule.id == poll.rule.id, DicomwebRule.polls == poll.number)
    row = session.scalar(query.where(DicomwebRule.enabled).with_for_update())
    if row is None:
        raise PollLost
    return row


def hold_on(database: Database, poll: Poll, hold_s: float) -> None:
    """Keep the rule for `hold_s` more; PollLost."""
    with database.write() as session:
        held(session, poll).next_poll_at = clock() + hold_s


def end(database: Database, poll: Poll, error: dict[str, str] | None) -> None:
    """Write how the poll ended and when the next one begins; PollLost."""
    with database.write() as session:
        row = held(session, poll)
        row.failures = row.failures + 1 if error else 0
        row.last_error = error
        pause = min(row.poll_s * 2 ** min(row.failures, 20), max(row.poll_s, LONGEST_PAUSE_S))
        row.next_poll_at = clock() + pause


def give_back(database: Database, poll: Poll) -> None:
    """Let another worker poll at once: this one stops."""
    with database.write() as session:
        held(session, poll).next_poll_at = 0.0


def found_from(session: Session, rule_id: uuid.UUID) -> str | None:
    """The first StudyDate from which the series were searched that still grow; None when none does."""
    grows = (DicomwebSeries.rule_id == rule_id, DicomwebSeries.state == "growing")
    return session.scalar(select(func.min(DicomwebSeries.listed_from)).where(*grows))


def states(session: Session, rule_id: uuid.UUID, series: Sequence[str]) -> dict[str, str]:
    """The states of those among these series that the rule has found before, by SeriesInstanceUID."""
    known: dict[str, str] = {}
    for start in range(0, len(series), AT_ONCE):
        some = DicomwebSeries.series.in_(series[start : start + AT_ONCE])
        query = select(DicomwebSeries.series, DicomwebSeries.state).where(DicomwebSeries.rule_id == rule_id, some)
        known.update((uid, state) for uid, state in session.execute(query))
    return known


def note(session: Session, row: DicomwebRule, found: Iterable[DicomwebSeries]) -> None:
    """Keep what a complete answer of the PACS says of series that are new, or were still growing.

    found  rows that are not in the session: `growing`, or `left_out`. One that grew no more since the last poll
           becomes `ready`; one that grew waits again; one that is not in the answer any more is forgotten.
    """
    grows = (DicomwebSeries.rule_id == row.id, DicomwebSeries.state == "growing")
    before = {each.series: each for each in session.scalars(select(DicomwebSeries).where(*grows))}
    for each in found:
        there = before.pop(each.series, None)
        if there is None:
            session.add(each)
        elif there.instances == each.instances and each.instances > 0:
            there.state = "ready"
        else:
            there.instances = each.instances
    for gone in before.values():
        session.delete(gone)


def ready(session: Session, row: DicomwebRule, limit: int) -> Sequence[DicomwebSeries]:
    """Series without a job that are complete, the oldest first."""
    query = select(DicomwebSeries).where(DicomwebSeries.rule_id == row.id, DicomwebSeries.state == "ready")
    return session.scalars(query.order_by(DicomwebSeries.id).limit(max(0, limit))).all()


def unfinished(session: Session, row: DicomwebRule) -> int:
    """How many jobs of the rule have not ended."""
    query = select(func.count()).select_from(DicomwebSeries).join(Job, Job.id == DicomwebSeries.job_id)
    return session.scalar(query.where(DicomwebSeries.rule_id == row.id, Job.state.not_in(FINISHED))) or 0


def failed(
    session: Session, row: DicomwebRule, codes: Collection[str], *, most_resumed: int, limit: int
) -> Sequence[tuple[DicomwebSeries, Job]]:
    """Series whose job failed for one of these reasons and was not yet resumed too often, each with the job."""
    query = select(DicomwebSeries, Job).join(Job, Job.id == DicomwebSeries.job_id)
    query = query.where(
        DicomwebSeries.rule_id == row.id,
        DicomwebSeries.resumed < most_resumed,
        Job.state == "failed",
        Job.error["code"].as_string().in_(list(codes)),
    )
    return [(series, job) for series, job in session.execute(query.order_by(DicomwebSeries.id).limit(max(0, limit)))]
