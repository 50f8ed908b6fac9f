"""The job queue: rows that workers claim, and messages that wake workers.

    waiting      until the jobs that belong to it, or the one that it begins after, have ended; then queued
    queued       put, or resumed; or given back by its worker, or taken from a worker whose lease ran out
    running      claimed by one worker
    cancelling   the submitter asked to stop it and its worker has not done so yet
    cancelled, interrupted (stopped with `keep`), succeeded, failed: finished; all but succeeded can be resumed

A message says only that there is something to claim: a worker that gets one claims the oldest queued row of its lane,
so lost, doubled and late messages are harmless. `attempt` is the fencing token: every write of a worker names it, and a
worker whose lease was given to another gets LeaseLost. Leases are compared on the database's clock. Functions that take
a session are part of the caller's transaction; those that take the database are a short transaction of their own.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import structlog
from sqlalchemy import Select, event, func, select, tuple_, update
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound
from app.job_kinds import KINDS, LANES
from app.store import children
from app.store.session import Database, clock
from app.store.tables import FINISHED, SCHEMA_VERSION, Job, JobEvent, now

log = structlog.get_logger()

HELD = ("running", "cancelling")
RESUMED = ("failed", "cancelled", "interrupted")
"""States of a finished job that can be resumed."""

Instruction = Literal["continue", "cancel", "stop_and_keep"]
"""What the submitter wants of a job that runs."""


class LeaseLost(Exception):
    """The job is no longer this worker's: the lease ran out and it was given back. Write nothing more and stop."""


class CancelRequested(Exception):
    """The submitter asked to stop the job before it was finished; what it produced is dropped."""


@dataclass(frozen=True)
class Claim:
    """A job that this worker holds, and the fencing token that proves it."""

    id: uuid.UUID
    project_id: uuid.UUID
    kind: str
    lane: str
    spec: dict[str, Any]
    attempt: int
    worker: str
    submitted_by: str | None
    request_id: str | None


# The submitter's end


def put(
    session: Session,
    *,
    project_id: uuid.UUID,
    kind: str,
    spec: dict[str, Any],
    submitted_by: str | None = None,
    request_id: str | None = None,
    parent: Job | None = None,
    after: Job | None = None,
    waits: bool = False,
) -> Job:
    """A new queued job; a worker is woken once the caller's transaction has been committed.

    parent  the job that it belongs to, which waits for it
    after   a job that must have succeeded before this one is queued
    waits   for jobs that will belong to it
    """
    state = "waiting" if waits or after is not None else "queued"
    job = Job(
        state=state,
        parent_id=parent and parent.id,
        after_id=after and after.id,
        schema_version=1 if parent is None else SCHEMA_VERSION,
        project_id=project_id,
        kind=kind,
        lane=KINDS[kind].lane,
        spec=spec,
        submitted_by=submitted_by,
        request_id=request_id,
    )
    session.add(job)
    session.flush()
    record(session, job, "state", {"state": state})
    if state == "queued":
        _notify_after_commit(session, job)
    return job


def request_cancel(session: Session, job: Job, keep: bool = False) -> Job:
    """Stop a job and those that belong to it: at once when it is queued or waits, by its worker when it runs. Asking
    twice gives the same answer.

    With `keep` it ends as interrupted. Raises Conflict when it has already succeeded or failed.
    """
    below = [_locked(session, each.id) for each in children.below(session, job)]
    job = _locked(session, job.id)
    _cancel(session, job, keep)
    for each in reversed(below):  # the ones that wait first, so that nothing is queued by the end of another
        if each.state not in FINISHED:
            _cancel(session, each, keep)
    session.flush()
    return job


def _cancel(session: Session, job: Job, keep: bool) -> None:
    if job.state in ("queued", "waiting"):
        job.keep = keep
        _end_stopped(session, job)
    elif job.state == "running":
        job.state, job.keep = "cancelling", keep
        record(session, job, "state", {"state": "cancelling", "keep": keep})
    elif job.state == "cancelling":
        job.keep = job.keep and keep
    elif job.state in ("succeeded", "failed"):
        raise Conflict(f"Job {job.id} has already {job.state}; there is nothing left to cancel.")


def request_resume(session: Session, job: Job) -> Job:
    """Queue a stopped or failed job again; it goes on from its last checkpoint. Asking twice gives the same answer.

    Those that belong to it and have not succeeded are queued with it. The comparison that a job belongs to waits again.
    """
    below = [_locked(session, each.id) for each in children.below(session, job)]
    job = _locked(session, job.id)
    if stopping := [each for each in (*below, job) if each.state == "cancelling"]:
        raise Conflict(f"Job {stopping[0].id} is still stopping. Ask again once its state is cancelled or interrupted.")
    again = [each for each in below if each.state in RESUMED]
    if job.state == "succeeded" and not again:
        raise Conflict(f"Job {job.id} has succeeded; there is nothing left to resume. Submit a new job instead.")
    for each in again:
        _begin_again(session, each)
    if job.state in FINISHED:
        _begin_again(session, job)
        _wait_again(session, job)
    session.flush()
    return job


def _begin_again(session: Session, job: Job) -> None:
    """Queue a finished job, or let it wait as long as another one must end before."""
    before = None if job.after_id is None else session.get(Job, job.after_id)
    job.crashes, job.keep, job.error, job.finished_at, job.result = 0, False, None, None, None
    if children.unfinished(session, job) or (before is not None and before.state != "succeeded"):
        _let_wait(session, job)
    else:
        _queue_again(session, job, "resumed by its submitter")


def _wait_again(session: Session, job: Job) -> None:
    """A comparison that has ended without this job waits for it."""
    if job.parent_id is None:
        return
    parent = _locked(session, job.parent_id)
    if parent.state in FINISHED and KINDS[parent.kind].makes == "comparison":
        parent.crashes, parent.keep, parent.error, parent.finished_at, parent.result = 0, False, None, None, None
        _let_wait(session, parent)


def _let_wait(session: Session, job: Job) -> None:
    job.state, job.worker, job.heartbeat_at, job.eta_s = "waiting", None, None, None
    record(session, job, "state", {"state": "waiting", "reason": "resumed by its submitter"})


def get(session: Session, project_id: uuid.UUID, job_id: uuid.UUID) -> Job:
    """The job; NotFound when it is unknown or another project's."""
    job = session.scalar(select(Job).where(Job.project_id == project_id, Job.id == job_id))
    if job is None:
        raise NotFound(f"There is no job {job_id} in this project.")
    return job


def list_jobs(
    session: Session,
    project_id: uuid.UUID,
    *,
    state: str | None = None,
    kind: str | None = None,
    before: uuid.UUID | None = None,
    limit: int,
) -> Sequence[Job]:
    """Jobs of a project, newest first, older than `before`."""
    query = select(Job).where(Job.project_id == project_id).order_by(Job.id.desc()).limit(limit)
    for column, value in ((Job.state, state), (Job.kind, kind)):
        query = query if value is None else query.where(column == value)
    return session.scalars(query if before is None else query.where(Job.id < before)).all()


def events_after(session: Session, job_id: uuid.UUID, number: int = 0, limit: int = 500) -> Sequence[JobEvent]:
    """The job's events after event `number`, oldest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.number > number)
    return session.scalars(query.order_by(JobEvent.number).limit(limit)).all()


MOST_COUNTED = 1000
"""Places in a queue that are counted; every job behind them is told this one, so that a long queue costs no more."""


def position(session: Session, job: Job) -> int | None:
    """1 for the job that is claimed next in its lane, at most MOST_COUNTED; None when it is not queued."""
    return positions(session, [job]).get(job.id)


def positions(session: Session, jobs: Sequence[Job]) -> dict[uuid.UUID, int]:
    """The places of those that are queued, by id; one query for each lane."""
    places: dict[uuid.UUID, int] = {}
    for lane in {job.lane for job in jobs if job.state == "queued"}:
        queued = _in_order(lane).limit(MOST_COUNTED)
        mine = {job.id for job in jobs if job.state == "queued" and job.lane == lane}
        # Numbered by the database: a thousand ids would take longer to arrive than to be counted.
        numbered = select(queued.subquery().c.id, func.row_number().over()).subquery()
        found = select(numbered).where(numbered.c[0].in_(mine))
        places |= dict.fromkeys(mine, MOST_COUNTED) | {row[0]: row[1] for row in session.execute(found)}
    return places


def _in_order(lane: str) -> Select[uuid.UUID]:
    """Ids of the queued jobs of a lane, the oldest first.

    Written as a range that has one value: after an equality Postgres may go through the ids of all jobs, finished ones
    first, because it takes queued ones to be spread evenly among them.
    """
    place, here = tuple_(Job.state, Job.lane), tuple_("queued", lane)
    return select(Job.id).where(place >= here, place <= here).order_by(Job.state, Job.lane, Job.id)


def eta_s(session: Session, job: Job, place: int | None) -> float | None:
    """Seconds to the end of a running job; to the start of the first in the queue, where the job before it has an end
    in sight.

    place  of the job in the queue
    """
    if job.state != "queued":
        return job.eta_s if job.state == "running" else None
    if place != 1:
        return None
    return session.scalar(select(func.min(Job.eta_s)).where(Job.state == "running", Job.lane == job.lane))


# The worker's end


def claim(database: Database, *, worker: str, lane: str, job_id: uuid.UUID | None = None) -> Claim | None:
    """The oldest queued job of the lane (or the one named), now this worker's; None when there is none.

    A job whose spec is newer than this code is left for a newer worker.
    """
    queued = _in_order(lane).where(Job.schema_version <= SCHEMA_VERSION)
    queued = queued if job_id is None else queued.where(Job.id == job_id)
    oldest = queued.limit(1).with_for_update(skip_locked=True).scalar_subquery()
    taken = update(Job).where(Job.id == oldest, Job.state == "queued").returning(Job)
    values = {
        "state": "running",
        "attempt": Job.attempt + 1,
        "worker": worker,
        "heartbeat_at": clock(),
        "started_at": func.coalesce(Job.started_at, now()),
    }
    with database.write() as session:
        job = session.scalars(taken.values(values), execution_options={"synchronize_session": False}).one_or_none()
        if job is None:
            return None
        record(session, job, "state", {"state": "running", "worker": worker})
        return Claim(
            job.id, job.project_id, job.kind, job.lane, job.spec, job.attempt, worker, job.submitted_by, job.request_id
        )


def heartbeat(
    database: Database, claim: Claim, *, events: Iterable[tuple[str, dict[str, Any]]] = (), **progress: Any
) -> Instruction:
    """Prolong the lease, write progress (columns of Job) and events, and return what the submitter wants.

    Raises LeaseLost.
    """
    with database.write() as session:
        job = held(session, claim)
        job.heartbeat_at = clock()
        for name, value in storable(progress).items():
            setattr(job, name, value)
        for kind, data in events:
            record(session, job, kind, data)
        return instruction(job)


def instruction(job: Job) -> Instruction:
    """What the submitter wants of a job that is held."""
    if job.state == "running":
        return "continue"
    return "stop_and_keep" if job.keep else "cancel"


def finish(session: Session, claim: Claim, result: dict[str, Any]) -> None:
    """Succeed, in the transaction that writes what the job produced.

    Raises LeaseLost or CancelRequested, so that nothing is written.
    """
    job = held(session, claim)
    if job.state == "cancelling":
        raise CancelRequested(f"Job {job.id} was cancelled before it was finished.")
    job.result, job.fraction, job.eta_s = storable(result), 1.0, None
    _end(session, job, "succeeded")


def fail(database: Database, claim: Claim, error: dict[str, str]) -> None:
    """Fail with {"code", "detail"}: a sentence the submitter can act on.

    A job that was being cancelled ends cancelled.
    """
    with database.write() as session:
        job = held(session, claim)
        if job.state == "cancelling":
            _end_stopped(session, job)
        else:
            job.error = storable(error)
            _end(session, job, "failed", **job.error)


def cancelled(database: Database, claim: Claim) -> None:
    """The worker has stopped as the submitter asked: cancelled, or interrupted when the work is kept."""
    with database.write() as session:
        _end_stopped(session, held(session, claim))


def give_back(database: Database, claim: Claim, reason: str, *, crash_limit: int | None = None) -> None:
    """Return the job to the queue; with `crash_limit` it counts as a crash and fails when there were too many."""
    with database.write() as session:
        requeue(session, held(session, claim), reason, crash_limit=crash_limit)


def requeue(session: Session, job: Job, reason: str, *, crash_limit: int | None) -> None:
    """What becomes of a locked job that its worker let go: stopped if that was asked, failed if it crashed too often,
    else queued.

    `crash_limit` is the number of crashes without a new checkpoint in between; None when nothing crashed.
    """
    if job.state == "cancelling":
        _end_stopped(session, job, reason=reason)
        return
    job.crashes += crash_limit is not None
    if crash_limit is not None and job.crashes >= crash_limit:
        detail = (
            f"The job was started {job.crashes} times and each time its worker was lost before a new checkpoint"
            f" ({reason}). "
        )
        job.error = {
            "code": "worker_crashed",
            "detail": detail + "Make it smaller (patch, batch, network) or resume it to try again.",
        }
        _end(session, job, "failed", **job.error)
        return
    _queue_again(session, job, reason)


def held(session: Session, claim: Claim) -> Job:
    """The claimed row, locked for this transaction; raises LeaseLost when another attempt owns it or nobody does."""
    try:
        job = _locked(session, claim.id)
    except NotFound:
        raise LeaseLost(f"Job {claim.id} is gone; its project was deleted.") from None
    if job.attempt != claim.attempt or job.state not in HELD:
        raise LeaseLost(
            f"Job {claim.id} was attempt {claim.attempt} here and is attempt {job.attempt}, {job.state}, now. This"
            " worker stops and writes nothing."
        )
    return job


# What both ends share


def record(session: Session, job: Job | Claim, kind: str, data: dict[str, Any]) -> int:
    """Add an event (state, progress, metric, checkpoint, log) to the job; its number, without gaps."""
    counter = update(Job).where(Job.id == job.id).values(events=Job.events + 1).returning(Job.events)
    number = session.scalars(counter, execution_options={"synchronize_session": False}).one()
    session.add(
        JobEvent(
            job_id=job.id,
            number=number,
            project_id=job.project_id,
            event=kind,
            attempt=job.attempt,
            data=storable(data),
        )
    )
    return number


def storable(value: Any) -> Any:
    """The value as both databases keep it: no NaN or infinity (null instead), no NUL and no half surrogate pair in
    text.
    """
    if isinstance(value, dict):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.replace("\x00", "").encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _locked(session: Session, job_id: uuid.UUID) -> Job:
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None:
        raise NotFound(f"There is no job {job_id} any more.")
    return job


def _end(session: Session, job: Job, state: str, **data: Any) -> None:
    job.state, job.finished_at, job.worker, job.heartbeat_at, job.eta_s = state, now(), None, None, None
    record(session, job, "state", {"state": state, **data})
    _release_followers(session, job)
    if job.parent_id is not None:
        _tell_parent(session, job)


def _release_followers(session: Session, job: Job) -> None:
    """What waits for this job alone is queued, or ends as it did."""
    followers = select(Job).where(Job.after_id == job.id, Job.state == "waiting").order_by(Job.id).with_for_update()
    for follower in session.scalars(followers).all():
        if job.state == "succeeded":
            _queue_again(session, follower, "the training that it starts from has succeeded")
        elif job.state == "failed":
            why = (job.error or {}).get("detail", "")
            follower.error = {"code": "start_failed", "detail": f"The training that it was to start from failed: {why}"}
            _end(session, follower, "failed", **follower.error)
        else:
            follower.keep = job.keep
            _end_stopped(session, follower)


def _tell_parent(session: Session, job: Job) -> None:
    """The job that this one belonged to learns how it ended, and is queued once the last one has.

    It is locked before the others are counted, so that of two that end at once one sees that it is the last.
    """
    assert job.parent_id is not None
    parent = _locked(session, job.parent_id)
    if parent.state != "waiting":
        return
    for name, value in children.progress(session, parent).items():
        setattr(parent, name, value)
    why = f": {(job.error or {}).get('detail')}" if job.state == "failed" else ""
    message = f"{KINDS[job.kind].title_of(job.spec)} {job.state}{why}"
    record(session, parent, "log", {"level": "warning" if why else "info", "message": message, "job": str(job.id)})
    figures = {name: getattr(parent, name) for name in ("phase", "fraction", "step", "steps", "eta_s")}
    record(session, parent, "progress", figures)
    if not children.unfinished(session, parent):
        _queue_again(session, parent, "all jobs that belong to it have ended")


def _end_stopped(session: Session, job: Job, **data: Any) -> None:
    _end(session, job, "interrupted" if job.keep else "cancelled", **data)


def _queue_again(session: Session, job: Job, reason: str) -> None:
    job.state, job.worker, job.heartbeat_at, job.eta_s = "queued", None, None, None
    record(session, job, "state", {"state": "queued", "reason": reason})
    _notify_after_commit(session, job)


# Messages


class Broker:
    """Wakes the workers of a lane by a message through Celery and Redis, which carries a job id and may always fail."""

    def __init__(self, redis_url: str):
        # A request must not wait for a broker that is down: one try, and a second at most when it hangs.
        self.celery = celery_app(redis_url, max_retries=0, socket_connect_timeout=1.0, socket_timeout=1.0)

    def notify(self, lane: str, job_id: uuid.UUID) -> bool:
        """Wake one worker of the lane; False when the broker does not answer, which a sweep makes good later."""
        try:
            self.celery.send_task(f"toposerve.{lane}", args=[str(job_id)], queue=lane, retry=False)
        except Exception as error:  # whatever the broker's libraries raise, the row is committed and the job is safe
            log.warning("broker_unreachable", lane=lane, job_id=str(job_id), reason=str(error))
            return False
        return True

    def waiting(self, lane: str) -> int | None:
        """Messages of the lane that no worker has taken yet; None when the broker does not answer."""
        try:
            with self.celery.connection_for_write() as connection:
                return connection.default_channel.client.llen(lane)
        except Exception as error:
            log.warning("broker_unreachable", lane=lane, reason=str(error))
            return None


@lru_cache
def broker_of(redis_url: str | None) -> Broker | None:
    """The broker at this address; None without one."""
    return Broker(redis_url) if redis_url else None


def celery_app(redis_url: str, **transport_options: Any) -> Any:
    """A Celery application for messages only: JSON, early acknowledgement, no results, one message at a time."""
    from celery import Celery  # not at the top: a gateway without a broker never pays for it
    from kombu import Exchange, Queue

    app = Celery("toposerve", broker=redis_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        # The nameless exchange puts straight into the lane's list; a named one keeps its bindings in Redis and loses
        # them to FLUSHALL.
        task_queues=[Queue(lane, Exchange(""), routing_key=lane) for lane in LANES],
        task_default_queue="quick",
        broker_transport_options=transport_options,
        broker_connection_retry_on_startup=True,
    )
    return app


def _notify_after_commit(session: Session, job: Job) -> None:
    job.notified_at = clock()
    if not event.contains(session, "after_commit", _notify):
        event.listen(session, "after_commit", _notify)
    session.info.setdefault("to_notify", []).append((job.lane, job.id))


def _notify(session: Session) -> None:
    if session.in_nested_transaction():  # the end of a savepoint is not yet a commit
        return
    to_notify = session.info.pop("to_notify", [])
    broker = broker_of(session.info.get("redis_url"))
    if broker is not None:
        for lane, job_id in to_notify:
            broker.notify(lane, job_id)
