"""Each fault: what is done to a running service, by the numbers of docs/how-to/faults.md."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import select

from app.errors import Conflict
from app.store.tables import FINISHED, Checkpoint
from tests.chaos.world import STEPS, Run, World
from tests.deployments import send_message
from tests.images import noise_png
from tests.services import Process, wait_for

Strike = Callable[[World, Run], None]


@dataclass(frozen=True)
class Fault:
    """One line of the table.

    shapes  where it can happen
    """

    number: str
    title: str
    strike: Strike
    shapes: tuple[str, ...] = ("embedded", "distributed")


FAULTS: dict[str, Fault] = {}
DISTRIBUTED = ("distributed",)
POINTS = ("before_commit", "after_commit", "before_rename", "after_rename")


def fault(number: str, title: str, shapes: tuple[str, ...] = ("embedded", "distributed")) -> Callable[[Strike], Strike]:
    def register(strike: Strike) -> Strike:
        FAULTS[number] = Fault(number, title, strike, shapes)
        return strike

    return register


@fault("F1", "kill -9 of a training")
def kill_child(world: World, run: Run) -> None:
    with world.watched(2, run):
        world.wait_for_training()
        for child in world.children()[:1]:
            child.kill()


@fault("F2", "kill -9 of a worker with its children")
def kill_worker(world: World, run: Run) -> None:
    with world.watched(2, run):
        world.wait_for_training()
        world.dice.choice(world.workers).kill()


@fault("F3", "deploy stop: SIGTERM, then KILL after 10 s")
def stop_worker(world: World, run: Run) -> None:
    with world.watched(2, run):
        world.wait_for_training()
        worker = world.dice.choice(world.workers)
        worker.popen.terminate()
        try:
            worker.popen.wait(10)
        finally:
            worker.kill()


@fault("F4", "a worker stopped for longer than its lease")
def pause_worker(world: World, run: Run) -> None:
    with world.watched(2, run, unsupervised=STEPS):
        world.wait_for_training()
        _pause(world, world.dice.choice(world.workers))


@fault("F5", "a job that kills its process each time")
def poison(world: World, run: Run) -> None:
    with world.watched(1, run):
        ((job, _),) = world.submit(1, crash_at=3)
        row = wait_for(lambda: (found := world.row(job)).state in FINISHED and found, seconds=90, what="its end")
        if (row.state, (row.error or {}).get("code"), row.attempt) != ("failed", "worker_crashed", 3):
            run.wrong.append(f"poison job ended {row.state}, attempt {row.attempt}: {row.error}")


@fault("F7", "a training that hangs")
def hang(world: World, run: Run) -> None:
    with world.watched(1, run):
        world.wait_for_training()
        for child in world.children()[:1]:
            child.suspend()


@fault("F8", "Redis killed and started empty", DISTRIBUTED)
def restart_redis(world: World, run: Run) -> None:
    with world.watched(3, run):
        world.redis.kill()
        time.sleep(world.dice.uniform(0, 1))
        world.redis.start()


@fault("F9", "Redis away while jobs are submitted", DISTRIBUTED)
def submit_without_redis(world: World, run: Run) -> None:
    world.redis.kill()
    try:
        with world.watched(2, run):
            status = world.gateway.http.get("/readyz").status_code
            if status != 200:
                run.wrong.append(f"/readyz {status} without Redis")
            world.redis.start()
    finally:
        if not world.redis.process.running:
            world.redis.start()


@fault("F10", "FLUSHALL", DISTRIBUTED)
def flush_redis(world: World, run: Run) -> None:
    with world.watched(3, run):
        for _ in range(3):
            world.redis.client().flushall()
            time.sleep(world.dice.uniform(0, 0.4))


@fault("F12", "50 messages about each job, and about none", DISTRIBUTED)
def duplicate_messages(world: World, run: Run) -> None:
    with world.watched(2, run) as jobs:
        for job in jobs:
            send_message(world.deployment, "train", job.id, times=50)
        send_message(world.deployment, "train", uuid.uuid4(), times=20)


@fault("F13", "kill -9 of the gateway in mid-upload")
def kill_gateway(world: World, run: Run) -> None:
    with world.watched(1, run):
        for _ in range(3):
            time.sleep(world.dice.uniform(0.1, 0.6))
            world.gateway.process.kill()
            world.gateway.start()


def _crash_gateway(world: World, run: Run, point: str) -> None:
    """The gateway ends itself at the n-th time it comes there, and is replaced."""
    with world.watched(1, run):
        world.gateway.process.kill()
        world.gateway.process = world.crashing(world.gateway.process, f"{point}:{world.dice.randint(3, 25)}")
        wait_for(lambda: not world.gateway.process.running, seconds=60, what=f"the crash at {point}")


def _crash_worker(world: World, run: Run, point: str) -> None:
    """A worker ends itself there, and is replaced."""
    with world.watched(2, run):
        for worker in world.workers:
            worker.kill()
        failing = world.crashing(world.workers[0], f"{point}:{world.dice.randint(2, 20)}")
        try:
            wait_for(lambda: not failing.running, seconds=60, what=f"the crash at {point}")
        finally:
            failing.kill()


for _letter, _point in zip("abcd", POINTS, strict=True):
    FAULTS[f"F15{_letter}"] = Fault(f"F15{_letter}", f"gateway crashes {_point}", partial(_crash_gateway, point=_point))
    FAULTS[f"F16{_letter}"] = Fault(f"F16{_letter}", f"worker crashes {_point}", partial(_crash_worker, point=_point))


@fault("F17", "the newest checkpoint damaged")
def damage_checkpoint(world: World, run: Run) -> None:
    with world.watched(1, run) as jobs:
        wait_for(lambda: (world.row(jobs[0]).step or 0) > 12, seconds=40, what="checkpoints")
        for worker in world.workers:
            worker.kill()
        with world.database.read() as session:
            newest = select(Checkpoint).where(Checkpoint.job_id == jobs[0].id).order_by(Checkpoint.step.desc())
            kept = session.scalars(newest).first()
        assert kept is not None
        path = next(world.settings.data_dir.rglob(kept.sha256))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@fault("F19", "kill -9 of Postgres", DISTRIBUTED)
def kill_postgres(world: World, run: Run) -> None:
    with world.watched(2, run, unsupervised=STEPS):  # no checkpoint can be recorded meanwhile
        world.wait_for_training()
        world.postgres.kill()
        time.sleep(world.dice.uniform(0, 1))
        world.postgres.start()


@fault("F20", "Postgres hangs for 8 s", DISTRIBUTED)
def hang_postgres(world: World, run: Run) -> None:
    with world.watched(1, run, unsupervised=STEPS):
        world.wait_for_training()
        world.postgres.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            status = world.gateway.http.get("/v1/jobs").status_code
            took = time.monotonic() - started
            if status != 503 or took > 8:
                run.wrong.append(f"hung Postgres: {status} after {took:.1f} s")
            if world.gateway.http.get("/livez").status_code != 200:
                run.wrong.append("/livez does not answer while Postgres hangs")
            time.sleep(max(0.0, 8 - took))
        finally:
            world.postgres.signal(signal.SIGCONT)


@fault("F21", "Postgres restarted", DISTRIBUTED)
def restart_postgres(world: World, run: Run) -> None:
    with world.watched(2, run):
        world.postgres.restart()


@fault("F23", "another process holds the write lock for 3 s", ("embedded",))
def lock_sqlite(world: World, run: Run) -> None:
    with world.watched(1, run):
        lock = sqlite3.connect(world.settings.data_dir / "toposerve.db", isolation_level=None, timeout=10)
        lock.execute("BEGIN IMMEDIATE")
        try:
            time.sleep(3)
        finally:
            lock.close()


@fault("F27", "cancelled: queued, running, finished, twice")
def cancel(world: World, run: Run) -> None:
    with world.watched(1, run):
        ((job, _),) = world.submit(1, step_s=0.2)
        wait_for(lambda: world.row(job).state == "running", seconds=40, what="the job to run")
        answers = [world.gateway.http.post(f"/v1/jobs/{job.id}/cancel").status_code for _ in range(2)]
        row = wait_for(lambda: (found := world.row(job)).state in FINISHED and found, seconds=30, what="its end")
        if row.state != "cancelled" or not set(answers) <= {200, 202}:
            run.wrong.append(f"cancelled job is {row.state}, answers {answers}")
        after = world.gateway.http.post(f"/v1/jobs/{job.id}/cancel").status_code
        if after not in (200, 202, Conflict.status):
            run.wrong.append(f"cancelling a cancelled job: {after}")


@fault("F28", "ten clients send the same upload under one Idempotency-Key, and the gateway dies")
def retry(world: World, run: Run) -> None:
    with world.watched(1, run):
        key, content = uuid.uuid4().hex, noise_png(30, 30, seed=world.dice.randint(0, 10**6))

        def send(_: int) -> Any:
            for _attempt in range(20):
                try:
                    headers = {"Idempotency-Key": key, "Content-Type": "image/png"}
                    answer = world.gateway.http.post("/v1/images", content=content, headers=headers)
                    if answer.status_code in (200, 201):
                        return answer.json()["id"]
                except Exception:
                    time.sleep(0.3)
                time.sleep(0.1)
            return None

        with ThreadPoolExecutor(10) as clients:
            sent = [clients.submit(send, number) for number in range(10)]
            time.sleep(0.05)
            world.gateway.process.kill()
            world.gateway.start()
            ids = {each.result() for each in sent}
        if len(ids) != 1 or None in ids:
            run.doubled.append(f"one upload has the ids {ids}")


@fault("F36", "the gateway's process ends by a segmentation fault")
def segfault(world: World, run: Run) -> None:
    with world.watched(1, run):
        world.wait_for_training()
        os.kill(world.gateway.process.pid, signal.SIGSEGV)
        wait_for(lambda: not world.gateway.process.running, what="its end")


@fault("F37", "1000 folders of old crashes in the scratch folder")
def litter(world: World, run: Run) -> None:
    for number in range(1000):
        (world.settings.scratch / f"job-{uuid.uuid4()}-{number}").mkdir(parents=True, exist_ok=True)
    with world.watched(1, run):
        world.workers[0].kill()


@fault("F38", "everything ends, and starts again at once")
def everything(world: World, run: Run) -> None:
    with world.watched(2, run):
        world.wait_for_training()
        for process in [world.gateway.process, *world.workers]:
            process.kill()
        world.gateway.start(wait=False)


@fault("F40", "five faults at once, by dice")
def mixed(world: World, run: Run) -> None:
    with world.watched(4, run, unsupervised=STEPS):
        for _ in range(5):
            time.sleep(world.dice.uniform(0.2, 1.0))
            what = world.dice.choice(["child", "worker", "gateway", "pause", "redis"])
            if what == "child" and world.children():
                world.dice.choice(world.children()).kill()
            elif what == "worker":
                _replace(world, world.dice.choice(world.workers))
            elif what == "gateway":
                world.gateway.process.kill()
                world.gateway.start()
            elif what == "pause":
                _pause(world, world.dice.choice(world.workers))
            elif world.redis is not None:
                world.redis.client().flushall()


def _pause(world: World, worker: Process) -> None:
    """Stop a worker for longer than its lease. Its trainings go on unsupervised and are done again elsewhere."""
    worker.signal(signal.SIGSTOP)
    time.sleep(world.settings.lease_s + 1.5)
    worker.signal(signal.SIGCONT)


def _replace(world: World, worker: Process) -> None:
    worker.kill()
    world.heal()
