"""Browser sessions that were signed out, remembered until their cookies expire."""

from __future__ import annotations

import hashlib
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.store.tables import EndedSession, now


def end(session: Session, project_id: UUID, cookie: str, until: datetime) -> None:
    """Remember that this cookie must not be accepted any more; those that have expired by now are forgotten."""
    session.execute(delete(EndedSession).where(EndedSession.until < now()))
    session.merge(EndedSession(digest=digest(cookie), project_id=project_id, until=until))


def has_ended(session: Session, cookie: str) -> bool:
    """True for a cookie whose session was signed out."""
    return session.get(EndedSession, digest(cookie)) is not None


def digest(cookie: str) -> str:
    """What is kept of a cookie."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()
