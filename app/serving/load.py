"""How much runs at this moment, which decides how many cores one prediction may take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Load:
    """Counts the network runs of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0

    @contextmanager
    def one_more(self) -> Iterator[bool]:
        """True when no other run is going on."""
        with self._lock:
            self._running += 1
            alone = self._running == 1
        try:
            yield alone
        finally:
            with self._lock:
                self._running -= 1
