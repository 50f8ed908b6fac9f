"""What keeps a claimed job alive: the lease is prolonged while there is progress, the story is carried to the row, and
what the
submitter wants is brought back. It beats in a thread of its own, so that one slow step costs no lease.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from sqlalchemy.exc import DBAPIError, TimeoutError as PoolTimeout

from app import queue
from app.queue import Claim
from app.settings import Settings
from app.store.session import Database
from app.store.tables import Job

log = logging.getLogger(__name__)

Wish = Literal["go on", "cancel", "stop and keep", "worker stops", "lost"]
DATABASE_ERRORS = (DBAPIError, PoolTimeout)
T = TypeVar("T")


class WorkerStops(Exception):
    """This worker was told to end; the job goes back to the queue."""


class Heart:
    """The lease and the story of one job, for the time it runs here.

    stopping  set when the worker is told to end
    """

    def __init__(self, database: Database, claim: Claim, settings: Settings, stopping: threading.Event):
        self.claim = claim
        self._database, self._settings, self._stopping = database, settings, stopping
        self._answer: Wish = "go on"
        self._columns: dict[str, Any] = {}
        self._standing: dict[str, Any] = {}
        self._first: tuple[float, int] | None = None
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._lock, self._beating = threading.Lock(), threading.Lock()
        self._progressed = self._beaten = time.monotonic()
        self._closed = threading.Event()
        self._told: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name=f"heart of {claim.id}", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def wish(self) -> Wish:
        """What shall become of the job; a lost lease goes before everything, the submitter before the worker."""
        if self._answer == "go on" and self._stopping.is_set():
            return "worker stops"
        return self._answer

    def check(self) -> None:
        """Raises LeaseLost, CancelRequested or WorkerStops; call it between steps."""
        match self.wish:
            case "lost":
                raise queue.LeaseLost(f"Job {self.claim.id} was taken from this worker.")
            case "cancel" | "stop and keep":
                raise queue.CancelRequested(f"Job {self.claim.id} was cancelled.")
            case "worker stops":
                raise WorkerStops(f"This worker was told to end while it ran job {self.claim.id}.")

    @contextmanager
    def telling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` as soon as the job shall stop, for what cannot `check` between its steps."""
        self._told.append(callback)
        try:
            yield
        finally:
            self._told.remove(callback)

    def touch(self) -> None:
        """There was progress."""
        self._progressed = time.monotonic()

    def progress(self, *, also: dict[str, Any] | None = None, **columns: Any) -> None:
        """Where the job stands, for the row and the next beat; with a `step` also as a line of the story, together with
        the facts in `also`.

        Of several such lines between two beats the last one is kept. Steps of one phase give the time that is left.
        """
        if "phase" in columns:
            self._first = None
        if "step" in columns:
            columns = {
                "eta_s": self._eta_s(columns | {"steps": columns.get("steps", self._standing.get("steps"))})
            } | columns
        with self._lock:
            self._columns.update(columns)
            self._standing.update(columns)
            if "step" in columns:
                if self._events and self._events[-1][0] == "progress":
                    self._events.pop()
                self._events.append(("progress", self._standing | (also or {})))
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
        return None if each is None or steps is None else each * (steps - step)

    def tell(self, event: str, **data: Any) -> None:
        """A line of the story for the next beat."""
        with self._lock:
            self._events.append((event, data))
        self.touch()

    def flush(self) -> None:
        """Write what is waiting; what cannot be written now waits for the next beat."""
        with self._beating:
            with self._lock:
                columns, events = self._columns, self._events
                self._columns, self._events = {}, []
            try:
                self._answer = queue.heartbeat(self._database, self.claim, events=events, **columns)
                self._beaten = time.monotonic()
            except queue.LeaseLost:
                self._answer = "lost"
            except DATABASE_ERRORS as error:
                log.warning(
                    "heartbeat_failed", extra={"job_id": str(self.claim.id), "reason": str(error.__cause__ or error)}
                )
                with self._lock:
                    self._columns = columns | self._columns
                    self._events = events + self._events

    def close(self) -> None:
        """Write the rest of the story and beat no more."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            if self._answer != "lost":
                self.flush()

    def _run(self) -> None:
        while self._answer != "lost" and not self._closed.wait(self._settings.poll_s):
            # No progress, no beat: the lease of a job that hangs runs out like that of a dead worker.
            if time.monotonic() - self._progressed > self._settings.stall_s:
                continue
            if self._columns or self._events or time.monotonic() - self._beaten >= self._settings.heartbeat_s:
                self.flush()
            else:
                self._look()
            if self.wish != "go on":
                for callback in list(self._told):
                    callback()

    def _look(self) -> None:
        """Hear of a cancel between two beats, without writing anything."""
        try:
            with self._database.read() as session:
                row = session.get(Job, self.claim.id)
        except DATABASE_ERRORS:
            return
        if row is None or row.attempt != self.claim.attempt or row.state not in queue.HELD:
            self._answer = "lost"
        else:
            self._answer = queue.answer(row)


def persistently(action: Callable[[], T], *, patience_s: float, give_up: threading.Event) -> T:
    """The action's result; tried again, with growing random pauses, while the database does not answer or two
    transactions collide.

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
            log.warning("database_tried_again", extra={"reason": str(error.__cause__ or error)})
            pause = min(pause * 2, 5.0)
