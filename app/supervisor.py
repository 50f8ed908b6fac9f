"""The processes of `toposerve up`, a gateway and the workers beside it: one that dies is started again.

The supervisor does nothing else, in one thread, so that hardly anything can crash it. It keeps the listening socket:
who connects while a gateway is replaced waits for the next one and is not refused. A gateway is a fork of it, with
every import done: a new one needs no second of them, and before anything was forked no thread was started that might
hold a lock.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

TOLD_TO_STOP = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 0.1
STEADY_S = 30
"""Seconds after which a process was in order: its end is the first crash, not one more in a row."""
MOST_CRASHES = 5
"""Crashes in a row of a process that cannot be done without; then somebody should look."""
LONGEST_PAUSE_S = 30
STOP_S = 20
"""Seconds that a process gets to end once it was told to."""


class Child(Protocol):
    """A running process."""

    def status(self) -> int | None:
        """How it ended, a negative number for a signal; None while it runs."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class GaveUp(Exception):
    """A process that the service cannot do without does not stay up."""


class Kept:
    """One process, started again when it has ended; `needed` ones only so often."""

    def __init__(self, name: str, start: Callable[[], Child], tell: Callable[[str], object], *, needed: bool = False):
        self.name, self.needed = name, needed
        self._start, self._tell = start, tell
        self._child: Child | None = None
        self._crashes, self._starts, self._since, self._again = 0, 0, 0.0, 0.0

    def look(self, now: float) -> None:
        """Start it, or take notice of its end; GaveUp when that happened too often."""
        if self._child is None:
            if now >= self._again:
                self._child, self._since, self._starts = self._start(), now, self._starts + 1
            return
        status = self._child.status()
        if status is not None:
            self._child = None
            self._ended(status, now)

    def terminate(self) -> None:
        """Ask it to end."""
        if self.running:
            self._child.terminate()  # type: ignore[union-attr]

    def kill(self) -> None:
        """End it."""
        if self.running:
            self._child.kill()  # type: ignore[union-attr]

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.status() is None

    def _ended(self, status: int, now: float) -> None:
        how = f"by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"with status {status}"
        if self.needed and self._starts == 1 and status >= 0:  # it looked at its surroundings and refused them
            raise GaveUp(f"The {self.name} did not start: it ended {how}. Its reason stands above.")
        self._crashes = self._crashes + 1 if now - self._since < STEADY_S else 1
        if self.needed and self._crashes >= MOST_CRASHES:
            raise GaveUp(
                f"The {self.name} ended {self._crashes} times in a row, each time within {STEADY_S} s, at last {how}."
                " What happened before stands above."
            )
        pause_s = min(2 ** (self._crashes - 1) - 1, LONGEST_PAUSE_S)  # the first time at once
        self._again = now + pause_s
        self._tell(f"{self.name} ended {how}; starting another" + (f" in {pause_s} s" if pause_s else ""))


def keep(kept: Sequence[Kept], *, before_stopping: Callable[[], object]) -> None:
    """Keep processes running until SIGTERM or SIGINT, or until one of them is given up; all have ended when this
    returns.
    """
    stopping: list[int] = []
    for number in TOLD_TO_STOP:
        signal.signal(number, lambda number, _frame: stopping.append(number))
    try:
        while not stopping:
            for each in kept:
                each.look(time.monotonic())
            time.sleep(LOOK_S)
    finally:
        before_stopping()
        _stop(kept)


def _stop(kept: Sequence[Kept]) -> None:
    for each in kept:
        each.terminate()
    deadline = time.monotonic() + STOP_S
    while any(each.running for each in kept) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    for each in kept:
        each.kill()


class Program:
    """A command as a Child, in a session of its own: Ctrl-C at the terminal reaches the supervisor, which tells it."""

    def __init__(self, *command: str):
        self._process = subprocess.Popen([sys.executable, "-m", *command], start_new_session=True)

    def status(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Fork:
    """A function as a Child:
    this process once more, which ends when the function does or when the supervisor is gone.
    """

    def __init__(self, work: Callable[[], object]):
        self._process = multiprocessing.get_context("fork").Process(target=_alone, args=(work,))
        signal.pthread_sigmask(
            signal.SIG_BLOCK, TOLD_TO_STOP
        )  # one that comes now waits until the child knows what to do with it
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD_TO_STOP)

    def status(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _alone(work: Callable[[], object]) -> None:
    for number in TOLD_TO_STOP:
        signal.signal(number, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD_TO_STOP)
    threading.Thread(target=_follow_parent, daemon=True).start()
    work()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
