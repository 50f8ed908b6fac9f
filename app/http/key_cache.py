"""Callers whose key was valid a moment ago, so that most requests ask the database nothing."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from app.store.tables import ApiKey, now

CACHED = 1024
"""Keys that are kept; the cache starts anew when it is full."""


@dataclass(frozen=True)
class Principal:
    """Somebody with a project and a list of what they may do there."""

    project_id: uuid.UUID
    who: str
    """`ts_<prefix>` of the key, or `open`; what the audit and the job rows say."""
    role: str
    scopes: frozenset[str]
    key_id: uuid.UUID | None = None

    def may(self, scope: str) -> bool:
        """True when the caller has the scope."""
        return scope in self.scopes


class KeyCache:
    """Keys that were valid a moment ago: at most `key_cache_s` may pass before a revoked key is noticed."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._known: dict[bytes, tuple[float, Principal]] = {}

    def get(self, name: bytes) -> Principal | None:
        """The caller of that name, while it may still be believed."""
        until, principal = self._known.get(name, (0.0, None))
        return principal if time.monotonic() < until else None

    def put(self, name: bytes, row: ApiKey, principal: Principal) -> None:
        """Believe a key for a while, and never longer than it lives."""
        left = self._seconds if row.expires_at is None else min(self._seconds, (row.expires_at - now()).total_seconds())
        if len(self._known) >= CACHED:
            self._known.clear()
        self._known[name] = (time.monotonic() + left, principal)

    def forget(self) -> None:
        """Look every key up again."""
        self._known.clear()
