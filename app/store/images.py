"""Images of a project: rows that name bytes."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from functools import partial
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.store import rows
from app.store.tables import Image

IDS_AT_ONCE = 500
"""Ids in one query; SQLite takes a bounded number of parameters."""


owned = partial(rows.owned, Image)
"""The images of a project."""
get = partial(rows.get, Image)
"""The image of that id in this project, or NotFound."""


def by_id(session: Session, project_id: uuid.UUID, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Image]:
    """The images of a project with these ids; without those that do not exist."""
    found: dict[uuid.UUID, Image] = {}
    wanted = list(dict.fromkeys(ids))
    for start in range(0, len(wanted), IDS_AT_ONCE):
        some = wanted[start : start + IDS_AT_ONCE]
        found |= {row.id: row for row in session.scalars(owned(project_id).where(Image.id.in_(some)))}
    return found


def find(session: Session, project_id: uuid.UUID, sha256: str) -> Image | None:
    """The image with these bytes in this project."""
    return session.scalar(owned(project_id).where(Image.sha256 == sha256))


def add(session: Session, project_id: uuid.UUID, sha256: str, **facts: Any) -> tuple[Image, bool]:
    """The image with these bytes, and whether it is new; its bytes must be stored already."""
    found = find(session, project_id, sha256)
    if found is not None:
        return found, False
    row = Image(project_id=project_id, sha256=sha256, **facts)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # somebody else uploaded the same bytes in this very moment
        return session.execute(owned(project_id).where(Image.sha256 == sha256)).scalar_one(), False
    return row, True
