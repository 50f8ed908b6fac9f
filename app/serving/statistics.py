"""Counts and durations of the predictions of each loaded version in this process.

A request costs a few microseconds here: counters, a ring of the newest durations, and one count for each second of the
last minute.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

RECENT = 512
"""Durations that quantiles are made of."""
QUANTILES = (0.5, 0.95, 0.99)
MINUTE = 60


@dataclass
class Counter:
    """How often something was done and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ms: float) -> None:
        """Once more, for so long."""
        self.count += 1
        self.ns += int(ms * 1e6)


@dataclass
class VersionStatistics:
    """The counters of one version."""

    last_ms: int = 0
    """Milliseconds since 1970 of the last answer."""
    images: int = 0
    phases: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    """success and fail, which include the queue; queue, and the phases of the pipeline."""
    recent_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Of the newest successes, from arrival to answer."""
    seconds: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * MINUTE)
    """(second, requests in it): a ring of the last minute."""


@dataclass(frozen=True)
class Live:
    """How a version does in this process."""

    requests: int
    failures: int
    images: int
    last_ms: int
    """Milliseconds since 1970 of the last answer; 0 for none."""
    per_s: float
    """Requests a second, mean over the last minute."""
    quantiles_ms: dict[float, float]
    """0.5, 0.95 and 0.99 of the newest `RECENT` successes, from arrival to answer (nearest rank); empty before the
    first.
    """
    of: int
    """Successes that the quantiles are made of."""
    phases_ms: dict[str, float]
    """Mean of each phase over all successes."""


@dataclass
class Request:
    """What one request did; filled in while it runs."""

    timings_ms: Mapping[str, float] = field(default_factory=dict)
    images: int = 1


class Statistics:
    """Counters by version; safe to share between threads.

    clock  seconds, going on evenly
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._versions: dict[UUID, VersionStatistics] = defaultdict(VersionStatistics)

    @contextmanager
    def request(self, version_id: UUID, queued_ms: float = 0.0) -> Iterator[Request]:
        """Counts what happens inside as one request, failed when it raises.

        queued_ms  how long it waited before
        """
        started, request = self._clock(), Request()
        try:
            yield request
        except BaseException:
            self._add(version_id, {"fail": self._since(started) + queued_ms}, 0)
            raise
        self._add(
            version_id,
            {"success": self._since(started) + queued_ms, "queue": queued_ms, **request.timings_ms},
            request.images,
        )

    def _since(self, started: float) -> float:
        return (self._clock() - started) * 1000

    def _add(self, version_id: UUID, spent_ms: Mapping[str, float], images: int) -> None:
        second = int(self._clock())
        with self._lock:
            seen = self._versions[version_id]
            seen.last_ms, seen.images = int(time.time() * 1000), seen.images + images
            for phase, ms in spent_ms.items():
                seen.phases[phase].add(ms)
            if "success" in spent_ms:
                seen.recent_ms.append(spent_ms["success"])
            then, count = seen.seconds[second % MINUTE]
            seen.seconds[second % MINUTE] = (second, count + 1 if then == second else 1)

    def of(self, version_id: UUID) -> VersionStatistics:
        """A copy of the counters of a version; zeros when it has done nothing."""
        with self._lock:
            seen = self._versions.get(version_id, VersionStatistics())
            phases = defaultdict(Counter, {phase: Counter(each.count, each.ns) for phase, each in seen.phases.items()})
            return VersionStatistics(seen.last_ms, seen.images, phases, seen.recent_ms.copy(), seen.seconds.copy())

    def live(self, version_id: UUID) -> Live:
        """How the version does now."""
        seen, now = self.of(version_id), int(self._clock())
        success, failures = seen.phases["success"].count, seen.phases["fail"].count
        in_order = sorted(seen.recent_ms)
        return Live(
            requests=success + failures,
            failures=failures,
            images=seen.images,
            last_ms=seen.last_ms,
            per_s=sum(count for second, count in seen.seconds if second > now - MINUTE) / MINUTE,
            quantiles_ms={q: in_order[math.ceil(q * len(in_order)) - 1] for q in QUANTILES if in_order},
            of=len(in_order),
            phases_ms={
                phase: each.ns / each.count / 1e6
                for phase, each in seen.phases.items()
                if phase not in ("success", "fail") and each.count
            },
        )

    def used(self, most: int) -> list[UUID]:
        """The versions that answered last, at most so many."""
        with self._lock:
            return sorted(self._versions, key=lambda version_id: -self._versions[version_id].last_ms)[:most]
