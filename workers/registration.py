"""Registers this worker in the table that `/readyz` and the home page read.

One row for each lane of each worker, written again and again while it lives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from functools import cache

from sqlalchemy import delete, update

from app import sandbox
from app.store.session import Database, clock
from app.store.tables import Worker


class Registration:
    """The rows of one worker process."""

    def __init__(self, database: Database, worker: str, lanes: tuple[str, ...]):
        self._database, self._worker = database, worker
        self._jobs: dict[str, uuid.UUID | None] = dict.fromkeys(lanes)

    def set_job(self, lane: str, job_id: uuid.UUID | None) -> None:
        """The job that the lane runs now, None for none; written with the next `update`."""
        self._jobs[lane] = job_id

    def update(self) -> None:
        """Write that this worker is alive, and with which jobs."""
        with self._database.write() as session:
            for lane, job_id in self._jobs.items():
                mine = update(Worker).where(Worker.id == self._worker, Worker.lane == lane)
                seen = mine.values(seen_at=clock(), job_id=job_id).returning(Worker.id)
                if session.scalars(seen, execution_options={"synchronize_session": False}).first() is None:
                    session.add(Worker(id=self._worker, lane=lane, seen_at=clock(), job_id=job_id, device=device()))

    def remove(self) -> None:
        """Remove the rows: this worker ends."""
        with self._database.write() as session:
            session.execute(delete(Worker).where(Worker.id == self._worker))


@cache
def device() -> str:
    """What trainings run on, in words, without loading a training framework."""
    cores = f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    if shutil.which("nvidia-smi") is None:
        return cores
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = (
            subprocess.run(query, capture_output=True, text=True, timeout=10, check=True, env=sandbox.environment())
            .stdout.strip()
            .splitlines()
        )
    except (OSError, subprocess.SubprocessError):
        return cores
    return ", ".join(names)[:128] or cores
