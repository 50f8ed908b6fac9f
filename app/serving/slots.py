"""Limits how many predictions run and wait at once in one process.

One more is refused with the time after which to try again.

Work runs in threads, never on the event loop. A caller who leaves takes its work along: what waits is dropped, what
runs is asked to stop, and the place is free as soon as it has.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from app.errors import Busy, PredictionTimeout
from app.serving.pipeline import Stop

Answer = TypeVar("Answer")
REMEMBERED = 0.2
"""Weight of the newest duration in the mean that Retry-After is made of."""


class CallerLeft(Exception):
    """Nobody is there to be answered."""


class Slots:
    """`running` places to work and `waiting` places to wait.

    timeout_s  how long a caller waits for its answer at most, from when it was let in
    """

    def __init__(self, running: int, waiting: int, timeout_s: float = math.inf):
        self.running, self.waiting, self.timeout_s = running, waiting, timeout_s
        self._threads = ThreadPoolExecutor(running, thread_name_prefix="predict")
        self._taken = 0  # changed on the event loop only
        self._mean_s = 0.1

    async def run(self, work: Callable[[Stop], Answer], gone: Awaitable[object]) -> Answer:
        """The result of `work`; Busy when every place is taken, PredictionTimeout when it takes too long, CallerLeft as
        soon as `gone` ends.
        """
        watcher = asyncio.ensure_future(gone)
        try:
            return await self._run(work, watcher)
        finally:
            watcher.cancel()

    async def _run(self, work: Callable[[Stop], Answer], watcher: asyncio.Future[object]) -> Answer:
        if self._taken >= self.running + self.waiting:
            raise self._busy()
        stop, loop = Stop(), asyncio.get_running_loop()
        self._taken += 1
        job = loop.run_in_executor(self._threads, self._timed, work, stop, time.monotonic())
        # The place is free when the thread is, which may be later than the caller leaves.
        job.add_done_callback(self._leave)
        try:
            ends: set[asyncio.Future[Any]] = {job, watcher}
            timeout_s = self.timeout_s if math.isfinite(self.timeout_s) else None
            await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            stop.ask()
            raise
        if job.done():
            return job.result()
        stop.ask()
        job.add_done_callback(_forget)
        raise CallerLeft if watcher.done() else PredictionTimeout()

    def close(self) -> None:
        """Drop what waits and let what runs end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def taken(self) -> int:
        """Predictions that run or wait now."""
        return self._taken

    def _leave(self, _job: object) -> None:
        self._taken -= 1

    def _timed(self, work: Callable[[Stop], Answer], stop: Stop, arrived: float) -> Answer:
        stop.options()  # Stopped when the caller left while it waited
        started = time.monotonic()
        stop.waited_ms = (started - arrived) * 1000
        try:
            return work(stop)
        finally:
            self._mean_s += REMEMBERED * (time.monotonic() - started - self._mean_s)

    def _busy(self) -> Busy:
        wait_s = max(1, math.ceil(self._mean_s * self._taken / self.running))
        return Busy(
            f"{self.running} predictions run and {self.waiting} wait already. Try again in {wait_s} s.",
            retry_after_s=wait_s,
        )


def _forget(job: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that nobody is told about an exception that nobody waits for."""
    if not job.cancelled():
        job.exception()
