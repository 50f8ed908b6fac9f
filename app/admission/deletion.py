"""Deleting and renaming what a caller owns, and its line in the audit log."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import queue
from app.errors import Conflict
from app.roles import Principal
from app.schemas.deletion import Deletion
from app.store import audit, datasets, deletion as store, images, models, predictions
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


def delete(session: Session, caller: Principal, planned: store.Deletion, *, derived: bool = False) -> None:
    """Carry the deletion out and write what went into the audit log; Conflict when something stands in the way."""
    gone = store.carry_out(session, planned, derived=derived)
    audit.note(session, caller, planned.deed, store.audited(planned, gone) if derived else planned.object)


# What goes with an object of the caller's project; NotFound when there is none of that name or id ---------------------


def image(session: Session, caller: Principal, image_id: UUID) -> store.Deletion:
    """With an image."""
    return store.of_image(session, images.get(session, caller.project_id, image_id))


def prediction(session: Session, caller: Principal, prediction_id: UUID) -> store.Deletion:
    """With a stored prediction."""
    return store.of_prediction(session, predictions.get(session, caller.project_id, prediction_id))


def job(session: Session, caller: Principal, job_id: UUID) -> store.Deletion:
    """With a job."""
    return store.of_job(session, queue.get(session, caller.project_id, job_id))


def model(session: Session, caller: Principal, name: str) -> store.Deletion:
    """With a model."""
    return store.of_model(session, models.require(session, caller.project_id, name))


def model_version(session: Session, caller: Principal, name: str, number: int) -> store.Deletion:
    """With a version of a model."""
    row = models.require(session, caller.project_id, name)
    return store.of_model_version(session, row, models.require_version(session, row, number))


def dataset(session: Session, caller: Principal, name: str) -> store.Deletion:
    """With a dataset."""
    return store.of_dataset(session, datasets.require(session, caller.project_id, name))


def dataset_version(session: Session, caller: Principal, name: str, number: int) -> store.Deletion:
    """With a version of a dataset."""
    row = datasets.require(session, caller.project_id, name)
    return store.of_dataset_version(session, row, datasets.require_version(session, row, number))


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
