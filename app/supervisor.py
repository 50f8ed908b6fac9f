"""Restarts the gateway and the workers of `toposerve up` when they die.

The supervisor does nothing else, in one thread, so that hardly anything can crash it. It keeps the listening socket:
a client that connects while a gateway is replaced waits for the next one and is not refused. A gateway is a fork of it,
with every import done: a new one starts at once, and before anything was forked no thread was started that might hold a
lock.
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

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_S = 0.1
STEADY_S = 30
"""Seconds after which a process counts as healthy: its end is then the first crash, not one more in a row."""
MOST_CRASHES = 5
"""Crashes in a row of a needed process before the supervisor gives up."""
LONGEST_PAUSE_S = 30
STOP_S = 20
"""Seconds that a process gets to end after SIGTERM."""


class Child(Protocol):
    """A running process."""

    def status(self) -> int | None:
        """How it ended, a negative number for a signal; None while it runs."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class GaveUp(Exception):
    """A process that the service needs does not stay up."""


class Supervised:
    """One process, started again when it has ended; a `needed` one only so often, then GaveUp."""

    def __init__(self, name: str, start: Callable[[], Child], report: Callable[[str], object], *, needed: bool = False):
        self.name, self.needed = name, needed
        self._start, self._report = start, report
        self._child: Child | None = None
        self._crashes, self._starts, self._since, self._again = 0, 0, 0.0, 0.0

    def check(self, now: float) -> None:
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
        if self._child is not None and self.running:
            self._child.terminate()

    def kill(self) -> None:
        """End it."""
        if self._child is not None and self.running:
            self._child.kill()

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.status() is None

    def _ended(self, status: int, now: float) -> None:
        how = f"by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"with status {status}"
        if self.needed and self._starts == 1 and status >= 0:  # it refused its settings or its surroundings
            raise GaveUp(f"The {self.name} did not start: it ended {how}. Its reason stands above.")
        self._crashes = self._crashes + 1 if now - self._since < STEADY_S else 1
        if self.needed and self._crashes >= MOST_CRASHES:
            raise GaveUp(
                f"The {self.name} ended {self._crashes} times in a row, each time within {STEADY_S} s, at last {how}."
                " What happened before stands above."
            )
        pause_s = min(2 ** (self._crashes - 1) - 1, LONGEST_PAUSE_S)  # the first time at once
        self._again = now + pause_s
        self._report(f"{self.name} ended {how}; starting another" + (f" in {pause_s} s" if pause_s else ""))


def supervise(processes: Sequence[Supervised], *, before_stopping: Callable[[], object]) -> None:
    """Keep processes running until SIGTERM or SIGINT, or until GaveUp; all have ended when this returns."""
    stopping: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: stopping.append(number))
    try:
        while not stopping:
            for each in processes:
                each.check(time.monotonic())
            time.sleep(POLL_S)
    finally:
        before_stopping()
        _stop(processes)


def _stop(processes: Sequence[Supervised]) -> None:
    for each in processes:
        each.terminate()
    deadline = time.monotonic() + STOP_S
    while any(each.running for each in processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for each in processes:
        each.kill()


class Program:
    """A command as a Child, in a session of its own: Ctrl-C at the terminal reaches the supervisor only."""

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
    """A function as a Child: a fork of this process that ends with the function or with the supervisor."""

    def __init__(self, work: Callable[[], object]):
        self._process = multiprocessing.get_context("fork").Process(target=_run_in_fork, args=(work,))
        signal.pthread_sigmask(
            signal.SIG_BLOCK, STOP_SIGNALS
        )  # one that comes now waits until the child knows what to do with it
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def status(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _run_in_fork(work: Callable[[], object]) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
