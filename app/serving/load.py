"""How much runs at this moment, which decides how many cores one prediction may take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Load:
    """Counts the network runs of this process.

    admitted  how many predictions are running, queued or still being decoded, which will want a core soon
    """

    def __init__(self, admitted: Callable[[], int] = lambda: 0) -> None:
        self._admitted = admitted
        self._lock = threading.Lock()
        self._running = 0

    @contextmanager
    def one_more(self) -> Iterator[bool]:
        """True when no other run is going on, and none is to be expected."""
        with self._lock:
            self._running += 1
            alone = self._running == 1 and self._admitted() <= 1
        try:
            yield alone
        finally:
            with self._lock:
                self._running -= 1
