"""Jobs survive killed workers, lost leases and broker failures in both deployments."""

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
from app.queue import Broker
from app.store.tables import Job
from tests.deployments import Deployment, send_message
from tests.records import (
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
from tests.services import Process, Redis, environment, wait_for

distributed_only = pytest.mark.parametrize("deployment", ["distributed"], indirect=True)
patient = pytest.mark.parametrize("lease_s", [30.0])
"""Nobody dies here, so that a slow machine is not taken for a dead worker."""


@pytest.fixture
def rings(deployment: Deployment):
    return add_dataset(deployment.database, deployment.blobs, deployment.project_id)


@pytest.fixture
def train(deployment: Deployment, rings):
    """Queue a training; `behaviour` tells the quick child what to do."""
    return lambda **changes: submit(deployment.database, deployment.project_id, train_spec(rings, **changes))


def steps_done(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def attempts(deployment: Deployment, *jobs: Job) -> list[int]:
    return [job_now(deployment.database, job).attempt for job in jobs]


def start_two_workers(deployment: Deployment) -> None:
    """Both ready, started side by side."""
    workers = [deployment.start_worker(wait=False) for _ in range(2)]
    wait_for(
        lambda: all(deployment.is_ready(worker) for worker in workers),
        seconds=40,
        what=lambda: "\n".join(worker.output() for worker in workers),
    )


# Killing


def test_a_training_survives_kill_9_of_its_worker_and_makes_one_version(deployment, train, tmp_path, lease_s):
    steps_file = tmp_path / "steps"
    start_two_workers(deployment)
    job = train(steps=60, behaviour={"step_s": 0.05, "steps_file": str(steps_file)})
    wait_until_step(deployment.database, job, 12)
    deployment.holder(job).kill()
    wait_for(
        lambda: job_now(deployment.database, job).attempt == 2, seconds=lease_s + 5, what="the job to be taken up again"
    )
    (row,) = wait_until_ended(deployment.database, job)
    assert (row.state, row.attempt, versions_made(deployment.database, deployment.project_id)) == ("succeeded", 2, 1)
    done = steps_done(steps_file)
    assert len(done) - 60 <= 5 + 1, "at most one interval between checkpoints was done again"
    assert sorted(set(done)) == list(range(1, 61))


def test_a_training_survives_kill_9_of_its_child(deployment, train):
    job = train(steps=40, behaviour={"step_s": 0.05})
    worker = deployment.start_worker()
    wait_until_step(deployment.database, job, 12)
    for child in deployment.children(worker):
        child.kill()
    (row,) = wait_until_ended(deployment.database, job)
    assert (row.state, row.attempt, versions_made(deployment.database, deployment.project_id)) == ("succeeded", 2, 1)
    assert worker.running


def test_killing_a_worker_ends_its_child_processes(deployment, train):
    train(steps=10_000, behaviour={"step_s": 0.05})
    worker = deployment.start_worker()
    (child,) = wait_for(lambda: deployment.children(worker), what="the child")
    worker.kill()
    wait_for(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=5, what="the child to end"
    )


def test_expired_lease_cannot_write(deployment, train):
    start_two_workers(deployment)
    job = train(steps=80, behaviour={"step_s": 0.05})
    wait_until_step(deployment.database, job, 6)
    zombie = deployment.holder(job)
    children = deployment.children(zombie)
    zombie.signal(signal.SIGSTOP)
    wait_for(lambda: job_now(deployment.database, job).attempt == 2, seconds=20, what="the job to be taken over")
    zombie.signal(signal.SIGCONT)
    wait_for(lambda: "lease_lost" in zombie.output(), seconds=10, what="the zombie to notice")
    wait_for(
        lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children),
        seconds=10,
        what="its child to be killed",
    )
    (row,) = wait_until_ended(deployment.database, job)
    assert (row.state, row.attempt, versions_made(deployment.database, deployment.project_id)) == ("succeeded", 2, 1)
    assert states(deployment.database, job) == ["queued", "running", "queued", "running", "succeeded"]


def test_job_that_keeps_crashing_fails_and_others_run(deployment, train):
    poison, good = train(behaviour={"crash_at": 2}), train(steps=3)
    deployment.start_worker()
    rows = wait_until_ended(deployment.database, poison, good)
    assert [row.state for row in rows] == ["failed", "succeeded"] and rows[0].error["code"] == "worker_crashed"
    assert (rows[0].attempt, versions_made(deployment.database, deployment.project_id)) == (3, 1)


# Stopping


@patient
def test_restarting_workers_loses_no_training_step(deployment, train, tmp_path):
    steps_file = tmp_path / "steps"
    job = train(steps=80, checkpoint_every=1000, behaviour={"step_s": 0.03, "steps_file": str(steps_file)})
    worker = deployment.start_worker()
    wait_until_step(deployment.database, job, 10)
    assert worker.terminate(10) == 0, worker.output()
    assert (job_now(deployment.database, job).state, job_now(deployment.database, job).crashes) == ("queued", 0)
    deployment.start_worker()
    (row,) = wait_until_ended(deployment.database, job)
    assert row.state == "succeeded" and steps_done(steps_file) == list(range(1, 81))


def test_idle_worker_stops_at_once(deployment):
    worker = deployment.start_worker()
    assert worker.terminate(5) == 0, worker.output()
    assert "worker_stopped" in worker.output()


def test_cancelling_a_queued_a_running_and_a_finished_job(deployment, train):
    done, running, queued = train(steps=2), train(steps=10_000, behaviour={"step_s": 0.05}), train(steps=2)
    deployment.start_worker()
    wait_until_step(deployment.database, running, 2)

    def cancel(job: Job) -> str:
        with deployment.database.write() as session:
            return queue.request_cancel(session, job).state

    assert [cancel(queued), cancel(queued)] == ["cancelled", "cancelled"]
    assert [cancel(running), cancel(running)][0] == "cancelling"
    wait_for(
        lambda: job_now(deployment.database, running).state == "cancelled", seconds=6, what="the running job to stop"
    )
    with pytest.raises(Conflict):
        cancel(done)
    assert cancel(running) == "cancelled"
    assert states(deployment.database, queued) == ["queued", "cancelled"] and attempts(deployment, queued) == [0]


def test_cancel_without_a_worker_is_stored_and_applied_later(deployment, train):
    job = train(steps=10_000, behaviour={"step_s": 0.05})
    worker = deployment.start_worker()
    wait_until_step(deployment.database, job, 2)
    worker.kill()
    with deployment.database.write() as session:
        assert queue.request_cancel(session, job).state == "cancelling"
    deployment.start_worker()
    (row,) = wait_until_ended(deployment.database, job, seconds=15)
    assert (row.state, row.attempt) == ("cancelled", 1)


# Once


@patient
def test_two_workers_run_each_of_twenty_jobs_once(deployment, train):
    start_two_workers(deployment)
    jobs = [train(steps=1, model="busy") for _ in range(20)]
    rows = wait_until_ended(deployment.database, *jobs, seconds=60)
    assert {row.state for row in rows} == {"succeeded"} and set(attempts(deployment, *jobs)) == {1}
    assert sorted(row.result["version"] for row in rows) == list(range(1, 21))
    served = {data["worker"] for job in jobs for event, data in story(deployment.database, job) if "worker" in data}
    assert len(served) == 2, "both workers had their share"


@distributed_only
@patient
def test_a_flushed_redis_loses_no_job(deployment, train):
    jobs = [train(steps=1) for _ in range(6)]
    deployment.redis.client().flushall()
    deployment.start_worker()
    deployment.redis.client().flushall()
    rows = wait_until_ended(deployment.database, *jobs)
    assert {row.state for row in rows} == {"succeeded"} and set(attempts(deployment, *jobs)) == {1}
    late = train(steps=1)
    deployment.redis.client().flushall()
    assert wait_until_ended(deployment.database, late, seconds=15)[0].attempt == 1


@distributed_only
@patient
def test_redis_restarted_empty_loses_no_job(deployment, train):
    worker = deployment.start_worker()
    first = train(steps=1)
    wait_until_ended(deployment.database, first)
    deployment.redis.kill()
    jobs = [train(steps=1) for _ in range(3)]
    deployment.redis.start()
    rows = wait_until_ended(deployment.database, *jobs, seconds=30)
    assert {row.state for row in rows} == {"succeeded"} and set(attempts(deployment, *jobs)) == {1} and worker.running


@distributed_only
@patient
def test_duplicate_and_stray_messages_have_no_effect(deployment, train):
    done, job = train(steps=1), train(steps=10)
    send_message(deployment, "train", job.id, times=50)
    send_message(deployment, "train", uuid.uuid4(), times=5)
    deployment.start_worker()
    wait_until_ended(deployment.database, done, job)
    send_message(deployment, "train", done.id, times=20)
    send_message(deployment, "quick", job.id, times=2)
    broker = Broker(deployment.settings.redis_url)
    wait_for(
        lambda: broker.waiting("train") == 0 and broker.waiting("quick") == 0,
        seconds=10,
        what="every message to be heard",
    )
    last = train(steps=1)
    wait_until_ended(deployment.database, last)
    assert (
        attempts(deployment, done, job, last) == [1, 1, 1]
        and versions_made(deployment.database, deployment.project_id) == 3
    )


@distributed_only
@patient
def test_job_is_accepted_while_redis_is_down_and_runs_afterwards(deployment, train):
    deployment.redis.kill()
    began = time.monotonic()
    job = train(steps=1)
    assert time.monotonic() - began < 1.5 and job_now(deployment.database, job).state == "queued"
    deployment.start_worker(wait=False)
    deployment.redis.start()
    assert wait_until_ended(deployment.database, job, seconds=30)[0].attempt == 1


@distributed_only
def test_redis_with_an_eviction_policy_is_refused(deployment, tmp_path):
    folder = tmp_path / "forgetful"
    folder.mkdir()
    forgetful = Redis(folder, "--maxmemory-policy", "allkeys-lru")
    command = [*deployment.start_worker(wait=False).command]
    worker = Process(
        command, log=tmp_path / "refused.log", env=environment(deployment.settings, TOPOSERVE_REDIS_URL=forgetful.url)
    )
    try:
        assert worker.popen.wait(20) != 0
        assert "allkeys-lru" in worker.output() and "noeviction" in worker.output()
    finally:
        worker.kill()
        forgetful.kill()


def test_a_worker_may_start_before_its_database_is_migrated(deployment, tmp_path):
    from app.store.migrate import upgrade
    from app.store.session import Database

    late = deployment.settings.model_copy(update={"data_dir": tmp_path / "late", "database_url": None})
    command = [*deployment.start_worker(wait=False).command]
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


def real_weights(deployment: Deployment, job: Job) -> str:
    from sqlalchemy import select

    from app.store.tables import ModelVersion

    with deployment.database.read() as session:
        return session.scalars(select(ModelVersion.weights_sha256).where(ModelVersion.job_id == job.id)).one()


def test_killed_real_training_resumes_to_bit_identical_weights(deployment, train, undisturbed):
    """`python -m models` itself, in a worker that is killed with -9, against one that is left alone."""
    real = {"steps": 60, "checkpoint_every": 10, "validate_every": 30, "model": "real"}
    if not undisturbed:
        calm = train(**real)
        worker = deployment.start_worker(quick=False)
        assert wait_until_ended(deployment.database, calm, seconds=90)[0].state == "succeeded"
        undisturbed["weights"] = real_weights(deployment, calm)
        worker.kill()
    before = versions_made(deployment.database, deployment.project_id)
    job = train(**real)
    worker = deployment.start_worker(quick=False)
    wait_for(
        lambda: any(event == "checkpoint" for event, _ in story(deployment.database, job)),
        seconds=60,
        what="a checkpoint",
    )
    os.kill(worker.pid, signal.SIGKILL)
    deployment.start_worker(quick=False)
    (row,) = wait_until_ended(deployment.database, job, seconds=90)
    assert (row.state, row.attempt) == ("succeeded", 2), row.error
    assert versions_made(deployment.database, deployment.project_id) == before + 1
    assert real_weights(deployment, job) == undisturbed["weights"]
    assert row.result["metrics"].keys() >= {"dice", "cldice", "beta0_error", "beta1_error"}
