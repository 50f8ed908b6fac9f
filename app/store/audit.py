"""Who did what to which object, written in the same transaction as the deed."""

from __future__ import annotations

import uuid

import structlog
from sqlalchemy.orm import Session

from app.store.tables import AuditLine


def note(session: Session, *, project_id: uuid.UUID, who: str, what: str, object: object) -> None:
    """Write one line; the request id comes from the log's context."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    session.add(AuditLine(project_id=project_id, who=who, what=what, object=str(object)[:255], request_id=request_id))
