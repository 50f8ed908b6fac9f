"""Sign-ins by an OpenID provider: states that have come back, and the sessions of people."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.roles import Person
from app.store.tables import PersonSession, UsedState, now


def use(session: Session, state: str, until: datetime) -> bool:
    """Note that a state has come back; False when it had before. Those that are too old by now are forgotten."""
    session.execute(delete(UsedState).where(UsedState.until < now()))
    try:
        with session.begin_nested():
            session.add(UsedState(state=state, until=until))
    except IntegrityError:
        return False
    return True


def begin(session: Session, project_id: uuid.UUID, person: Person, until: datetime) -> PersonSession:
    """A session of a person in a project; sessions that have ended by now are forgotten."""
    session.execute(delete(PersonSession).where(PersonSession.until < now()))
    row = PersonSession(
        project_id=project_id, subject=person.subject, email=person.email, groups=list(person.groups), until=until
    )
    session.add(row)
    session.flush()
    return row


def find(session: Session, session_id: uuid.UUID) -> tuple[PersonSession, Person] | None:
    """A session that goes on, and whose it is."""
    row = session.get(PersonSession, session_id)
    if row is None or row.until <= now():
        return None
    return row, Person(row.subject, row.email, tuple(row.groups))


def end(session: Session, session_id: uuid.UUID) -> None:
    """End a session now; doing it twice changes nothing."""
    session.execute(delete(PersonSession).where(PersonSession.id == session_id))
