"""Who did what to which object, written in the same transaction as the deed."""

from __future__ import annotations

import uuid

import structlog
from sqlalchemy.orm import Session

from app.roles import Principal
from app.store.tables import AuditLine


def note(
    session: Session, caller: Principal, what: str, object: object, *, project_id: uuid.UUID | None = None
) -> None:
    """Write one line; the request id comes from the log's context.

    project_id  where it happened; None: in the caller's project
    """
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    facts = {"who": caller.who, "what": what, "object": str(object)[:255], "request_id": request_id}
    session.add(AuditLine(project_id=project_id or caller.project_id, **facts))
