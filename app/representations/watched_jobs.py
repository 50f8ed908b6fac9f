"""Watches jobs for all event streams of a process at once.

An event stream that looked for itself would cost a query a second, and thousands of idle streams a whole core. Here one
task asks which of the watched jobs have changed, reads their new events once, and wakes the streams that wait for them.
What it reads are the rows, so a stream survives a restart of the gateway, of the worker and of the broker: the client
comes back with `Last-Event-ID` and hears what it missed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import structlog
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select
from sqlalchemy.exc import OperationalError, TimeoutError as PoolTimeout

from app import queue
from app.services import Services
from app.store.tables import FINISHED, Job, JobEvent

RETRY_MS = 2000
"""Time after which a browser opens a broken stream again."""
MOST_KEPT = 500
"""Events of a job that are kept for streams that begin; what is older is read again for each."""
MOST_ASKED = 500
"""Jobs that one query asks about."""

log = structlog.get_logger()


class WatchedJob:
    """The newest events of one job, for every stream of it."""

    def __init__(self, project_id: UUID) -> None:
        self.project_id, self.streams = project_id, 0
        self.events: list[tuple[int, str]] = []
        """(number, server-sent event) without a gap, oldest first."""
        self.ended = False
        """No event comes any more."""
        self.lost = False
        """The database does not answer; the clients come back with the last number that they saw."""
        self.changed = asyncio.Event()

    @property
    def last(self) -> int:
        return self.events[-1][0] if self.events else 0

    def add(self, rows: Sequence[JobEvent]) -> None:
        if rows and rows[0].number > self.last + 1:  # more happened than is kept
            self.events = []
        self.events = (self.events + [(row.number, as_text(row)) for row in rows if row.number > self.last])[
            -MOST_KEPT:
        ]

    def after(self, number: int) -> list[tuple[int, str]] | None:
        """The events after that number; None when some of them are not kept."""
        if self.events and self.events[0][0] > number + 1:
            return None
        return [(other, text) for other, text in self.events if other > number]

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class WatchedJobs:
    """Every job that has a stream in this process. It lives on the event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._jobs: dict[UUID, WatchedJob] = {}
        self._task: asyncio.Task[None] | None = None

    async def stream(self, job_id: UUID, project_id: UUID, after: int) -> AsyncIterator[str]:
        """The events after that number as SSE text, until the job has ended; a comment now and then while nothing
        happens.
        """
        settings, job = self._services.settings, self._jobs.setdefault(job_id, WatchedJob(project_id))
        job.streams += 1
        try:
            yield f"retry: {RETRY_MS}\n\n"
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._look_again_and_again())
            if not job.events and not await self._look({job_id: job}):
                return
            while not job.lost:
                changed, ended = job.changed, job.ended
                texts = job.after(after)
                if texts is None:
                    texts = await run_in_threadpool(self._read, job_id, after)
                for number, text in texts:
                    after = number
                    yield text
                if texts:
                    continue
                if ended or self._services.draining.is_set():
                    return
                try:
                    async with asyncio.timeout(settings.events_heartbeat_s):
                        await changed.wait()
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            job.streams -= 1
            if not job.streams:
                self._jobs.pop(job_id, None)

    def is_watched(self, job_id: UUID, project_id: UUID) -> bool:
        """True when this project's job has a stream already, so that it exists."""
        job = self._jobs.get(job_id)
        return job is not None and job.project_id == project_id and bool(job.events)

    async def _look_again_and_again(self) -> None:
        pause_s = min(self._services.settings.poll_s, self._services.settings.events_heartbeat_s)
        while self._jobs:
            await asyncio.sleep(pause_s)
            if self._services.draining.is_set():
                for job in self._jobs.values():
                    job.wake()
                return
            waiting = [(job_id, job) for job_id, job in self._jobs.items() if not job.ended]
            for start in range(0, len(waiting), MOST_ASKED):
                await self._look(dict(waiting[start : start + MOST_ASKED]))

    async def _look(self, jobs: dict[UUID, WatchedJob]) -> bool:
        """Read what is new of these jobs and wake their streams; False when the database does not answer."""
        known = {job_id: job.last for job_id, job in jobs.items()}
        try:
            states, rows = await run_in_threadpool(self._news, known)
        except (OperationalError, PoolTimeout) as error:
            log.warning("event_streams_ended", reason=str(error.__cause__ or error)[:300])
            for job in jobs.values():
                job.lost = True
                job.wake()
            return False
        for job_id, job in jobs.items():
            new = rows.get(job_id, ())
            job.add(new)
            ended = job_id not in states or states[job_id] in FINISHED
            if new or ended:
                job.ended = ended
                job.wake()
        return True

    def _news(self, known: dict[UUID, int]) -> tuple[dict[UUID, str], dict[UUID, Sequence[JobEvent]]]:
        with self._services.database.read() as session:
            # The states first: an end that is seen here has its event below.
            found = session.execute(select(Job.id, Job.state, Job.events).where(Job.id.in_(known))).all()
            states = {job_id: state for job_id, state, _ in found}
            starts = {job_id: max(known[job_id], events - MOST_KEPT) for job_id, _, events in found}
            changed = [job_id for job_id, _, events in found if events > known[job_id]]
            return states, {each: queue.events_after(session, each, starts[each], MOST_KEPT) for each in changed}

    def _read(self, job_id: UUID, after: int) -> list[tuple[int, str]]:
        with self._services.database.read() as session:
            return [(row.number, as_text(row)) for row in queue.events_after(session, job_id, after, MOST_KEPT)]


def as_text(row: JobEvent) -> str:
    """One server-sent event."""
    data = row.data | {"at": row.created_at.isoformat(), "attempt": row.attempt}
    return f"id: {row.number}\nevent: {row.event}\ndata: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"
