"""Making and ending the keys of a project."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from app.errors import Forbidden
from app.roles import Principal, granted
from app.schemas.keys import NewKey
from app.store import audit, keys as store
from app.store.tables import ApiKey


def create(session: Session, caller: Principal, new: NewKey) -> tuple[ApiKey, str]:
    """A key of the caller's project and its secret; Forbidden when it would be able to do more than the caller."""
    if not granted(new.role, new.scopes) <= caller.scopes:
        raise Forbidden("A key cannot make one that may do more than itself. Choose a smaller role or fewer scopes.")
    row, token = store.add(
        session,
        project_id=caller.project_id,
        name=new.name,
        role=new.role,
        scopes=new.scopes,
        expires_at=new.expires_at,
    )
    audit.note(session, caller, "key.create", row.id)
    return row, token


def revoke(session: Session, caller: Principal, key_id: UUID) -> None:
    """End a key of the caller's project; doing it twice changes nothing."""
    store.revoke(session, store.get(session, caller.project_id, key_id).prefix)
    audit.note(session, caller, "key.revoke", key_id)
