"""The events of a job as lines of a log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import UUID

from app import queue
from app.services import Services
from app.store.tables import JobEvent


def log_lines(services: Services, job_id: UUID) -> Iterator[str]:
    """The story in lines, a few hundred events in memory at a time."""
    after = 0
    while True:
        with services.database.read() as session:
            rows = queue.events_after(session, job_id, after)
        yield from (_line(row) for row in rows if row.event != "progress")
        if not rows:
            return
        after = rows[-1].number


def _line(row: JobEvent) -> str:
    said = row.data.get("message") or row.data.get("state") or ""
    facts = {name: value for name, value in row.data.items() if name not in ("message", "state")}
    details = " ".join(f"{name}={json.dumps(value)}" for name, value in facts.items())
    # One event is one line, whatever a library printed.
    text = " ".join(f"{said} {details}".split())
    return f"{row.created_at:%Y-%m-%dT%H:%M:%SZ} [{row.event}] {text}\n"
