"""Keeps a claimed job alive: prolongs its lease, writes progress, reads the submitter's instruction.

It runs in a thread of its own, so that one slow step costs no lease. A job without progress is not kept alive: its
lease runs out like that of a dead worker.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError, TimeoutError as PoolTimeout

from app import queue
from app.queue import Claim
from app.settings import Settings
from app.store.session import Database
from app.store.tables import Job

log = structlog.get_logger()

Instruction = Literal[queue.Instruction, "worker_stops", "lease_lost"]
DATABASE_ERRORS = (DBAPIError, PoolTimeout)
T = TypeVar("T")


class WorkerStops(Exception):
    """This worker is stopping; the job goes back to the queue."""


class Heartbeat:
    """Lease, progress and events of one job while it runs in this worker.

    stopping  set when the worker shall stop
    """

    def __init__(self, database: Database, claim: Claim, settings: Settings, stopping: threading.Event):
        self.claim = claim
        self._database, self._settings, self._stopping = database, settings, stopping
        self._instruction: Instruction = "continue"
        self._columns: dict[str, Any] = {}
        self._progress: dict[str, Any] = {}
        self._first: tuple[float, int] | None = None
        self.after_steps_s = 0.0
        """Seconds that the job is expected to go on after its last step."""
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._progress_at = self._written_at = time.monotonic()
        self._closed = threading.Event()
        self._on_stop: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name=f"heartbeat of {claim.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def instruction(self) -> Instruction:
        """What to do with the job; a lost lease goes before everything, the submitter before the worker."""
        if self._instruction == "continue" and self._stopping.is_set():
            return "worker_stops"
        return self._instruction

    def check(self) -> None:
        """Raises LeaseLost, CancelRequested or WorkerStops; call it between steps."""
        match self.instruction:
            case "lease_lost":
                raise queue.LeaseLost(f"Job {self.claim.id} was taken from this worker.")
            case "cancel" | "stop_and_keep":
                raise queue.CancelRequested(f"Job {self.claim.id} was cancelled.")
            case "worker_stops":
                raise WorkerStops(f"This worker was stopped while it ran job {self.claim.id}.")

    @contextmanager
    def on_stop(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` as soon as the job shall stop, for what cannot `check` between its steps."""
        self._on_stop.append(callback)
        try:
            yield
        finally:
            self._on_stop.remove(callback)

    def touch(self) -> None:
        """There was progress."""
        self._progress_at = time.monotonic()

    def progress(self, *, also: dict[str, Any] | None = None, **columns: Any) -> None:
        """Columns of the row for the next write; with a `step` also a progress event, with the facts in `also`.

        Of several such events between two writes the last one is kept. Steps of one phase give the time that is left.
        """
        if "phase" in columns:
            self._first = None
        if "step" in columns:
            columns = {
                "eta_s": self._eta_s(columns | {"steps": columns.get("steps", self._progress.get("steps"))})
            } | columns
        with self._lock:
            self._columns.update(columns)
            self._progress.update(columns)
            if "step" in columns:
                if self._events and self._events[-1][0] == "progress":
                    self._events.pop()
                self._events.append(("progress", self._progress | (also or {})))
        self.touch()

    def _eta_s(self, facts: dict[str, Any]) -> float | None:
        """From what the steps so far took by the clock, everything between them included; at first from
        `seconds_per_step`, where it is known.
        """
        step, steps, each = facts["step"], facts["steps"], facts.get("seconds_per_step")
        self._first = self._first or (time.monotonic(), step)
        began, first = self._first
        if step > first:
            each = (time.monotonic() - began) / (step - first)
        return None if each is None or steps is None else each * (steps - step) + self.after_steps_s

    def record(self, event: str, **data: Any) -> None:
        """An event of the job for the next write."""
        with self._lock:
            self._events.append((event, data))
        self.touch()

    def flush(self) -> None:
        """Write what is waiting; what cannot be written now waits for the next write."""
        with self._writing:
            with self._lock:
                columns, events = self._columns, self._events
                self._columns, self._events = {}, []
            try:
                self._instruction = queue.heartbeat(self._database, self.claim, events=events, **columns)
                self._written_at = time.monotonic()
            except queue.LeaseLost:
                self._instruction = "lease_lost"
            except DATABASE_ERRORS as error:
                log.warning("heartbeat_failed", job_id=str(self.claim.id), reason=str(error.__cause__ or error))
                with self._lock:
                    self._columns = columns | self._columns
                    self._events = events + self._events

    def close(self) -> None:
        """Write what is waiting and stop."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            if self._instruction != "lease_lost":
                self.flush()

    def _run(self) -> None:
        while self._instruction != "lease_lost" and not self._closed.wait(self._settings.poll_s):
            if time.monotonic() - self._progress_at > self._settings.stall_s:
                continue
            if self._columns or self._events or time.monotonic() - self._written_at >= self._settings.heartbeat_s:
                self.flush()
            else:
                self._read_instruction()
            if self.instruction != "continue":
                for callback in list(self._on_stop):
                    callback()

    def _read_instruction(self) -> None:
        """Notice a cancel between two writes."""
        try:
            with self._database.read() as session:
                row = session.get(Job, self.claim.id)
        except DATABASE_ERRORS:
            return
        if row is None or row.attempt != self.claim.attempt or row.state not in queue.HELD:
            self._instruction = "lease_lost"
        else:
            self._instruction = queue.instruction(row)


def retry(action: Callable[[], T], *, patience_s: float, give_up: threading.Event) -> T:
    """The action's result; tried again, with growing random pauses, while the database is away or transactions collide.

    An action is one fenced transaction, so one that was committed before its answer got lost raises LeaseLost the
    second time.
    """
    deadline, pause = time.monotonic() + patience_s, 0.05
    while True:
        try:
            return action()
        except DATABASE_ERRORS as error:
            if time.monotonic() > deadline or give_up.wait(pause * random.uniform(0.5, 1.5)):
                raise
            log.warning("database_retried", reason=str(error.__cause__ or error))
            pause = min(pause * 2, 5.0)
