"""Thousands of event streams in one process: what they cost, and who else is served meanwhile."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from app import queue
from app.http.parser import room_for_files
from app.settings import Settings
from app.store import keys, projects
from app.store.session import Database
from tests.api.test_job_events import finish, job_of, story
from tests.architecture.test_size import cpu_s
from tests.gateway import Gateway, GatewayProcess

STREAMS, LIVE_S, IDLE_S, MOST_OF_A_CORE = 2000, 0.2, 10, 0.05


@pytest.fixture
def open_files() -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    room_for_files()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_2000_idle_streams_take_little_of_a_core_and_delay_no_probe(
    make_settings: Callable[..., Settings], tmp_path: Path, open_files: None
) -> None:
    settings = make_settings(events_heartbeat_s=15, poll_s=1)
    database = Database(settings)
    with database.write() as session:
        key = keys.create(session, project="clinic", name="ann", role="engineer")
        project_id = projects.ensure(session, "clinic").id
    jobs = [job_of(database, project_id) for _ in range(20)]
    gateway = GatewayProcess(settings, tmp_path / "gateway.log", key)
    gateway.start()
    try:
        waited_s, used = asyncio.run(watch(gateway, jobs, key))
    finally:
        gateway.close()
    print(f"{STREAMS} streams: longest /livez {max(waited_s):.3f} s, idle {used:.1%} of a core")
    assert used < MOST_OF_A_CORE
    assert sorted(waited_s)[-2] < LIVE_S * 5  # other processes work on the same cores; the longest is printed


async def watch(gateway: GatewayProcess, jobs: list[uuid.UUID], key: str) -> tuple[list[float], float]:
    """Seconds of each /livez while the streams are opened, and the part of a core that they take once they are idle."""
    streams = []

    async def listen(job_id: uuid.UUID) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        streams.append(writer)
        head = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
        writer.write(head.encode())
        assert await reader.readuntil(b"event: state")

    waited_s, done = [], threading.Event()

    def probe() -> None:
        """In a thread, because the loop that opens the streams is busier than the gateway."""
        with httpx.Client(base_url=gateway.url, timeout=60) as client:
            while not done.is_set():
                started = time.perf_counter()
                assert client.get("/livez").status_code == 200
                waited_s.append(time.perf_counter() - started)
                time.sleep(0.05)

    probing = asyncio.create_task(asyncio.to_thread(probe))
    await asyncio.gather(*(listen(jobs[number % len(jobs)]) for number in range(STREAMS)))
    done.set()
    await probing
    before = cpu_s(gateway.process.pid)
    await asyncio.sleep(IDLE_S)
    used = (cpu_s(gateway.process.pid) - before) / IDLE_S
    for writer in streams:
        writer.close()
    return waited_s, used


def test_streams_of_one_process_share_one_query(gateway: Gateway) -> None:
    jobs = [job_of(gateway.database, gateway.project_id) for _ in range(5)]
    statements: list[str] = []
    with httpx.Client(base_url=gateway.url, timeout=10, headers=gateway.headers("viewer")) as client:
        opened = []
        for number in range(30):
            stream = client.send(client.build_request("GET", f"/v1/jobs/{jobs[number % 5]}/events"), stream=True)
            opened.append((stream, stream.iter_text()))
        for _, pieces in opened:
            while "event: state" not in next(pieces):
                pass

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "FROM jobs" in statement or "FROM job_events" in statement:
                statements.append(statement)

        event.listen(gateway.database.engine, "before_cursor_execute", note)
        time.sleep(1)
        event.remove(gateway.database.engine, "before_cursor_execute", note)
        for stream, _ in opened:
            stream.close()
    assert 1 <= len(statements) <= 1 / gateway.settings.poll_s + 2


def test_long_story_is_heard_from_its_beginning_and_from_any_place(gateway: Gateway) -> None:
    job_id = job_of(gateway.database, gateway.project_id)
    claim = queue.claim(gateway.database, worker="w", lane="train", job_id=job_id)
    assert claim is not None
    queue.heartbeat(gateway.database, claim, events=[("progress", {"step": step}) for step in range(1200)])
    finish(gateway.database, claim)
    for after in (0, 1, 600, 1202):
        answer = gateway.ask("GET", f"/v1/jobs/{job_id}/events?after={after}")
        assert [number for number, _, _ in story(answer)] == list(range(after + 1, 1204))


def test_stream_of_another_project_is_not_found_while_it_is_watched(gateway: Gateway) -> None:
    job_id = job_of(gateway.database, gateway.project_id)
    with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=gateway.headers("viewer")) as answer:
        assert answer.status_code == 200 and next(answer.iter_lines())
        assert gateway.ask("GET", f"/v1/jobs/{job_id}/events", "stranger").status_code == 404
