"""Callers whose key was valid a moment ago, so that few requests ask the database."""

from __future__ import annotations

import time
from datetime import datetime

from app.roles import Principal
from app.store.keys import USED_EVERY
from app.store.tables import now

CACHED = 1024
"""Keys that are kept; the cache starts anew when it is full."""


class KeyCache:
    """Keys that were valid a moment ago: at most `key_cache_s` may pass before a revoked key is noticed."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._known: dict[bytes, tuple[float, Principal]] = {}
        self._notes_wait_until = 0.0

    def get(self, name: bytes) -> Principal | None:
        """The caller of that name, while the entry is fresh."""
        until, principal = self._known.get(name, (0.0, None))
        return principal if time.monotonic() < until else None

    def put(self, name: bytes, principal: Principal, ends: datetime | None) -> None:
        """Keep the caller of a valid key or token, never beyond its end."""
        left = self._seconds if ends is None else min(self._seconds, (ends - now()).total_seconds())
        if len(self._known) >= CACHED:
            self._known.clear()
        self._known[name] = (time.monotonic() + left, principal)

    def drop(self, name: bytes) -> None:
        """Look that caller up again."""
        self._known.pop(name, None)

    @property
    def may_note_use(self) -> bool:
        """False for a while after the use of a key could not be written down: each try may take seconds."""
        return time.monotonic() >= self._notes_wait_until

    def could_not_note_use(self) -> None:
        """Write no use down for a while."""
        self._notes_wait_until = time.monotonic() + USED_EVERY.total_seconds()

    def forget(self) -> None:
        """Look every key up again."""
        self._known.clear()
