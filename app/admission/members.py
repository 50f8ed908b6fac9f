"""Making, changing and removing the members of a project."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from app.errors import Forbidden
from app.roles import Principal, granted
from app.schemas.members import NewMember
from app.store import audit, members as store
from app.store.tables import Member


def create(session: Session, caller: Principal, new: NewMember) -> Member:
    """A member of the caller's project; Forbidden when it would be able to do more than the caller."""
    _check_rights(caller, new.role)
    row = store.add(session, project_id=caller.project_id, kind=new.kind, value=new.value, role=new.role)
    audit.note(session, caller, "member.create", _told(row))
    return row


def change(session: Session, caller: Principal, member_id: UUID, role: str) -> Member:
    """Give a member another role; Forbidden when it may do more than the caller."""
    row = store.get(session, caller.project_id, member_id)
    _check_rights(caller, role)
    row.role = role
    audit.note(session, caller, "member.change", _told(row))
    return row


def remove(session: Session, caller: Principal, member_id: UUID) -> None:
    """Make a member none any more; what they have made stays."""
    row = store.get(session, caller.project_id, member_id)
    audit.note(session, caller, "member.remove", _told(row))
    session.delete(row)


def _check_rights(caller: Principal, role: str) -> None:
    if not granted(role, ()) <= caller.scopes:
        raise Forbidden("Nobody can give a role that may do more than their own. Choose a smaller one.")


def _told(row: Member) -> str:
    return f"{row.id} {row.role} {row.kind} {row.value}"
