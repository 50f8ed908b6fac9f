"""The job queue: claims, leases, cancelling, events, on both databases."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app import queue
from app.errors import Conflict, NotFound
from app.store.session import Database, clock
from app.store.tables import SCHEMA_VERSION, Job, JobEvent, Project

Put = Callable[..., Job]


@pytest.fixture
def put(database: Database, project_id: uuid.UUID) -> Put:
    def put(kind: str = "train", **spec: Any) -> Job:
        with database.write() as session:
            return queue.put(session, project_id=project_id, kind=kind, spec=spec)

    return put


@pytest.fixture
def take(database: Database) -> Callable[..., queue.Claim | None]:
    return lambda lane="train", worker="one", **more: queue.claim(database, worker=worker, lane=lane, **more)


def state(database: Database, job: Job) -> str:
    with database.read() as session:
        return session.get(Job, job.id).state


def story(database: Database, job: Job) -> list[str]:
    with database.read() as session:
        return [event.data.get("state", event.event) for event in queue.events_after(session, job.id)]


def cancel(database: Database, job: Job, keep: bool = False) -> str:
    with database.write() as session:
        return queue.request_cancel(session, job, keep).state


def resume(database: Database, job: Job) -> str:
    with database.write() as session:
        return queue.request_resume(session, job).state


# Taking


def test_the_oldest_job_of_a_lane_is_claimed_first_and_once(put, take):
    first, second, quick = put(n=1), put(n=2), put("analyse")
    assert [take().id, take().id, take()] == [first.id, second.id, None]
    assert take("quick").id == quick.id


def test_a_claim_carries_what_the_worker_needs(database, put, take):
    job = put(n=1)
    claim = take()
    assert (claim.kind, claim.lane, claim.spec, claim.attempt, claim.project_id) == (
        "train",
        "train",
        {"n": 1},
        1,
        job.project_id,
    )
    with database.read() as session:
        row = session.get(Job, job.id)
    assert (row.state, row.worker, row.attempt) == ("running", "one", 1) and row.started_at is not None


def test_named_job_can_be_claimed_only_while_queued(put, take):
    put()
    second = put()
    assert take(job_id=second.id).id == second.id
    assert take(job_id=second.id) is None
    assert take(job_id=uuid.uuid4()) is None


def test_job_with_a_newer_schema_stays_queued(database, put, take):
    newer, known = put(), put()
    with database.write() as session:
        session.execute(update(Job).where(Job.id == newer.id).values(schema_version=SCHEMA_VERSION + 1))
    assert take().id == known.id
    assert take() is None
    assert state(database, newer) == "queued"


def test_concurrent_claims_take_every_job_exactly_once(put, take):
    jobs = {put(n=n).id for n in range(24)}
    start = threading.Barrier(8)

    def drain(name: int) -> list[uuid.UUID]:
        start.wait()
        return [claim.id for claim in iter(lambda: take(worker=str(name)), None)]

    with ThreadPoolExecutor(8) as pool:
        taken = [job_id for ids in pool.map(drain, range(8)) for job_id in ids]
    assert len(taken) == 24 and set(taken) == jobs


def test_failed_transaction_queues_nothing(database, project_id, take):
    with pytest.raises(RuntimeError), database.write() as session:
        queue.put(session, project_id=project_id, kind="train", spec={})
        raise RuntimeError
    assert take() is None


# Holding


def test_heartbeat_writes_progress_and_events(database, put, take):
    job = put()
    assert (
        queue.heartbeat(
            database, take(), phase="train", step=3, steps=10, fraction=0.3, events=[("metric", {"dice": 0.5})]
        )
        == "continue"
    )
    with database.read() as session:
        row = session.get(Job, job.id)
    assert (row.phase, row.step, row.steps, row.fraction) == ("train", 3, 10, 0.3)
    assert story(database, job) == ["queued", "running", "metric"]


def test_nan_becomes_null_and_nul_characters_are_removed(database, put, take):
    job = put()
    queue.heartbeat(
        database,
        take(),
        seconds_per_step=float("nan"),
        events=[("log", {"message": "a\x00b", "list": [float("inf"), 1.0]})],
    )
    with database.read() as session:
        assert session.get(Job, job.id).seconds_per_step is None
        assert queue.events_after(session, job.id)[-1].data == {"message": "ab", "list": [None, 1.0]}


def finish(database: Database, claim: queue.Claim, result: dict[str, Any] | None = None) -> None:
    with database.write() as session:
        queue.finish(session, claim, result or {})


@pytest.mark.parametrize(
    "write",
    [
        queue.heartbeat,
        lambda database, claim: queue.fail(database, claim, {"code": "x", "detail": "y"}),
        queue.cancelled,
        lambda database, claim: queue.give_back(database, claim, "stopped"),
        finish,
    ],
    ids=["heartbeat", "fail", "cancelled", "give_back", "finish"],
)
def test_worker_that_lost_its_claim_cannot_write(database, put, take, write):
    job = put()
    zombie = take()
    queue.give_back(database, zombie, "lease ran out")
    with pytest.raises(queue.LeaseLost):
        write(database, zombie)  # while nobody has it
    heir = take(worker="two")
    with pytest.raises(queue.LeaseLost, match="attempt 1 here and is attempt 2"):
        write(database, zombie)  # while another has it
    assert queue.heartbeat(database, heir) == "continue"
    assert story(database, job) == ["queued", "running", "queued", "running"]


def test_finished_job_has_result_and_full_progress(database, put, take):
    job = put()
    finish(database, take(), {"dice": 0.9})
    with database.read() as session:
        row = session.get(Job, job.id)
    assert (row.state, row.result, row.fraction, row.worker) == (
        "succeeded",
        {"dice": 0.9},
        1.0,
        None,
    ) and row.finished_at is not None


def test_rows_written_with_a_lost_lease_are_rolled_back(database, project_id, put, take):
    put()
    claim = take()
    queue.give_back(database, claim, "lease ran out")
    with pytest.raises(queue.LeaseLost), database.write() as session:
        session.add(Project(name="made by a zombie"))
        queue.finish(session, claim, {})
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Project)) == 1


def test_failed_job_keeps_its_message(database, put, take):
    job = put()
    queue.fail(database, take(), {"code": "resource_exhausted", "detail": "Make the patch smaller."})
    with database.read() as session:
        row = session.get(Job, job.id)
    assert (row.state, row.error["code"], row.error["detail"]) == (
        "failed",
        "resource_exhausted",
        "Make the patch smaller.",
    )


# Cancelling and resuming


def test_a_queued_job_is_cancelled_at_once_and_never_runs(database, put, take):
    job = put()
    assert cancel(database, job) == "cancelled"
    assert take() is None


def test_running_job_sees_its_cancel_at_the_next_heartbeat(database, put, take):
    job = put()
    claim = take()
    assert cancel(database, job) == "cancelling"
    assert queue.heartbeat(database, claim) == "cancel"
    queue.cancelled(database, claim)
    assert state(database, job) == "cancelled"


def test_a_job_that_is_stopped_and_kept_ends_interrupted(database, put, take):
    job = put()
    claim = take()
    cancel(database, job, keep=True)
    assert queue.heartbeat(database, claim) == "stop_and_keep"
    queue.cancelled(database, claim)
    assert state(database, job) == "interrupted"
    assert cancel(database, put(), keep=True) == "interrupted"


def test_cancelling_twice_gives_the_same_answer(database, put, take):
    queued, running = put(), put()
    assert [cancel(database, queued), cancel(database, queued)] == ["cancelled", "cancelled"]
    take(job_id=running.id)
    assert [cancel(database, running), cancel(database, running)] == ["cancelling", "cancelling"]
    assert story(database, running).count("cancelling") == 1


def test_plain_cancel_overrides_cancel_and_keep(database, put, take):
    job = put()
    claim = take()
    cancel(database, job, keep=True)
    cancel(database, job)
    assert queue.heartbeat(database, claim) == "cancel"


def test_a_finished_job_cannot_be_cancelled(database, put, take):
    done, failed = put(), put()
    finish(database, take())
    queue.fail(database, take(), {"code": "x", "detail": "y"})
    for job in (done, failed):
        with pytest.raises(Conflict, match="already"):
            cancel(database, job)


@pytest.mark.parametrize(
    "end",
    [
        lambda d, c: queue.fail(d, c, {"code": "x", "detail": "y"}),
        lambda d, c: queue.give_back(d, c, "crash", crash_limit=1),
    ],
)
def test_cancelled_job_never_shows_as_failed(database, put, take, end):
    job = put()
    claim = take()
    cancel(database, job)
    end(database, claim)
    with database.read() as session:
        row = session.get(Job, job.id)
    assert (row.state, row.error) == ("cancelled", None)


def test_job_cancelled_before_finishing_writes_no_result(database, put, take):
    job = put()
    claim = take()
    cancel(database, job)
    with pytest.raises(queue.CancelRequested):
        finish(database, claim, {"model": "m"})
    with database.read() as session:
        row = session.get(Job, job.id)
    assert (row.state, row.result) == ("cancelling", None)


@pytest.mark.parametrize("ended", ["cancelled", "interrupted", "failed"])
def test_interrupted_job_can_be_resumed(database, put, take, ended):
    job = put()
    claim = take()
    if ended == "failed":
        queue.fail(database, claim, {"code": "x", "detail": "y"})
    else:
        cancel(database, job, keep=ended == "interrupted")
        queue.cancelled(database, claim)
    assert state(database, job) == ended
    assert [resume(database, job), resume(database, job)] == ["queued", "queued"]
    again = take()
    assert (again.id, again.attempt) == (job.id, 2)
    with database.read() as session:
        row = session.get(Job, job.id)
    assert (row.error, row.finished_at, row.crashes, row.keep) == (None, None, 0, False)


def test_a_job_that_is_stopping_or_has_succeeded_cannot_be_resumed(database, put, take):
    stopping, done = put(), put()
    take()
    cancel(database, stopping)
    finish(database, take())
    for job, reason in ((stopping, "still stopping"), (done, "succeeded")):
        with pytest.raises(Conflict, match=reason):
            resume(database, job)


def test_job_that_crashes_too_often_fails_with_a_message(database, put, take):
    job = put()
    for _ in range(3):
        assert state(database, job) == "queued"
        queue.give_back(database, take(), "the process was killed", crash_limit=3)
    with database.read() as session:
        row = session.get(Job, job.id)
    assert (row.state, row.error["code"]) == ("failed", "worker_crashed")
    assert "3 times" in row.error["detail"] and "the process was killed" in row.error["detail"]


def test_returning_a_job_without_a_crash_uses_no_attempt(database, put, take):
    job = put()
    for _ in range(5):
        queue.give_back(database, take(), "the worker was stopped")
    assert state(database, job) == "queued"


# Looking


def test_the_position_counts_the_queued_jobs_of_the_lane(database, put, take):
    first, second, quick = put(), put(), put("predict")
    with database.read() as session:
        assert [queue.position(session, job) for job in (first, second, quick)] == [1, 2, 1]
    take()
    with database.read() as session:
        assert [queue.position(session, session.get(Job, job.id)) for job in (first, second)] == [None, 1]


def test_eta_of_the_next_job_is_that_of_the_running_job(database, put, take):
    running, first, second = put(), put(), put()
    queue.heartbeat(database, take(), eta_s=42.0)
    with database.read() as session:
        jobs = [session.get(Job, job.id) for job in (running, first, second)]
        assert [queue.eta_s(session, job, queue.position(session, job)) for job in jobs] == [42.0, 42.0, None]


def test_places_behind_the_last_that_is_counted_are_all_that_one(database, put, monkeypatch):
    jobs = [put() for _ in range(4)]
    monkeypatch.setattr(queue, "MOST_COUNTED", 2)
    with database.read() as session:
        assert [queue.positions(session, jobs)[job.id] for job in jobs] == [1, 2, 2, 2]


def test_jobs_are_listed_newest_first_and_page_by_page(database, project_id, put, take):
    jobs = [put("train" if n % 2 else "predict") for n in range(6)]
    take()
    with database.read() as session:

        def ids(**more):
            return [job.id for job in queue.list_jobs(session, project_id, limit=10, **more)]

        newest_first = [job.id for job in reversed(jobs)]
        assert ids() == newest_first
        assert ids(before=jobs[3].id) == newest_first[3:]
        assert ids(kind="predict") == [jobs[4].id, jobs[2].id, jobs[0].id]
        assert ids(state="running") == [jobs[1].id]
        assert [job.id for job in queue.list_jobs(session, project_id, limit=2)] == newest_first[:2]
        assert queue.list_jobs(session, uuid.uuid4(), limit=10) == []


def test_another_projects_job_is_not_found(database, project_id, put):
    job = put()
    with database.read() as session:
        assert queue.get(session, project_id, job.id).id == job.id
        for project, job_id in ((uuid.uuid4(), job.id), (project_id, uuid.uuid4())):
            with pytest.raises(NotFound):
                queue.get(session, project, job_id)


def test_concurrent_writers_leave_no_gap_in_event_numbers(database, project_id, put):
    job = put()

    def write(_: int) -> None:
        with database.write() as session:
            queue.record(session, job, "log", {"message": "hello"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(20)))
    with database.read() as session:
        numbers = session.scalars(
            select(JobEvent.number).where(JobEvent.job_id == job.id).order_by(JobEvent.number)
        ).all()
        assert numbers == list(range(1, 22))
        assert [event.number for event in queue.events_after(session, job.id, 18)] == [19, 20, 21]
        assert len(queue.events_after(session, job.id, 0, limit=5)) == 5


def test_leases_use_the_database_clock(database, put, take):
    take_before = put()
    take()
    with database.read() as session:
        age = session.scalar(select(clock() - Job.heartbeat_at).where(Job.id == take_before.id))
    assert 0 <= age < 5


# Messages


def test_broker_message_is_sent_after_commit(database, project_id, monkeypatch):
    sent: list[uuid.UUID] = []

    class FakeBroker:
        def notify(self, lane: str, job_id: uuid.UUID) -> None:
            with database.read() as session:  # another connection sees the row: it is committed
                assert session.get(Job, job_id) is not None
            sent.append(job_id)

    monkeypatch.setattr(queue, "broker_of", lambda url: FakeBroker())
    with database.write() as session:
        with session.begin_nested():
            first = queue.put(session, project_id=project_id, kind="train", spec={})
        second = queue.put(session, project_id=project_id, kind="train", spec={})
        assert sent == []
    assert sent == [first.id, second.id]
    with pytest.raises(RuntimeError), database.write() as session:
        queue.put(session, project_id=project_id, kind="train", spec={})
        raise RuntimeError
    assert len(sent) == 2


def test_no_message_is_sent_without_a_broker():
    assert queue.broker_of(None) is None
