"""Sweeps repair what dead workers, lost messages and interrupted writers leave."""

from __future__ import annotations

import hashlib
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from app import queue
from app.store.session import clock
from app.store.tables import IdempotentRequest, Job, Prediction, Worker, now
from tests.records import job_now, states, story, submit
from tests.services import wait_for
from workers import sweep
from workers.registration import device
from workers.work import scratch_folder


@pytest.fixture
def quick(database, project_id):
    """Queue an analyse job that nobody will run."""
    return lambda: submit(database, project_id, {"kind": "analyse", "images": []})


def silence(database, job: Job, seconds: float = 60) -> None:
    """The worker of this job was last heard that long ago."""
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job.id).values(heartbeat_at=clock() - seconds))


def take(database) -> queue.Claim:
    return queue.claim(database, worker="w", lane="quick")


def test_job_of_a_silent_worker_is_requeued_with_the_reason(database, settings, quick):
    lost, alive = quick(), quick()
    take(database), take(database)
    silence(database, lost)
    assert sweep.requeue_expired(database, settings) == 1
    assert (job_now(database, lost).state, job_now(database, lost).crashes) == ("queued", 1)
    assert job_now(database, alive).state == "running"
    assert "silent for more than 2 s" in story(database, lost)[-1][1]["reason"]


def test_a_job_that_loses_three_workers_fails_and_says_so(database, settings, quick):
    job = quick()
    for _ in range(3):
        take(database)
        silence(database, job)
        sweep.requeue_expired(database, settings)
    row = job_now(database, job)
    assert (row.state, row.error["code"]) == ("failed", "worker_crashed")


@pytest.mark.parametrize(("keep", "ended"), [(False, "cancelled"), (True, "interrupted")])
def test_cancel_is_completed_when_its_worker_is_gone(database, settings, quick, keep, ended):
    job = quick()
    take(database)
    with database.write() as session:
        queue.request_cancel(session, job, keep)
    silence(database, job)
    sweep.requeue_expired(database, settings)
    assert (job_now(database, job).state, job_now(database, job).error) == (ended, None)


def test_concurrent_sweeps_requeue_a_job_once(database, settings, quick):
    jobs = [quick() for _ in range(10)]
    for job in jobs:
        take(database)
        silence(database, job)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: sweep.requeue_expired(database, settings), range(4))) == 10
    for job in jobs:
        assert states(database, job) == ["queued", "running", "queued"] and job_now(database, job).crashes == 1


def test_worker_with_a_wrong_clock_steals_no_lease(database, settings, quick, monkeypatch):
    job = quick()
    take(database)
    real = time.time
    for hour in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda hour=hour: real() + hour)
        assert sweep.requeue_expired(database, settings) == 0
    silence(database, job)
    assert sweep.requeue_expired(database, settings) == 1


# Messages


class Broker:
    """A broker whose messages can be counted."""

    def __init__(self, messages: int = 0, down: bool = False):
        self.messages, self.down, self.sent = messages, down, []

    def waiting(self, lane: str) -> int | None:
        return None if self.down else self.messages * (lane == "quick")

    def notify(self, lane: str, job_id: uuid.UUID) -> bool:
        self.sent.append(job_id)
        return True


def at_work(database, count: int, *, busy: bool = False, seen_s_ago: float = 0) -> None:
    with database.write() as session:
        for _ in range(count):
            session.add(
                Worker(
                    id=uuid.uuid4().hex,
                    lane="quick",
                    seen_at=clock() - seen_s_ago,
                    job_id=uuid.uuid4() if busy else None,
                )
            )


def unheard(database) -> None:
    with database.write() as session:
        session.execute(update(Job).values(notified_at=clock() - 60))


def test_lost_messages_are_resent_once_per_idle_worker(database, settings, quick):
    jobs = [quick() for _ in range(5)]
    unheard(database)
    at_work(database, 2)
    broker = Broker()
    assert sweep.wake_again(database, settings, broker) == 2
    assert broker.sent == [jobs[0].id, jobs[1].id], "the oldest first"
    broker.messages = 2
    assert sweep.wake_again(database, settings, broker) == 0, "as many messages are waiting as there are idle workers"


def test_no_message_is_sent_for_busy_or_stopped_workers(database, settings, quick):
    quick()
    unheard(database)
    at_work(database, 1, busy=True)
    at_work(database, 1, seen_s_ago=60)
    assert sweep.wake_again(database, settings, Broker()) == 0


def test_recent_message_is_not_resent(database, settings, quick):
    quick()
    at_work(database, 1)
    assert sweep.wake_again(database, settings, Broker()) == 0


def test_nothing_is_resent_when_the_broker_is_down(database, settings, quick):
    quick()
    unheard(database)
    at_work(database, 1)
    broker = Broker(down=True)
    assert sweep.wake_again(database, settings, broker) == 0 and broker.sent == []


# Leftovers


def test_unreferenced_blobs_are_deleted_and_others_kept(database, settings, blobs, project_id, rings):
    settings = settings.model_copy(update={"orphan_grace_s": 0.01})
    orphan, _ = blobs.put(project_id, b"orphan")
    kept, size = blobs.put(project_id, b"mask of a prediction")
    with database.write() as session:
        from app.store import versions

        variant = {"onnx_sha256": blobs.put(project_id, b"int8")[0], "refused": None}
        manifest = {"variants": {"int8": variant, "fp16": {"onnx_sha256": None, "refused": "It changes too much."}}}
        facts = {
            "manifest": manifest,
            "spec": {},
            "metrics": {},
            "onnx": blobs.put(project_id, b"onnx"),
            "weights": blobs.put(project_id, b"weights"),
        }
        version = versions.register(
            session, project_id=project_id, job_id=None, model="m", dataset_version_id=None, training_s=None, **facts
        )
        image = queue_image(session, rings)
        artifacts = {"mask": {"sha256": kept, "bytes": size, "media_type": "image/png"}}
        session.add(
            Prediction(
                project_id=project_id,
                model_version_id=version.id,
                image_id=image,
                threshold=0.5,
                artifacts=artifacts,
                timings_ms={},
            )
        )
    before = set(blobs.older_than(-1))
    wait_for(lambda: set(blobs.older_than(0.01)) == before, what="the bytes to be older than 10 ms")
    assert sweep.collect_blobs(database, blobs, settings) == 1
    assert set(blobs.older_than(-1)) == before - {(project_id, orphan)}


def queue_image(session, version):
    from app.store.tables import DatasetItem

    return session.scalars(select(DatasetItem.image_id).where(DatasetItem.version_id == version.id)).first()


def test_recent_blobs_are_never_deleted(database, settings, blobs, project_id):
    blobs.put(project_id, b"about to get its row")
    assert sweep.collect_blobs(database, blobs, settings) == 0


def test_blobs_are_collected_per_project(database, settings, blobs, project_id, rings):
    """An orphan is an orphan although another project names the same digest."""
    other = uuid.uuid4()
    with database.read() as session:
        from app.store.tables import Image

        sha256 = session.scalars(select(Image.sha256)).first()
    content = blobs.read(project_id, sha256)
    assert blobs.put(other, content)[0] == sha256 == hashlib.sha256(content).hexdigest()
    wait_for(lambda: (other, sha256) in set(blobs.older_than(0.01)), what="the bytes to be older than 10 ms")
    assert sweep.collect_blobs(database, blobs, settings.model_copy(update={"orphan_grace_s": 0.01})) == 1
    assert blobs.exists(project_id, sha256) and not blobs.exists(other, sha256)


def test_scratch_folders_of_dead_attempts_are_removed(database, settings, quick):
    running, ended = quick(), quick()
    claim = take(database)
    assert claim.id == running.id
    mine, dead, older = (
        scratch_folder(settings, job.id, attempt) for job, attempt in ((running, 1), (ended, 1), (running, 0))
    )
    foreign = settings.scratch / "notes"
    for folder in (mine, dead, older, foreign):
        (folder / "data").mkdir(parents=True)
    for number in range(50):
        scratch_folder(settings, uuid.uuid4(), number).mkdir()
    assert sweep.remove_scratch(database, settings) == 52
    assert sorted(settings.scratch.iterdir()) == sorted([mine, foreign])


def test_old_idempotency_records_and_workers_are_deleted(database, settings, project_id):
    at_work(database, 1)
    at_work(database, 1, seen_s_ago=3600)
    with database.write() as session:
        for key, age in (("old", timedelta(hours=25)), ("young", timedelta(hours=23))):
            session.add(IdempotentRequest(project_id=project_id, key=key, fingerprint="0" * 64, created_at=now() - age))
    sweep.delete_old_rows(database, settings)
    with database.read() as session:
        assert session.scalars(select(IdempotentRequest.key)).all() == ["young"]
        assert len(session.scalars(select(Worker)).all()) == 1


def test_worker_row_shows_its_job_and_is_removed_at_exit(database, worker, quick):
    job = quick()
    worker._registration.set_job("quick", job.id)
    worker._registration.update()
    with database.read() as session:
        rows = {row.lane: row for row in session.scalars(select(Worker))}
    assert (
        set(rows) == {"train", "quick"}
        and rows["quick"].job_id == job.id
        and rows["train"].job_id is None
        and rows["train"].device == device()
    )
    worker._registration.remove()
    with database.read() as session:
        assert session.scalars(select(Worker)).all() == []
