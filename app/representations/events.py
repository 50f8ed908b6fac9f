"""The events of a job: as server-sent events, and as lines of a log.

The event stream polls the rows, so it survives a restart of the gateway, of the worker and of the broker: the client
comes back with `Last-Event-ID` and hears what it missed.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from uuid import UUID

import anyio
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select
from sqlalchemy.exc import OperationalError, TimeoutError as PoolTimeout

from app import queue
from app.services import Services
from app.store import tables
from app.store.tables import FINISHED, JobEvent

RETRY_MS = 2000
"""Time after which a browser opens a broken stream again."""


async def stream(services: Services, job_id: UUID, after: int) -> AsyncIterator[str]:
    """The events after that number as SSE text, until the job has ended;
    a comment now and then while nothing happens.
    """
    yield f"retry: {RETRY_MS}\n\n"
    said = time.monotonic()
    while True:
        try:
            ended, rows = await run_in_threadpool(_look, services, job_id, after)
        except (OperationalError, PoolTimeout):
            return  # the client comes back with the last id it saw
        for row in rows:
            after, said = row.number, time.monotonic()
            yield _event(row)
        if (ended and not rows) or services.draining.is_set():
            return
        if time.monotonic() - said >= services.settings.events_heartbeat_s:
            said = time.monotonic()
            yield ": still here\n\n"
        if not rows:
            await anyio.sleep(min(services.settings.poll_s, services.settings.events_heartbeat_s))


def _look(services: Services, job_id: UUID, after: int) -> tuple[bool, Sequence[JobEvent]]:
    with services.database.read() as session:
        # The state first: an end that is seen here has its event below.
        state = session.scalar(select(tables.Job.state).where(tables.Job.id == job_id))
        return state is None or state in FINISHED, queue.events_after(session, job_id, after)


def _event(row: JobEvent) -> str:
    data = row.data | {"at": row.created_at.isoformat(), "attempt": row.attempt}
    return f"id: {row.number}\nevent: {row.event}\ndata: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"


def log_lines(services: Services, job_id: UUID) -> Iterator[str]:
    """The story in lines, a few hundred events in memory at a time."""
    after = 0
    while True:
        with services.database.read() as session:
            rows = queue.events_after(session, job_id, after)
        yield from (_line(row) for row in rows if row.event != "progress")
        if not rows:
            return
        after = rows[-1].number


def _line(row: JobEvent) -> str:
    said = row.data.get("message") or row.data.get("state") or ""
    facts = {name: value for name, value in row.data.items() if name not in ("message", "state")}
    details = " ".join(f"{name}={json.dumps(value)}" for name, value in facts.items())
    # One event is one line, whatever a library printed.
    text = " ".join(f"{said} {details}".split())
    return f"{row.created_at:%Y-%m-%dT%H:%M:%SZ} [{row.event}] {text}\n"
