"""Projects, which separate those who share an installation."""

from __future__ import annotations

import secrets
import uuid

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound
from app.store.tables import Project, Secret

DEFAULT = "default"


def visible(only: uuid.UUID | None) -> Select[Project]:
    """That one project, or all of the installation."""
    return select(Project) if only is None else select(Project).where(Project.id == only)


def find(session: Session, name: str) -> Project | None:
    """The project of that name."""
    return session.scalar(select(Project).where(Project.name == name))


def get(session: Session, project_id: uuid.UUID, only: uuid.UUID | None) -> Project:
    """The project of that id among the visible ones, or NotFound."""
    row = session.scalar(visible(only).where(Project.id == project_id))
    if row is None:
        raise NotFound
    return row


def ensure(session: Session, name: str) -> Project:
    """The project of that name, made when it does not exist; two starters may ask at once."""
    found = find(session, name)
    if found is not None:
        return found
    try:
        with session.begin_nested():
            session.add(Project(name=name))
    except IntegrityError:
        pass
    return session.execute(select(Project).where(Project.name == name)).scalar_one()


def create(session: Session, name: str) -> Project:
    """A new project."""
    if find(session, name) is not None:
        raise Conflict(f"There is a project named {name} already. Choose another name.")
    project = Project(name=name)
    session.add(project)
    session.flush()
    return project


def secret(session: Session, name: str) -> bytes:
    """Random bytes that every process of this installation shares, made by whoever asks first."""
    if session.get(Secret, name) is None:
        try:
            with session.begin_nested():
                session.add(Secret(name=name, value=secrets.token_hex(32)))
        except IntegrityError:
            pass
    return bytes.fromhex(session.execute(select(Secret.value).where(Secret.name == name)).scalar_one())
