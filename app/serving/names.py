"""Which version a name or alias means, cached for a moment.

A name moves when an alias is moved or a version is added. Whatever this process writes is seen by its next prediction;
what another process writes is seen `name_cache_s` later at the latest.
"""

from __future__ import annotations

import threading
import time
from uuid import UUID

from app.store import models
from app.store.session import Database
from app.store.tables import Model, ModelVersion

REMEMBERED = 1024
"""Names; beyond them it starts anew."""


class Names:
    """`resolve` of `app.store.models` without a query for most requests; safe to share between threads."""

    def __init__(self, database: Database, seconds: float):
        self._database, self._seconds = database, seconds
        self._lock = threading.Lock()
        self._known: dict[tuple[UUID, str], tuple[float, Model, ModelVersion]] = {}
        self._writes = 0
        database.after_write(self._forget)

    def resolve(self, project_id: UUID, ref: str) -> tuple[Model, ModelVersion]:
        """The model and the version that `name`, `name@alias` or `name:3` means; NotFound names what there is instead.

        Only to be read.
        """
        known = self._known.get((project_id, ref))
        if known is not None and time.monotonic() < known[0]:
            return known[1:]
        writes, asked = self._writes, time.monotonic()
        with self._database.read() as session:
            model, version = models.resolve(session, project_id, ref)
        with self._lock:
            if writes == self._writes:  # a write meanwhile may have moved the name
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[project_id, ref] = (asked + self._seconds, model, version)
        return model, version

    def _forget(self) -> None:
        with self._lock:
            self._writes += 1
            self._known.clear()
