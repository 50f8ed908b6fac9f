"""Acknowledged jobs survive kill -9; concurrent writers never meet a locked database."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid

from sqlalchemy import func, select, text

from app import queue
from app.store.session import Database
from app.store.tables import Job, JobEvent
from tests.services import environment

WRITER = """
import sys, threading, uuid
from app import queue
from app.settings import get_settings
from app.store.session import Database

project_id, threads, count = uuid.UUID(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
database, told = Database(get_settings()), threading.Lock()
sys.stdin.readline()

def write():
    for _ in range(count):
        with database.write() as session:
            job = queue.put(session, project_id=project_id, kind="analyse", spec={"images": []})
        with told:
            print(job.id, flush=True)

workers = [threading.Thread(target=write) for _ in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
"""


def writer(settings, project_id: uuid.UUID, threads: int, count: int) -> subprocess.Popen[str]:
    """A process that waits for a line, then queues jobs and prints the id of each once it is committed."""
    command = [sys.executable, "-c", WRITER, str(project_id), str(threads), str(count)]
    return subprocess.Popen(
        command,
        env=environment(settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(process: subprocess.Popen[str]) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def ids_in(output: str) -> set[uuid.UUID]:
    return {
        uuid.UUID(line.strip()) for line in output.splitlines(keepends=True) if len(line) == 37
    }  # the last may be cut short


def test_thirty_two_concurrent_writers_never_get_a_locked_database(database, settings, project_id):
    writers = [writer(settings, project_id, threads=8, count=5) for _ in range(4)]
    for process in writers:
        start(process)
    results = [process.communicate(timeout=60) for process in writers]
    assert [errors for _, errors in results] == [""] * 4
    acknowledged = set().union(*(ids_in(output) for output, _ in results))
    with database.read() as session:
        assert set(session.scalars(select(Job.id))) == acknowledged and len(acknowledged) == 160


def test_acknowledged_jobs_survive_kill_9_of_the_writer(database, settings, project_id):
    rng = random.Random(7)
    acknowledged: set[uuid.UUID] = set()
    for count in (1, 4, 9):
        with writer(settings, project_id, threads=2, count=100_000) as process:
            start(process)
            acknowledged |= ids_in("".join(process.stdout.readline() for _ in range(count)))
            time.sleep(rng.uniform(0.0, 0.05))  # the moment of the kill is what varies
            process.kill()
            acknowledged |= ids_in(process.stdout.read())
            process.stderr.read()
    assert len(acknowledged) >= 1 + 4 + 9
    assert_nothing_was_lost(database, acknowledged)


def assert_nothing_was_lost(database: Database, acknowledged: set[uuid.UUID]) -> None:
    with database.read() as session:
        if database.is_sqlite:
            assert session.scalar(text("PRAGMA integrity_check")) == "ok"
        assert acknowledged <= set(session.scalars(select(Job.id)))
        whole = session.scalar(select(func.count()).select_from(Job).where(Job.events == 1))
        assert whole == session.scalar(select(func.count()).select_from(JobEvent)), (
            "no job without its first event, no event without its job"
        )
    assert queue.claim(database, worker="w", lane="quick") is not None
