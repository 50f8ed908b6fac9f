"""Members of projects: what people of the OpenID provider may do where.

A member is named by what a token says: the subject, an email address that the provider has verified, or a group. Who
is named in a project more than once may do there what any of these roles may.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from functools import partial

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid
from app.roles import Person, check_grant
from app.store import rows
from app.store.tables import MEMBER_KINDS, Member, Project

FORMS = {
    "subject": (r"[\x20-\x7e]{1,255}", "1 to 255 printable ASCII characters, as `sub` of the token"),
    "email": (r"[^@\s]{1,64}@[^@\s]{1,190}", "an address such as ana@hospital.example"),
    "group": (r"[^\x00]{1,255}", "1 to 255 characters, as the token lists it"),
}

owned = partial(rows.owned, Member)
"""The members of a project."""
get = partial(rows.get, Member)
"""The member of that id in this project, or NotFound."""


def add(session: Session, *, project_id: uuid.UUID, kind: str, value: str, role: str) -> Member:
    """A new member; Invalid for what no token can say, Conflict when it is one already."""
    check_grant(role, ())
    if kind not in MEMBER_KINDS:
        raise Invalid(f"A member is named by one of {', '.join(MEMBER_KINDS)}, not by {kind[:32]!r}.")
    form, expected = FORMS[kind]
    if not re.fullmatch(form, value):
        raise Invalid(
            f"The value does not name a member by {kind}. Give {expected}.",
            errors=[{"pointer": "/value", "detail": f"expected {expected}"}],
        )
    value = value.lower() if kind == "email" else value
    there = session.scalar(owned(project_id).where(Member.kind == kind, Member.value == value))
    if there is not None:
        raise Conflict(
            f"This {kind} is a member of the project already, as {there.role}. Change the role of member {there.id}."
        )
    row = Member(project_id=project_id, kind=kind, value=value, role=role)
    session.add(row)
    session.flush()
    return row


def remove(session: Session, member_id: uuid.UUID) -> bool:
    """Remove a member of whatever project; True when there was one."""
    row = session.get(Member, member_id)
    if row is not None:
        session.delete(row)
    return row is not None


def every(session: Session) -> Sequence[tuple[Member, str]]:
    """Every member of the installation with the name of its project, oldest first."""
    query = select(Member, Project.name).join(Project, Project.id == Member.project_id).order_by(Member.id)
    return [(row, name) for row, name in session.execute(query)]


def projects_of(session: Session, person: Person) -> dict[tuple[uuid.UUID, str], list[str]]:
    """The projects of a person as (id, name), by name, each with the roles that they have there."""
    named = [and_(Member.kind == "subject", Member.value == person.subject)]
    if person.email is not None:
        named.append(and_(Member.kind == "email", Member.value == person.email))
    if person.groups:
        named.append(and_(Member.kind == "group", Member.value.in_(person.groups)))
    query = select(Project.id, Project.name, Member.role).join(Project, Project.id == Member.project_id)
    found: dict[tuple[uuid.UUID, str], list[str]] = {}
    for project_id, name, role in session.execute(query.where(or_(*named)).order_by(Project.name)):
        found.setdefault((project_id, name), []).append(role)
    return found
