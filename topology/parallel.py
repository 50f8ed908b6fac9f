"""Kernels of many maps side by side, on threads that all callers share.

Compiled kernels hold no lock, so two threads on two cores take half the time. One pool for the whole process: a pool
for each call would start threads at every step, and several at once would be more threads than cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="kernels")


def side_by_side(work: Callable[[Given], Found], items: Iterable[Given]) -> list[Found]:
    """[work(item) for item in items], in that order, on as many threads as there are cores.

    `work` must not call `side_by_side` itself: it would wait for threads that wait for it.
    """
    given = list(items)
    if len(given) < 2 or cores() == 1:
        return [work(item) for item in given]
    return list(_pool(os.getpid()).map(work, given))  # a forked child has no threads of its parent
