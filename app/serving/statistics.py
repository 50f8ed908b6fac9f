"""What each loaded version has done in this process: how often, how long, in which phase."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID


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
    """success and fail, and the phases of the pipeline."""


@dataclass
class Request:
    """What one request did; filled in while it runs."""

    timings_ms: Mapping[str, float] = field(default_factory=dict)
    images: int = 1


class Statistics:
    """Counters by version; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[UUID, VersionStatistics] = defaultdict(VersionStatistics)

    @contextmanager
    def request(self, version_id: UUID) -> Iterator[Request]:
        """Counts what happens inside as one request, failed when it raises."""
        started, request = time.perf_counter(), Request()
        try:
            yield request
        except BaseException:
            self._add(version_id, {"fail": _since(started)}, 0)
            raise
        self._add(version_id, {"success": _since(started), **request.timings_ms}, request.images)

    def _add(self, version_id: UUID, spent_ms: Mapping[str, float], images: int) -> None:
        with self._lock:
            seen = self._versions[version_id]
            seen.last_ms, seen.images = int(time.time() * 1000), seen.images + images
            for phase, ms in spent_ms.items():
                seen.phases[phase].add(ms)

    def of(self, version_id: UUID) -> VersionStatistics:
        """A copy of the counters of a version; zeros when it has done nothing."""
        with self._lock:
            seen = self._versions.get(version_id, VersionStatistics())
            return VersionStatistics(seen.last_ms, seen.images, defaultdict(Counter, {phase: Counter(each.count, each.ns) for phase, each in seen.phases.items()}))


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
