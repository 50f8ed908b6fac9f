"""The service as real processes: embedded (SQLite) or distributed (Postgres, Redis, Celery)."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import psutil

from app.settings import Settings
from app.store.blobs import Blobs
from app.store.session import Database
from app.store.tables import Job, Project
from tests.services import Process, Redis, environment, wait_for

QUICK_WORKER = "tests.workers.quick_worker"


class Deployment:
    """One installation with its processes: embedded or distributed.

    redis  the broker of a distributed deployment, which a test may kill; None when embedded
    """

    def __init__(self, settings: Settings, folder: Path, redis: Redis | None):
        self.settings, self.folder, self.redis = settings, folder, redis
        self.database, self.blobs = Database(settings), Blobs(settings)
        self.processes: list[Process] = []
        with self.database.write() as session:
            project = Project(name="clinic")
            session.add(project)
            session.flush()
            self.project_id: uuid.UUID = project.id

    def start_worker(self, *, lanes: str = "train,quick", quick: bool = True, wait: bool = True) -> Process:
        """A worker process; with `quick` its trainings are done by tests/workers/quick_models.py."""
        number = len(self.processes)
        if self.redis is None:
            command = [sys.executable, "-m", QUICK_WORKER if quick else "workers", "--lanes", lanes]
        else:
            module = QUICK_WORKER if quick else "workers.broker"
            pool = ["--pool", "threads", "--concurrency", "2", "--hostname", f"worker{number}@%h"]
            command = [
                sys.executable,
                "-m",
                "celery",
                "--app",
                module,
                "worker",
                "--queues",
                lanes,
                "--loglevel",
                "info",
                *pool,
            ]
        process = Process(command, log=self.folder / f"worker-{number}.log", env=environment(self.settings))
        self.processes.append(process)
        if wait:
            wait_for(lambda: self.is_ready(process), seconds=30, what=process.output)
        return process

    def is_ready(self, process: Process) -> bool:
        """Whether the worker has begun to take jobs."""
        assert process.running, process.output()
        return ("worker_started" if self.redis is None else " ready.") in process.output()

    def holder(self, job: Job) -> Process:
        """The process that runs the job now."""
        with self.database.read() as session:
            worker = session.get_one(Job, job.id).worker or ""
        return next(process for process in self.processes if f"-{process.pid}-" in worker)

    def children(self, process: Process) -> list[psutil.Process]:
        """The trainings and exports that a worker runs now."""
        try:
            return psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.database.dispose()


def send_message(deployment: Deployment, lane: str, job_id: Any, times: int = 1) -> None:
    """Put messages about a job into the broker by hand."""
    from app.queue import Broker

    broker = Broker(deployment.settings.redis_url or "")
    assert all(broker.notify(lane, job_id) for _ in range(times))
