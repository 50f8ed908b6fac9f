"""Rows of edits by hand; each changes the mask that the rows before it left."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound
from app.store.tables import Prediction, PredictionEdit

MOST = 1000
"""Edits of one prediction; each is applied again whenever the mask is read."""


def owned(prediction: Prediction) -> Select[PredictionEdit]:
    """The edits of a prediction."""
    return select(PredictionEdit).where(
        PredictionEdit.project_id == prediction.project_id, PredictionEdit.prediction_id == prediction.id
    )


def in_order(session: Session, prediction: Prediction) -> list[PredictionEdit]:
    """The edits of a prediction in the order in which they were made."""
    return list(session.scalars(owned(prediction).order_by(PredictionEdit.number)))


def count(session: Session, prediction: Prediction) -> int:
    """How many edits a prediction has."""
    return session.scalar(select(func.count()).select_from(owned(prediction).subquery())) or 0


def get(session: Session, prediction: Prediction, edit_id: UUID) -> PredictionEdit:
    """One edit of a prediction, or NotFound."""
    row = session.scalar(owned(prediction).where(PredictionEdit.id == edit_id))
    if row is None:
        raise NotFound("This prediction has no such edit; it may have been undone.")
    return row


def add(session: Session, prediction: Prediction, *, number: int, **columns: Any) -> PredictionEdit:
    """A new last edit. `number` is one more than that of the last edit it was worked out on.

    Raises Conflict where another edit was made or undone since.
    """
    if number > MOST:
        raise Conflict(f"This prediction has {MOST} edits, which is the most. Undo some first.")
    if _last(session, prediction) != number - 1:
        raise Conflict("The mask was edited by somebody else meanwhile. Look at it again, then repeat the edit.")
    row = PredictionEdit(project_id=prediction.project_id, prediction_id=prediction.id, number=number, **columns)
    session.add(row)
    session.flush()
    return row


def undo(session: Session, prediction: Prediction, row: PredictionEdit) -> None:
    """Remove an edit; Conflict unless it is the last one, on which no other was worked out."""
    later = _last(session, prediction) - row.number
    if later:
        raise Conflict(f"{later} later edits were made on top of this one. Undo those first, the last one first.")
    session.delete(row)
    session.flush()


def _last(session: Session, prediction: Prediction) -> int:
    """The number of the last edit, 0 without one; until the transaction ends nobody else makes or undoes one."""
    session.execute(select(Prediction.id).where(Prediction.id == prediction.id).with_for_update())
    query = select(func.max(PredictionEdit.number)).where(PredictionEdit.prediction_id == prediction.id)
    return session.scalar(query) or 0
