"""Deleting and renaming what a caller owns, and its line in the audit log."""

from __future__ import annotations

import json

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.roles import Principal
from app.schemas.deletion import Deletion
from app.store import audit, deletion as store
from app.store.tables import Dataset, Model


def describe(session: Session, planned: store.Deletion) -> Deletion:
    """What the deletion would take along, as the API and the pages show it."""
    return Deletion(
        object=planned.name,
        own=store.counted(session, planned.own),
        derived=store.counted(session, planned.derived),
        blocked_by=planned.blocked_by,
        stays=planned.stays,
        found_in=planned.found_in,
    )


def delete(
    session: Session, caller: Principal, planned: store.Deletion, *, what: str, object: object, derived: bool
) -> None:
    """Carry the deletion out and write what went into the audit log; Conflict when something stands in the way.

    what    the deed as the audit log names it, such as `image.delete`
    object  what it was done to, as the audit log names it
    """
    gone = store.carry_out(session, planned, derived=derived)
    audit.note(session, caller, what, f"{object} {json.dumps(gone)}" if derived else object)


def rename(session: Session, caller: Principal, row: Dataset | Model, name: str) -> None:
    """Give a dataset or a model another name; Conflict when it is taken or an unfinished job names the model.

    Finished jobs keep the text they were sent with; they refer to versions by id.
    """
    kind = type(row)
    word = kind.__name__.lower()
    if name == row.name:
        return
    taken = select(kind.id).where(kind.project_id == row.project_id, kind.name == name)
    if session.scalar(taken) is not None:
        raise Conflict(f"There is a {word} named {name} already. Choose another name.")
    if isinstance(row, Model) and (waiting := store.unfinished_jobs_of_model(session, row)):
        raise Conflict(f"The model {row.name} cannot be renamed. {' '.join(waiting)}")
    audit.note(session, caller, f"{word}.rename", f"{row.name} -> {name}")
    row.name = name
    session.flush()
