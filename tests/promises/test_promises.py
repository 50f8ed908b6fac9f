"""What the service promises when processes, brokers and leases are lost, kept with real processes in both shapes."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import psutil
import pytest

from app import queue
from app.errors import Conflict
from app.queue import Bell
from app.store.tables import Job
from tests.services import Process, Redis, environment, wait_for
from tests.shapes import Shape, ring
from tests.worlds import (
    add_dataset,
    job_now,
    states,
    story,
    submit,
    train_spec,
    versions_made,
    wait_until_ended,
    wait_until_step,
)

distributed_only = pytest.mark.parametrize("shape", ["distributed"], indirect=True)
patient = pytest.mark.parametrize("lease_s", [30.0])
"""Nobody dies here, so that a slow machine is not taken for a dead worker."""


@pytest.fixture
def rings(shape: Shape):
    return add_dataset(shape.database, shape.blobs, shape.project_id)


@pytest.fixture
def train(shape: Shape, rings):
    """Queue a training; `behaviour` tells the quick child what to do."""
    return lambda **changes: submit(shape.database, shape.project_id, train_spec(rings, **changes))


def steps_done(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def attempts(shape: Shape, *jobs: Job) -> list[int]:
    return [job_now(shape.database, job).attempt for job in jobs]


def start_two_workers(shape: Shape) -> None:
    """Both ready, started side by side."""
    workers = [shape.start_worker(wait=False) for _ in range(2)]
    wait_for(
        lambda: all(shape.is_ready(worker) for worker in workers),
        seconds=40,
        what=lambda: "\n".join(worker.output() for worker in workers),
    )


# Killing


def test_a_training_survives_kill_9_of_its_worker_and_makes_one_version(shape, train, tmp_path, lease_s):
    steps_file = tmp_path / "steps"
    start_two_workers(shape)
    job = train(steps=60, behaviour={"step_s": 0.05, "steps_file": str(steps_file)})
    wait_until_step(shape.database, job, 12)
    shape.holder(job).kill()
    wait_for(
        lambda: job_now(shape.database, job).attempt == 2, seconds=lease_s + 5, what="the job to be taken up again"
    )
    (row,) = wait_until_ended(shape.database, job)
    assert (row.state, row.attempt, versions_made(shape.database, shape.project_id)) == ("succeeded", 2, 1)
    done = steps_done(steps_file)
    assert len(done) - 60 <= 5 + 1, "at most one interval between checkpoints was done again"
    assert sorted(set(done)) == list(range(1, 61))


def test_a_training_survives_kill_9_of_its_child(shape, train):
    job = train(steps=40, behaviour={"step_s": 0.05})
    worker = shape.start_worker()
    wait_until_step(shape.database, job, 12)
    for child in shape.children(worker):
        child.kill()
    (row,) = wait_until_ended(shape.database, job)
    assert (row.state, row.attempt, versions_made(shape.database, shape.project_id)) == ("succeeded", 2, 1)
    assert worker.running


def test_nothing_of_a_killed_worker_runs_on(shape, train):
    train(steps=10_000, behaviour={"step_s": 0.05})
    worker = shape.start_worker()
    (child,) = wait_for(lambda: shape.children(worker), what="the child")
    worker.kill()
    wait_for(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=5, what="the child to end"
    )


def test_a_worker_that_was_frozen_longer_than_its_lease_is_not_heard(shape, train):
    start_two_workers(shape)
    job = train(steps=80, behaviour={"step_s": 0.05})
    wait_until_step(shape.database, job, 6)
    zombie = shape.holder(job)
    children = shape.children(zombie)
    zombie.signal(signal.SIGSTOP)
    wait_for(lambda: job_now(shape.database, job).attempt == 2, seconds=20, what="the job to be taken over")
    zombie.signal(signal.SIGCONT)
    wait_for(lambda: "lease_lost" in zombie.output(), seconds=10, what="the zombie to notice")
    wait_for(
        lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children),
        seconds=10,
        what="its child to be killed",
    )
    (row,) = wait_until_ended(shape.database, job)
    assert (row.state, row.attempt, versions_made(shape.database, shape.project_id)) == ("succeeded", 2, 1)
    assert states(shape.database, job) == ["queued", "running", "queued", "running", "succeeded"]


def test_a_poison_job_is_given_up_and_others_are_not_disturbed(shape, train):
    poison, good = train(behaviour={"crash_at": 2}), train(steps=3)
    shape.start_worker()
    rows = wait_until_ended(shape.database, poison, good)
    assert [row.state for row in rows] == ["failed", "succeeded"] and rows[0].error["code"] == "worker_crashed"
    assert (rows[0].attempt, versions_made(shape.database, shape.project_id)) == (3, 1)


# Stopping


@patient
def test_a_deploy_loses_no_step(shape, train, tmp_path):
    steps_file = tmp_path / "steps"
    job = train(steps=80, checkpoint_every=1000, behaviour={"step_s": 0.03, "steps_file": str(steps_file)})
    worker = shape.start_worker()
    wait_until_step(shape.database, job, 10)
    assert worker.terminate(10) == 0, worker.output()
    assert (job_now(shape.database, job).state, job_now(shape.database, job).crashes) == ("queued", 0)
    shape.start_worker()
    (row,) = wait_until_ended(shape.database, job)
    assert row.state == "succeeded" and steps_done(steps_file) == list(range(1, 81))


def test_an_idle_worker_ends_at_once(shape):
    worker = shape.start_worker()
    assert worker.terminate(5) == 0, worker.output()
    assert "worker_stopped" in worker.output()


def test_cancelling_a_queued_a_running_and_a_finished_job(shape, train):
    done, running, queued = train(steps=2), train(steps=10_000, behaviour={"step_s": 0.05}), train(steps=2)
    shape.start_worker()
    wait_until_step(shape.database, running, 2)

    def cancel(job: Job) -> str:
        with shape.database.write() as session:
            return queue.request_cancel(session, job).state

    assert [cancel(queued), cancel(queued)] == ["cancelled", "cancelled"]
    assert [cancel(running), cancel(running)][0] == "cancelling"
    wait_for(lambda: job_now(shape.database, running).state == "cancelled", seconds=6, what="the running job to stop")
    with pytest.raises(Conflict):
        cancel(done)
    assert cancel(running) == "cancelled"
    assert states(shape.database, queued) == ["queued", "cancelled"] and attempts(shape, queued) == [0]


def test_a_cancel_without_any_worker_is_kept_and_obeyed(shape, train):
    job = train(steps=10_000, behaviour={"step_s": 0.05})
    worker = shape.start_worker()
    wait_until_step(shape.database, job, 2)
    worker.kill()
    with shape.database.write() as session:
        assert queue.request_cancel(session, job).state == "cancelling"
    shape.start_worker()
    (row,) = wait_until_ended(shape.database, job, seconds=15)
    assert (row.state, row.attempt) == ("cancelled", 1)


# Once


@patient
def test_two_workers_run_twenty_jobs_once_each(shape, train):
    start_two_workers(shape)
    jobs = [train(steps=1, model="busy") for _ in range(20)]
    rows = wait_until_ended(shape.database, *jobs, seconds=60)
    assert {row.state for row in rows} == {"succeeded"} and set(attempts(shape, *jobs)) == {1}
    assert sorted(row.result["version"] for row in rows) == list(range(1, 21))
    served = {data["worker"] for job in jobs for event, data in story(shape.database, job) if "worker" in data}
    assert len(served) == 2, "both workers had their share"


@distributed_only
@patient
def test_a_flushed_redis_loses_no_job(shape, train):
    jobs = [train(steps=1) for _ in range(6)]
    shape.redis.client().flushall()
    shape.start_worker()
    shape.redis.client().flushall()
    rows = wait_until_ended(shape.database, *jobs)
    assert {row.state for row in rows} == {"succeeded"} and set(attempts(shape, *jobs)) == {1}
    late = train(steps=1)
    shape.redis.client().flushall()
    assert wait_until_ended(shape.database, late, seconds=15)[0].attempt == 1


@distributed_only
@patient
def test_a_redis_that_is_killed_and_comes_back_empty_loses_no_job(shape, train):
    worker = shape.start_worker()
    first = train(steps=1)
    wait_until_ended(shape.database, first)
    shape.redis.kill()
    jobs = [train(steps=1) for _ in range(3)]
    shape.redis.start()
    rows = wait_until_ended(shape.database, *jobs, seconds=30)
    assert {row.state for row in rows} == {"succeeded"} and set(attempts(shape, *jobs)) == {1} and worker.running


@distributed_only
@patient
def test_messages_that_come_twice_or_fifty_times_or_for_nothing_do_nothing_twice(shape, train):
    done, job = train(steps=1), train(steps=10)
    ring(shape, "train", job.id, times=50)
    ring(shape, "train", uuid.uuid4(), times=5)
    shape.start_worker()
    wait_until_ended(shape.database, done, job)
    ring(shape, "train", done.id, times=20)
    ring(shape, "quick", job.id, times=2)
    bell = Bell(shape.settings.redis_url)
    wait_for(
        lambda: bell.waiting("train") == 0 and bell.waiting("quick") == 0, seconds=10, what="every message to be heard"
    )
    last = train(steps=1)
    wait_until_ended(shape.database, last)
    assert attempts(shape, done, job, last) == [1, 1, 1] and versions_made(shape.database, shape.project_id) == 3


@distributed_only
@patient
def test_a_job_is_accepted_at_once_while_redis_is_down_and_runs_when_it_is_back(shape, train):
    shape.redis.kill()
    began = time.monotonic()
    job = train(steps=1)
    assert time.monotonic() - began < 1.5 and job_now(shape.database, job).state == "queued"
    shape.start_worker(wait=False)
    shape.redis.start()
    assert wait_until_ended(shape.database, job, seconds=30)[0].attempt == 1


@distributed_only
def test_a_redis_that_forgets_silently_is_refused(shape, tmp_path):
    folder = tmp_path / "forgetful"
    folder.mkdir()
    forgetful = Redis(folder, "--maxmemory-policy", "allkeys-lru")
    command = [*shape.start_worker(wait=False).command]
    worker = Process(
        command, log=tmp_path / "refused.log", env=environment(shape.settings, TOPOSERVE_REDIS_URL=forgetful.url)
    )
    try:
        assert worker.popen.wait(20) != 0
        assert "allkeys-lru" in worker.output() and "noeviction" in worker.output()
    finally:
        worker.kill()
        forgetful.kill()


def test_a_worker_may_start_before_its_database_is_migrated(shape, tmp_path):
    from app.store.migrate import upgrade
    from app.store.session import Database

    late = shape.settings.model_copy(update={"data_dir": tmp_path / "late", "database_url": None})
    command = [*shape.start_worker(wait=False).command]
    worker = Process(
        command, log=tmp_path / "early.log", env=environment(late) | {"TOPOSERVE_DATA_DIR": str(late.data_dir)}
    )
    try:
        wait_for(lambda: "waiting_for_database" in worker.output(), what=worker.output)
        database = Database(late)
        upgrade(database)
        database.dispose()
        wait_for(lambda: "worker_started" in worker.output(), what=worker.output)
    finally:
        worker.kill()


# The real thing


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """Digest of the weights of a real training that nothing disturbed; filled by the first test that needs it."""
    return {}


def real_weights(shape: Shape, job: Job) -> str:
    from sqlalchemy import select

    from app.store.tables import ModelVersion

    with shape.database.read() as session:
        return session.scalars(select(ModelVersion.weights_sha256).where(ModelVersion.job_id == job.id)).one()


def test_a_real_training_that_is_killed_ends_with_the_same_bits_in_one_version(shape, train, undisturbed):
    """`python -m models` itself, in a worker that is killed with -9, against one that is left alone."""
    real = {"steps": 60, "checkpoint_every": 10, "validate_every": 30, "model": "real"}
    if not undisturbed:
        calm = train(**real)
        worker = shape.start_worker(quick=False)
        assert wait_until_ended(shape.database, calm, seconds=90)[0].state == "succeeded"
        undisturbed["weights"] = real_weights(shape, calm)
        worker.kill()
    before = versions_made(shape.database, shape.project_id)
    job = train(**real)
    worker = shape.start_worker(quick=False)
    wait_for(
        lambda: any(event == "checkpoint" for event, _ in story(shape.database, job)), seconds=60, what="a checkpoint"
    )
    os.kill(worker.pid, signal.SIGKILL)
    shape.start_worker(quick=False)
    (row,) = wait_until_ended(shape.database, job, seconds=90)
    assert (row.state, row.attempt) == ("succeeded", 2), row.error
    assert versions_made(shape.database, shape.project_id) == before + 1
    assert real_weights(shape, job) == undisturbed["weights"]
    assert row.result["metrics"].keys() >= {"dice", "cldice", "beta0_error", "beta1_error"}
