"""Training jobs from queue to model version, with the stand-in trainer."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path

import pytest
from sqlalchemy import select, update

from app import queue
from app.store.tables import Checkpoint, Job, Model, ModelVersion
from tests.records import job_now, states, story, submit, train_spec, versions_made, wait_until_step
from tests.services import wait_for
from workers import train
from workers.work import scratch_folder
from workers.worker import Worker

sqlite_only = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
"""For what does not depend on the database."""


def uninterrupted(steps: int, chain: str = "") -> str:
    """The weights of a run that nothing disturbed."""
    for step in range(1, steps + 1):
        chain = hashlib.sha256(f"{chain}{step}".encode()).hexdigest()
    return chain


def chain_of(database, job) -> str:
    with database.read() as session:
        return session.scalars(select(ModelVersion).where(ModelVersion.job_id == job.id)).one().manifest["chain"]


def steps_done(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def test_a_training_becomes_a_model_version_with_every_fact(
    database, blobs, worker, submit_training, rings, project_id
):
    job = submit_training(steps=12, model="rings")
    worker.drain("train")
    row = job_now(database, job)
    assert (row.state, row.fraction, row.step, row.steps, row.error) == ("succeeded", 1.0, 12, 12, None)
    assert row.result == {"model": "rings", "version": 1, "metrics": {"dice": 0.9}}
    with database.read() as session:
        version = session.scalars(select(ModelVersion)).one()
        assert session.get(Model, version.model_id).name == "rings"
    assert (version.job_id, version.dataset_version_id, version.metrics, version.spec) == (
        job.id,
        rings.id,
        {"dice": 0.9},
        job.spec,
    )
    assert 0 < version.training_s < 60
    chain = uninterrupted(12)
    assert blobs.read(project_id, version.onnx_sha256) == f"onnx of {chain}".encode() and version.onnx_bytes == 72
    assert blobs.read(project_id, version.weights_sha256) == chain.encode()
    assert blobs.read(project_id, version.manifest["variants"]["int8"]["onnx_sha256"]) == f"int8 of {chain}".encode()


def test_model_version_names_what_the_data_decided(database, worker, submit_training):
    loss = {"terms": [{"name": "dice"}], "neighbour_penalty": {"window": 5, "mode": "add"}}
    job = submit_training(steps=4, behaviour={"resolved": {"loss": loss}})
    worker.drain("train")
    assert job_now(database, job).state == "succeeded"
    with database.read() as session:
        version = session.scalars(select(ModelVersion)).one()
    assert version.spec == job.spec | {"loss": loss}


def test_training_records_its_events(database, worker, submit_training):
    job = submit_training(steps=12, behaviour={"step_s": 0.03})
    worker.drain("train")
    told = story(database, job)
    assert states(database, job) == ["queued", "running", "succeeded"]
    assert [data["step"] for event, data in told if event == "checkpoint"] == [5, 10, 12]
    assert [data["metrics"]["dice"] for event, data in told if event == "metric"] == [0.9]
    progress = [data for event, data in told if event == "progress"]
    assert [data["step"] for data in progress] == sorted({data["step"] for data in progress}) and progress[-1][
        "step"
    ] == 12
    assert all({"phase", "fraction", "steps", "eta_s", "loss"} <= set(data) for data in progress if data["step"])
    assert progress[-1]["phase"] == "train"
    assert any("on 3 images" in data["message"] for event, data in told if event == "log")


def test_time_left_counts_the_export(database, worker, submit_training, monkeypatch):
    monkeypatch.setattr(train, "_exported_s", {})
    jobs = [submit_training(steps=3), submit_training(steps=3)]
    worker.drain("train")
    at_the_last_step = [
        [data["eta_s"] for event, data in story(database, job) if event == "progress" and data["step"] == 3]
        for job in jobs
    ]
    [[unknown], [known]] = at_the_last_step
    assert unknown == train.USUAL_EXPORT_S and 0 < known < train.USUAL_EXPORT_S, "the second is told by the first"


def test_two_trainings_of_one_model_make_versions_one_and_two(database, worker, submit_training):
    jobs = [submit_training(steps=3), submit_training(steps=4)]
    worker.drain("train")
    assert [job_now(database, job).result["version"] for job in jobs] == [1, 2]


@sqlite_only
def test_a_training_may_start_from_the_weights_of_another(database, worker, submit_training, rings, project_id):
    parent = submit_training(steps=3)
    worker.drain("train")
    with database.read() as session:
        version = session.scalars(select(ModelVersion).where(ModelVersion.job_id == parent.id)).one()
    child = submit(
        database,
        project_id,
        train_spec(rings, steps=4, start_from="rings:1") | {"start_from_version_id": str(version.id)},
    )
    worker.drain("train")
    assert chain_of(database, child) == uninterrupted(4, chain=uninterrupted(3))


def test_a_child_that_crashes_is_resumed_from_its_last_checkpoint(database, worker, submit_training, tmp_path):
    steps_file = tmp_path / "steps"
    job = submit_training(
        steps=20, behaviour={"crash_once_at": 13, "memory": str(tmp_path / "crashed"), "steps_file": str(steps_file)}
    )
    worker.drain("train")
    row = job_now(database, job)
    assert (row.state, row.attempt) == ("succeeded", 2)
    assert chain_of(database, job) == uninterrupted(20), "the result is that of a run which was never interrupted"
    assert steps_done(steps_file) == [
        *range(1, 14),
        *range(11, 21),
    ], "only the steps since the checkpoint were done again"
    reasons = [data["reason"] for _, data in story(database, job) if "reason" in data]
    assert reasons == ["The training was killed by SIGSEGV"]


def test_a_job_that_always_crashes_fails_after_three_attempts_and_others_run_on(database, worker, submit_training):
    poison, good = submit_training(behaviour={"crash_at": 3}), submit_training(steps=5)
    worker.drain("train")
    row = job_now(database, poison)
    assert (row.state, row.error["code"], row.attempt) == ("failed", "worker_crashed", 3)
    assert "killed by SIGKILL" in row.error["detail"]
    assert job_now(database, good).state == "succeeded"


@sqlite_only
def test_crashes_before_a_new_checkpoint_are_forgotten(database, worker, submit_training):
    """Every attempt reaches one more checkpoint before it crashes, so the job is never given up."""
    job = submit_training(steps=10, checkpoint_every=5, behaviour={"crash_at": 7})
    for _ in range(2):
        with database.write() as session:
            session.execute(update(Job).where(Job.id == job.id).values(crashes=2))
        worker._run_one("train")
        row = job_now(database, job)
        if row.attempt == 1:
            assert (row.state, row.crashes) == (
                "queued",
                1,
            ), "the checkpoint of step 5 wiped out the two crashes before"
    assert job_now(database, job).state == "failed", "the second attempt began at step 5 and brought no new checkpoint"


@sqlite_only
def test_failure_reported_by_the_child_is_not_retried(database, worker, submit_training):
    error = {"code": "resource_exhausted", "message": "A batch of 64 does not fit. Use a smaller batch."}
    job = submit_training(behaviour={"error_at": 3, "error": error})
    worker.drain("train")
    row = job_now(database, job)
    assert (row.state, row.attempt) == ("failed", 1)
    assert row.error == {"code": "resource_exhausted", "detail": "A batch of 64 does not fit. Use a smaller batch."}


@sqlite_only
def test_a_child_that_hangs_is_killed_and_resumed(database, settings, submit_training, tmp_path):
    from tests.workers.conftest import QUICK_MODELS

    worker = Worker(settings.model_copy(update={"stall_s": 0.5, "max_attempts": 2}), models=QUICK_MODELS)
    job = submit_training(behaviour={"hang_at": 7})
    worker.drain("train")
    row = job_now(database, job)
    assert (row.state, row.error["code"], row.attempt) == ("failed", "worker_crashed", 2)
    assert "no progress for 0.5 s" in row.error["detail"]
    worker.installation.database.dispose()


@pytest.fixture
def impatient_worker(settings):
    """A worker that lets a child end for half a second and starts a job once."""
    from tests.workers.conftest import QUICK_MODELS

    worker = Worker(settings.model_copy(update={"stop_grace_s": 0.5, "max_attempts": 1}), models=QUICK_MODELS)
    yield worker
    worker.installation.database.dispose()


@sqlite_only
@pytest.mark.parametrize("step", ["training", "export"])
@pytest.mark.parametrize("end", ["slow, output closed", "slow, output open", "segfault", "status 1"])
def test_child_that_said_done_has_succeeded_however_it_ends(database, impatient_worker, submit_training, step, end):
    job = submit_training(steps=3, behaviour={"end": end} if step == "training" else {"export": {"end": end}})
    impatient_worker.drain("train")
    row = job_now(database, job)
    assert (row.state, row.attempt, row.error) == ("succeeded", 1, None)
    assert chain_of(database, job) == uninterrupted(3)


@sqlite_only
@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"end": "weights missing"}, "best.safetensors"),
        ({"end": "weights cut short"}, "best.safetensors"),
        ({"export": {"export_without": "model.onnx"}}, "model.onnx"),
        ({"export": {"export_without": "model.int8.onnx"}}, "model.int8.onnx"),
        ({"export": {"export_without": "manifest.json"}}, "manifest.json"),
    ],
)
def test_done_without_its_files_is_a_crash(database, impatient_worker, submit_training, project_id, behaviour, reason):
    job = submit_training(steps=3, behaviour=behaviour)
    impatient_worker.drain("train")
    row = job_now(database, job)
    assert (row.state, row.error["code"]) == ("failed", "worker_crashed") and reason in row.error["detail"]
    assert versions_made(database, project_id) == 0


@sqlite_only
def test_error_after_done_fails_the_job(database, impatient_worker, submit_training):
    job = submit_training(steps=3, behaviour={"end": "error"})
    impatient_worker.drain("train")
    assert job_now(database, job).error == {"code": "internal", "detail": "It was not done after all."}


@sqlite_only
def test_cancelling_does_not_wait_for_a_child_that_said_done(database, worker, submit_training, in_background):
    job = submit_training(steps=3, behaviour={"end": "slow, output open"})
    in_background(worker.drain, "train")
    wait_for(lambda: any(event == "metric" for event, _ in story(database, job)), what="the last validation")
    with database.write() as session:
        queue.request_cancel(session, job)
    wait_for(lambda: job_now(database, job).state == "cancelled", seconds=4.0, what="the job to be stopped")


@pytest.mark.parametrize("keep", [False, True])
def test_cancelling_frees_the_worker_within_seconds(database, worker, submit_training, in_background, keep):
    job, after = submit_training(steps=10_000, checkpoint_every=10_000), submit_training(steps=2)
    in_background(worker.drain, "train")
    wait_until_step(database, job, 3)
    with database.write() as session:
        queue.request_cancel(session, job, keep)
    ended = "interrupted" if keep else "cancelled"
    wait_for(lambda: job_now(database, job).state == ended, seconds=5.0, what="the job to be stopped")
    wait_for(lambda: job_now(database, after).state == "succeeded", seconds=10.0, what="the next job")
    assert states(database, job) == ["queued", "running", "cancelling", ended]
    kept = [data["step"] for event, data in story(database, job) if event == "checkpoint"]
    assert bool(kept) == keep, "stopping to keep the work writes a checkpoint, stopping without does not wait for one"


def test_resumed_job_continues_at_its_checkpoint(database, worker, submit_training, in_background, tmp_path):
    steps_file = tmp_path / "steps"
    job = submit_training(steps=60, checkpoint_every=1000, behaviour={"steps_file": str(steps_file), "step_s": 0.03})
    first = in_background(worker.drain, "train")
    wait_until_step(database, job, 5)
    with database.write() as session:
        queue.request_cancel(session, job, keep=True)
    first.join(10)
    with database.write() as session:
        queue.request_resume(session, job)
    worker.drain("train")
    assert job_now(database, job).state == "succeeded"
    assert steps_done(steps_file) == list(range(1, 61)), "no step was lost or done twice"
    assert chain_of(database, job) == uninterrupted(60)


def test_stopped_worker_returns_its_job_with_a_checkpoint(database, worker, submit_training, in_background, tmp_path):
    steps_file = tmp_path / "steps"
    job = submit_training(steps=60, checkpoint_every=1000, behaviour={"steps_file": str(steps_file), "step_s": 0.03})
    thread = in_background(worker.drain, "train")
    wait_until_step(database, job, 5)
    worker.stop()
    thread.join(5)
    row = job_now(database, job)
    assert (row.state, row.crashes, row.worker) == ("queued", 0, None)
    assert story(database, job)[-1] == ("state", {"state": "queued", "reason": "its worker was stopped"})
    worker.stopping.clear()
    worker.drain("train")
    assert steps_done(steps_file) == list(range(1, 61)) and chain_of(database, job) == uninterrupted(60)


@sqlite_only
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_checkpoint_falls_back_to_the_previous_one(
    database, blobs, worker, submit_training, tmp_path, project_id, damage
):
    steps_file = tmp_path / "steps"
    job = submit_training(steps=20, behaviour={"crash_at": 13, "steps_file": str(steps_file), "bytes": 1000})
    worker._run_one("train")
    with database.read() as session:
        newest = session.scalars(
            select(Checkpoint).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step.desc())
        ).first()
    path = blobs.local_path(project_id, newest.sha256)
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + b"!" if damage == "flip" else content[:500])
    with database.write() as session:
        session.execute(
            update(Job).where(Job.id == job.id).values(spec={**job.spec, "behaviour": {"steps_file": str(steps_file)}})
        )
    worker.drain("train")
    assert job_now(database, job).state == "succeeded" and chain_of(database, job) == uninterrupted(20)
    assert steps_done(steps_file) == [*range(1, 14), *range(6, 21)]
    assert [data["step"] for event, data in story(database, job) if data.get("code") == "checkpoint_corrupt"] == [10]


@sqlite_only
def test_only_the_last_two_checkpoints_are_kept(database, worker, submit_training):
    job = submit_training(steps=22)
    worker.drain("train")
    with database.read() as session:
        assert session.scalars(
            select(Checkpoint.step).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step)
        ).all() == [20, 22]


@sqlite_only
def test_damaged_dataset_item_fails_the_job_by_name(database, blobs, worker, submit_training, project_id, rings):
    from app.store.tables import DatasetItem, Image

    job = submit_training()
    with database.read() as session:
        item = session.scalars(select(DatasetItem).where(DatasetItem.position == 2)).one()
        path = blobs.local_path(project_id, session.get(Image, item.image_id).sha256)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    worker.drain("train")
    row = job_now(database, job)
    assert (row.state, row.error["code"]) == ("failed", "input_corrupt") and "item-2" in row.error["detail"]


@sqlite_only
def test_scratch_folder_is_empty_after_a_job(database, settings, worker, submit_training):
    jobs = [
        submit_training(steps=3),
        submit_training(behaviour={"error_at": 1, "error": {"code": "diverged", "message": "no"}}),
    ]
    worker.drain("train")
    assert [job_now(database, job).state for job in jobs] == ["succeeded", "failed"]
    assert list(settings.scratch.iterdir()) == []


def test_a_worker_that_lost_its_lease_registers_nothing(database, worker, submit_training, in_background, project_id):
    """The lease is taken away while the child runs; another attempt finishes the job; the first one stops and is not
    heard.
    """
    job = submit_training(steps=10_000, checkpoint_every=10_000, behaviour={"step_s": 0.05})
    thread = in_background(worker.drain, "train")
    wait_until_step(database, job, 2)
    with database.write() as session:
        queue.requeue(session, session.get(Job, job.id), "taken away by the test", crash_limit=None)
    heir = queue.claim(database, worker="heir", lane="train", job_id=job.id)
    assert heir is not None and heir.attempt == 2
    thread.join(10)
    assert not thread.is_alive() and versions_made(database, project_id) == 0
    assert queue.heartbeat(database, heir) == "continue", "the zombie touched nothing"
    assert not scratch_folder(worker.settings, job.id, 1).exists()


def test_a_child_dies_with_its_worker(tmp_path):
    """The child belongs to a process that is killed with -9; Linux ends the child with it."""
    import subprocess
    import sys

    script = r"""
import sys, time
from workers.supervise import Child
program = 'import time; print(\'{"event": "up"}\', flush=True); time.sleep(600)'
child = Child([sys.executable, "-c", program])
next(event for event in child.events() if event)
print(child.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    wait_for(
        lambda: not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes(),
        seconds=5,
        what="the child to end",
    )


def test_child_over_its_memory_limit_is_stopped(tmp_path):
    import sys

    from workers.supervise import Child

    hungry = (
        'import sys; print(\'{"event": "start"}\', flush=True); x = bytearray(10**9); print(\'{"event": "done"}\','
        " flush=True)"
    )
    for memory, reached in ((300 * 2**20, ["start"]), (None, ["start", "done"])):
        with Child([sys.executable, "-c", hungry], memory_bytes=memory) as child:
            assert [event["event"] for event in child.events() if event] == reached
            assert (child.wait_or_kill(10) == 0) == (memory is None)
            assert ("MemoryError" in child.tail) == (memory is not None)


def test_concurrent_registrations_get_consecutive_versions(database, project_id, rings):
    from concurrent.futures import ThreadPoolExecutor

    from app.store import versions

    jobs = [submit(database, project_id, train_spec(rings)) for _ in range(32)]
    claims = [queue.claim(database, worker="w", lane="train") for _ in jobs]
    start = threading.Barrier(8)

    def finish(claim: queue.Claim) -> int:
        if claim in claims[:8]:
            start.wait()
        facts = {
            "manifest": {},
            "spec": claim.spec,
            "metrics": {},
            "onnx": ("0" * 64, 1),
            "weights": None,
            "dataset_version_id": rings.id,
            "training_s": 1.0,
        }
        with database.write() as session:
            version = versions.register(session, project_id=project_id, job_id=claim.id, model="busy", **facts)
            again = versions.register(session, project_id=project_id, job_id=claim.id, model="busy", **facts)
            assert again.id == version.id
            queue.finish(session, claim, {"version": version.number})
        return version.number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(finish, claims)) == list(range(1, 33))


def test_rolled_back_registration_leaves_no_gap(database, project_id, rings):
    from app.store import versions

    facts = {
        "manifest": {},
        "spec": {},
        "metrics": {},
        "onnx": ("0" * 64, 1),
        "weights": None,
        "dataset_version_id": None,
        "training_s": None,
    }
    with pytest.raises(RuntimeError), database.write() as session:
        versions.register(session, project_id=project_id, job_id=None, model="m", **facts)
        raise RuntimeError
    with database.write() as session:
        assert versions.register(session, project_id=project_id, job_id=None, model="m", **facts).number == 1


def test_signal_status_is_reported_by_name():
    from workers.supervise import _how

    assert _how(-signal.SIGSEGV) == "was killed by SIGSEGV" and _how(7) == "ended with status 7"
