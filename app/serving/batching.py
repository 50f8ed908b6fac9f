"""Images of different requests, predicted together.

Only images of one size after padding to the network's multiple share a batch. Padding further, to a common larger size,
would change answers: a convolution sees zeros beyond the border, and padded pixels instead of them after padding. The
exact answer comes first.

One batcher belongs to one loaded network, so versions cannot meet in a batch. It has no thread of its own: whoever
comes first gathers, runs for all, and hands out the answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import structlog

from app.serving.pipeline import Stop, Stopped

log = structlog.get_logger()

Run = Callable[[np.ndarray, Stop], np.ndarray]


@dataclass(frozen=True, eq=False)
class Seat:
    """One request's part of a batch."""

    images: np.ndarray
    stop: Stop
    answer: Future[np.ndarray] = field(default_factory=Future)


class Batcher:
    """Called as a network's `run` is, by many threads; calls it with the images of several.

    run     (N, C, ...) float32, Stop -> (N, K, ...) float32
    most    images in a batch
    wait_s  how long the first of a batch waits for others while another batch runs; when none does it leaves at once
    """

    def __init__(self, run: Run, most: int, wait_s: float):
        self._run, self._most, self._wait_s = run, most, wait_s
        self._changed = threading.Condition()
        self._gathering: dict[tuple[int, ...], list[Seat]] = {}
        self._running = 0

    def __call__(self, images: np.ndarray, stop: Stop) -> np.ndarray:
        """As `run` answers for these images alone. Stopped when `stop` was asked before the batch began."""
        stop.options()
        seat, shape = Seat(images, stop), images.shape[1:]
        with self._changed:
            seats = self._gathering.get(shape, [])
            leads = not seats or self._count(seats) + len(images) > self._most
            if leads:
                seats = self._gathering[shape] = []
            seats.append(seat)
            self._changed.notify_all()
        if leads:
            self._lead(seats, shape)
        return seat.answer.result()

    def _lead(self, seats: list[Seat], shape: tuple[int, ...]) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    not self._running or self._count(seats) >= self._most or self._gathering.get(shape) is not seats
                ),
                self._wait_s,
            )
            if self._gathering.get(shape) is seats:
                del self._gathering[shape]
            self._running += 1
        try:
            self._answer(seats)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _answer(self, seats: list[Seat]) -> None:
        """Run for all who are still there; where that fails, for each alone, so that one cannot fail another."""
        present = []
        for seat in seats:
            if seat.stop.asked:
                seat.answer.set_exception(Stopped())
            else:
                present.append(seat)
        answers = self._together(present) if len(present) > 1 else None
        for i, seat in enumerate(present):
            try:
                seat.answer.set_result(self._run(seat.images, seat.stop) if answers is None else answers[i])
            except BaseException as error:
                seat.answer.set_exception(error)

    def _together(self, seats: list[Seat]) -> list[np.ndarray] | None:
        try:
            answers = self._run(np.concatenate([seat.images for seat in seats]), Stop())
        except Exception as error:
            log.warning("batch_failed", images=self._count(seats), exc_info=error)
            return None
        return np.split(answers, np.cumsum([len(seat.images) for seat in seats])[:-1])

    @staticmethod
    def _count(seats: list[Seat]) -> int:
        return sum(len(seat.images) for seat in seats)
