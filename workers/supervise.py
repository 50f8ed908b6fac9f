"""Runs a training or an export as a child process and reads its events.

The child is the models' command line; an event is a line of JSON on its standard output.

A child that runs out of memory or crashes harms no other process. It is stopped as soon as the submitter cancels or the
lease is lost; when its work shall be kept it gets SIGTERM and time to write a checkpoint. One that writes no event for
too long is killed and counts as crashed. One that wrote `done` has succeeded however it ends: on a busy machine an
interpreter that loaded torch takes many seconds to end.
"""

from __future__ import annotations

import json
import math
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Self

import structlog

from app import sandbox
from workers.work import Crashed, Failed, Work

log = structlog.get_logger()

TICK_S = 0.1
TAIL_LINES = 30
KINDS_OF_ERROR = {"resource_exhausted", "input_invalid", "diverged", "export_refused", "storage_full", "internal"}

Event = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a child ended:
    its exit status, its last `done` and `error` events, and the end of what it printed elsewhere.
    """

    status: int
    done: Event | None
    error: Event | None
    tail: str


class Child:
    """A child process in the sandbox that writes events; leaving the block kills what is left of it."""

    def __init__(self, command: Sequence[str], *, memory_bytes: int | None = None, threads: int | None = None):
        self._process = sandbox.start(
            command,
            memory_bytes=memory_bytes,
            threads=threads,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in ((self._read_events, self._process.stdout), (self._read_rest, self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=5)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tail(self) -> str:
        return "\n".join(self._tail)

    def events(self) -> Iterator[Event | None]:
        """Events as they come and None when there was none for a moment, until the child has closed its output."""
        while True:
            try:
                line = self._lines.get(timeout=TICK_S)
            except queue.Empty:
                if self._process.poll() is not None:
                    self._process.kill()  # what it started may still hold its output open
                yield None
                continue
            if line is None:
                return
            if (event := _parsed(line)) is not None:
                yield event

    def wait_or_kill(self, timeout_s: float) -> int:
        """See `sandbox.Process`."""
        return self._process.wait_or_kill(timeout_s)

    def terminate(self) -> None:
        """Ask it to write a checkpoint and end."""
        self._process.terminate()

    def _read_events(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines.put(line)
        self._lines.put(None)

    def _read_rest(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._tail.append(line.rstrip())


def supervise(command: Sequence[str], work: Work, on_event: Callable[[Event], None]) -> Ended:
    """Run the child to its end, or stop it by the heartbeat's instruction.

    Raises LeaseLost, CancelRequested or WorkerStops when it was stopped, Crashed when it made no progress for too long.

    `on_event` gets every event but `done` and `error`.
    """
    settings, heartbeat = work.settings, work.heartbeat
    done: Event | None = None
    error: Event | None = None
    last_event_at = time.monotonic()
    kill_at = leave_at = math.inf
    with Child(command, memory_bytes=settings.train_memory_bytes, threads=settings.train_threads) as child:
        log.info("child_started", pid=child.pid)
        for event in child.events():
            now = time.monotonic()
            if event is not None:
                last_event_at = now
                heartbeat.touch()
                match event["event"]:
                    case "done":
                        done, leave_at = event, now + settings.stop_grace_s
                    case "error":
                        error = event
                    case _:
                        on_event(event)
            instruction = heartbeat.instruction
            if instruction in ("cancel", "lease_lost") or now > kill_at:
                break
            if instruction in ("stop_and_keep", "worker_stops") and kill_at == math.inf:
                kill_at = now + settings.stop_grace_s
                child.terminate()
            if now > leave_at:
                break
            if now - last_event_at > settings.stall_s:
                raise Crashed(f"it reported no progress for {settings.stall_s:g} s")
        heartbeat.check()
        status = child.wait_or_kill(min(settings.stop_grace_s, max(0.0, leave_at - time.monotonic())))
        heartbeat.check()
        return Ended(status, done, error, child.tail)


def require_success(ended: Ended, what: str) -> Event:
    """The `done` event, whatever the exit status after it; raises Failed with the child's own sentence, or Crashed when
    it ended without one.
    """
    if ended.done is not None and ended.error is None:
        return ended.done
    if ended.error is not None:
        code = str(ended.error.get("code", "internal"))
        raise Failed(code if code in KINDS_OF_ERROR else "internal", str(ended.error.get("message", f"{what} failed.")))
    raise Crashed(
        f"{what} {_how(ended.status)}"
        + (f"; its last words: {ended.tail.splitlines()[-1][:300]}" if ended.tail else "")
    )


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _parsed(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    log.warning("child_output_ignored", line=line[:200])
    return None
