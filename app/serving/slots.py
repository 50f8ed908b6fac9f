"""Limits how many predictions run in one process and how long others wait.

Who would wait for longer than `patience` times what a prediction takes is refused with the time after which to try
again, so that an admitted answer comes nearly as fast as on an idle service. A burst that comes after a rest is taken
whole, up to BURST for each place. What a prediction takes is remembered for each `kind`: a model, and how many bytes
were sent to it.

Work runs in threads, never on the event loop. A caller who leaves takes its work along: what waits is dropped, what
runs is asked to stop, and the place is free as soon as it has.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from app.errors import Busy, PredictionTimeout
from app.serving.pipeline import Stop

Answer = TypeVar("Answer")
REMEMBERED = 0.2
"""Weight of the newest duration in the mean of its kind."""
KINDS = 512
"""Kinds whose durations are remembered; the one that was asked longest ago leaves first."""
BURST = 2
"""Predictions beyond `patience` for each running one that are let in after a rest."""
REST_S = 0.1
"""How long nobody must have waited until the next burst is let in."""
LONGEST_RETRY_S = 30
"""Nobody is told to come back later than this."""
MANY_REFUSED, HOLD_S = 50, 0.5
"""From so many refusals a second on, each is kept waiting: clients that ask again at once, whatever Retry-After says,
would take the time in which others are answered.
"""


class CallerLeft(Exception):
    """Nobody is there to be answered."""


class Slots:
    """`running` places to work and `waiting` places to wait.

    timeout_s  how long a caller waits for its answer at most, from when it was let in
    patience   longest expected wait of one that is let in, in multiples of how long a prediction takes
    """

    def __init__(self, running: int, waiting: int, timeout_s: float = math.inf, patience: float = math.inf):
        self.running, self.waiting, self.timeout_s, self.patience = running, waiting, timeout_s, patience
        self._threads = ThreadPoolExecutor(running, thread_name_prefix="predict")
        self._kinds_lock = threading.Lock()
        self._mean_s = 0.1
        self._by_kind: OrderedDict[str, float] = OrderedDict()
        # All below is changed on the event loop only.
        self._taken = 0
        self._ahead_s = 0.0  # what those who run or wait are expected to take
        self._burst, self._waited_last = BURST * running, -math.inf
        self._second, self._refused = 0, 0  # refusals in the running second
        self._promised = 0.0  # when the last one who was refused was told to come back

    async def run(self, work: Callable[[Stop], Answer], gone: Awaitable[object], kind: str = "") -> Answer:
        """The result of `work`; Busy when it would wait too long, PredictionTimeout when it takes too long, CallerLeft
        as soon as `gone` ends.
        """
        watcher = asyncio.ensure_future(gone)
        try:
            return await self._run(work, watcher, kind)
        finally:
            watcher.cancel()

    def expects(self, kind: str) -> float:
        """Seconds that a prediction of this kind takes, as far as is known."""
        return self._by_kind.get(kind, self._mean_s)

    def hold_s(self) -> float:
        """How long to wait before a refusal is sent; to be asked once for each."""
        second = int(time.monotonic())
        self._second, self._refused = second, (self._refused + 1 if second == self._second else 1)
        return HOLD_S if self._refused > MANY_REFUSED else 0.0

    def refusal(self, kind: str = "") -> Busy | None:
        """What a prediction of this kind is answered if it comes now; None when it is let in."""
        if self._taken < self.running:
            return None
        if self._taken < self.running + self.waiting:
            # One that is shorter than the others is let in as they are: it waits for them, not for its like.
            patience_s = self.patience * max(self.expects(kind), self._mean_s)
            if self._burst > 0 or self._rested or self._ahead_s / self.running <= patience_s:
                return None
        return self._busy()

    async def _run(self, work: Callable[[Stop], Answer], watcher: asyncio.Future[object], kind: str) -> Answer:
        refused = self.refusal(kind)
        if refused:
            raise refused
        self._note_arrival(kind)
        stop, loop, expected = Stop(), asyncio.get_running_loop(), self.expects(kind)
        self._taken, self._ahead_s = self._taken + 1, self._ahead_s + expected
        job = loop.run_in_executor(self._threads, self._timed, work, stop, time.monotonic(), kind)
        # The place is free when the thread is, which may be later than the caller leaves.
        job.add_done_callback(partial(self._leave, expected))
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

    def _note_arrival(self, kind: str) -> None:
        """Spend the burst, or begin a new one after a rest."""
        if self._rested:
            self._burst = BURST * self.running
        if self._taken < self.running:
            return
        self._waited_last = time.monotonic()
        if self._ahead_s / self.running > self.patience * max(self.expects(kind), self._mean_s):
            self._burst -= 1

    @property
    def _rested(self) -> bool:
        return self._taken <= self.running and time.monotonic() - self._waited_last > REST_S

    def _leave(self, expected_s: float, _job: object) -> None:
        if self._taken > self.running:
            self._waited_last = time.monotonic()
        self._taken -= 1
        self._ahead_s = self._ahead_s - expected_s if self._taken else 0.0

    def _timed(self, work: Callable[[Stop], Answer], stop: Stop, arrived: float, kind: str) -> Answer:
        stop.options()  # Stopped when the caller left while it waited
        started = time.monotonic()
        stop.waited_ms = (started - arrived) * 1000
        try:
            return work(stop)
        finally:
            self._remember(kind, time.monotonic() - started)

    def _remember(self, kind: str, seconds: float) -> None:
        self._mean_s += REMEMBERED * (seconds - self._mean_s)
        with self._kinds_lock:
            mean_s = self._by_kind.pop(kind, seconds)
            self._by_kind[kind] = mean_s + REMEMBERED * (seconds - mean_s)
            while len(self._by_kind) > KINDS:
                self._by_kind.popitem(last=False)

    def _busy(self) -> Busy:
        """Everybody who is refused is told a time of their own, so that all who come back then find a place."""
        now = time.monotonic()
        self._promised = max(self._promised, now + self._ahead_s / self.running) + self._mean_s / self.running
        self._promised = min(self._promised, now + LONGEST_RETRY_S)
        wait_s = max(1, math.ceil(self._promised - now))
        return Busy(
            f"{min(self._taken, self.running)} predictions run and {max(0, self._taken - self.running)} wait already."
            f" Try again in {wait_s} s.",
            retry_after_s=wait_s,
        )


def _forget(job: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that nobody is told about an exception that nobody waits for."""
    if not job.cancelled():
        job.exception()
