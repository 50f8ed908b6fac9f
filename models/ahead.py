"""Draws the next batches in a thread while a step is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Drawn = TypeVar("Drawn")


class DrawnAhead(Generic[Drawn]):
    """What `draw(number)` gives, the following numbers begun before they are asked for.

    draw   a function of its number alone, so that the order and the thread in which it runs change nothing
    last   the greatest number that will be asked for
    depth  how many are held ready; each is a batch in memory
    An error of `draw` is raised where its number is asked for.
    """

    def __init__(self, draw: Callable[[int], Drawn], *, last: int, depth: int = 2):
        self._draw, self._last, self._depth = draw, last, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="patches")
        self._begun: dict[int, Future[Drawn]] = {}

    def __call__(self, number: int) -> Drawn:
        for wanted in range(number, min(number + self._depth, self._last) + 1):
            if wanted not in self._begun:
                self._begun[wanted] = self._thread.submit(self._draw, wanted)
        begun = self._begun.pop(number, None)
        return self._draw(number) if begun is None else begun.result()

    def close(self) -> None:
        """Wait for the batch in hand and draw no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)
