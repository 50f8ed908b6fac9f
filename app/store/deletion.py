"""Deleting objects: what goes along, what must end first, and what stays.

A deletion is worked out before it is carried out, so that a person sees the same list that the request then follows.
Bytes are not deleted here: the sweep collects those that no row names any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, String, delete, exists, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.store import children
from app.store.tables import (
    FINISHED,
    Alias,
    AliasMove,
    Base,
    Checkpoint,
    Dataset,
    DatasetItem,
    DatasetVersion,
    Image,
    ImageLabel,
    Job,
    JobEvent,
    Measurement,
    Model,
    ModelVersion,
    Prediction,
    PredictionEdit,
)

Part = tuple[type[Base], ColumnElement[bool]]
NAMED = 5
"""How many objects of a kind a sentence names before it only counts them."""


@dataclass(frozen=True)
class Deletion:
    """What the deletion of one object takes along; rows are counted by table when it is shown."""

    deed: str
    """What the audit log calls it, such as `image.delete`."""
    object: str
    """The object as the audit log names it: an id or a reference."""
    name: str
    """The object in words, such as `image retina.png`."""
    own: list[Part]
    """The object and what is a part of it, in the order in which rows can be deleted."""
    derived: list[Part] = field(default_factory=list)
    """What was made from it; goes only when asked for, and before `own`."""
    blocked_by: list[str] = field(default_factory=list)
    """What must be ended, moved or deleted first, in sentences."""
    stays: list[str] = field(default_factory=list)
    """What was made from it and is kept all the same, in sentences."""
    found_in: list[str] = field(default_factory=list)
    """Dataset versions that lose a pair, as `name@1`."""


def counted(session: Session, parts: Iterable[Part]) -> dict[str, int]:
    """How many rows of each table would go; tables without one are left out."""
    counts: dict[str, int] = {}
    for table, condition in parts:
        number = session.scalar(select(func.count()).select_from(table).where(condition)) or 0
        if number:
            counts[table.__tablename__] = counts.get(table.__tablename__, 0) + number
    return counts


def carry_out(session: Session, deletion: Deletion, *, derived: bool) -> dict[str, int]:
    """Delete the object, with everything made from it when `derived`; how many rows of each table went.

    Conflict, and nothing is deleted, when something stands in the way or would go without having been asked for.
    """
    if deletion.blocked_by:
        raise Conflict(f"The {deletion.name} cannot be deleted. {' '.join(deletion.blocked_by)}")
    made = counted(session, deletion.derived)
    if made and not derived:
        rows = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in made.items())
        used = f" It is in {', '.join(deletion.found_in[:NAMED])}." if deletion.found_in else ""
        raise Conflict(
            f"The {deletion.name} has {rows} that were made from it.{used} Send `derived=true` to delete these as well."
        )
    gone = counted(session, deletion.derived + deletion.own)
    _note_missing_pairs(session, deletion)
    try:
        with session.begin_nested():
            for table, condition in deletion.derived + deletion.own:
                session.execute(delete(table).where(condition).execution_options(synchronize_session=False))
    except IntegrityError:  # a row that refers to it was written in this very moment
        raise Conflict(f"The {deletion.name} was used while it was being deleted. Try again.") from None
    session.expire_all()
    return gone


def audited(deletion: Deletion, gone: dict[str, int]) -> str:
    """The object and how many rows of each table went with it, as the audit log keeps it."""
    return f"{deletion.object} {json.dumps(gone)}"


# What goes with each kind of object ----------------------------------------------------------------------------------


def of_image(session: Session, row: Image) -> Deletion:
    """An image: its labels, its predictions, their edits and measurements, and the pairs of datasets that show it."""
    predicted = Prediction.image_id == row.id
    versions = select(DatasetItem.version_id).where(DatasetItem.image_id == row.id)
    waiting = _unfinished(
        session,
        row.project_id,
        or_(_mentions(row.id), Job.spec["dataset_version_id"].as_string().in_(_texts(session, versions))),
    )
    pairs: Part = (DatasetItem, DatasetItem.image_id == row.id)
    return Deletion(
        "image.delete",
        str(row.id),
        f"image {row.name}",
        [(Image, Image.id == row.id)],
        [
            *_predictions(predicted, Measurement.image_id == row.id),
            (ImageLabel, ImageLabel.image_id == row.id),
            pairs,
        ],
        waiting,
        [
            f"Model {name}:{number} learnt from a dataset with it; delete that version too if it must not."
            for name, number in _named(session, Model, ModelVersion, ModelVersion.dataset_version_id.in_(versions))
        ],
        [
            f"{name}@{number}"
            for name, number in _named(session, Dataset, DatasetVersion, DatasetVersion.id.in_(versions))
        ],
    )


def of_prediction(session: Session, row: Prediction) -> Deletion:
    """A prediction with its edits and what was measured on it."""
    return Deletion("prediction.delete", str(row.id), f"prediction {row.id}", _predictions(Prediction.id == row.id))


def of_job(session: Session, row: Job) -> Deletion:
    """A finished job with its events, its checkpoints and the jobs that belong to it; predictions and measurements were
    made from it.
    """
    ids = [row.id, *(each.id for each in children.below(session, row))]
    waiting = session.scalar(select(func.count()).where(Job.id.in_(ids[1:]), Job.state.not_in(FINISHED)))
    blocked = [] if row.state in FINISHED else [f"It is {row.state}; cancel it first."]
    blocked += [f"{waiting} jobs that belong to it have not ended yet; try again soon."] if waiting else []
    if row.parent_id is not None:
        blocked.append(f"It belongs to job {row.parent_id}, whose table needs it; delete that job.")
    made = session.execute(
        select(Model.name, ModelVersion.number)
        .join(Model, Model.id == ModelVersion.model_id)
        .where(ModelVersion.job_id == row.id)
    ).all()
    blocked += [f"It made {name}:{number}; delete that version first." for name, number in made]
    return Deletion(
        "job.delete",
        str(row.id),
        f"job {row.id}",
        [
            (JobEvent, JobEvent.job_id.in_(ids)),
            (Checkpoint, Checkpoint.job_id.in_(ids)),
            (Job, Job.id.in_(ids[1:])),
            (Job, Job.id == row.id),
        ],
        _predictions(Prediction.job_id.in_(ids), Measurement.job_id.in_(ids)),
        blocked,
    )


def of_model_version(session: Session, model: Model, row: ModelVersion) -> Deletion:
    """A version of a model; its predictions and figures were made with it."""
    pointing = session.scalars(select(Alias.alias).where(Alias.model_id == model.id, Alias.number == row.number))
    blocked = [f"The alias {alias} points to it; move or remove the alias first." for alias in pointing]
    return Deletion(
        "model.delete",
        f"{model.name}:{row.number}",
        f"model version {model.name}:{row.number}",
        [(ModelVersion, ModelVersion.id == row.id)],
        _predictions(Prediction.model_version_id == row.id, Measurement.model_version_id == row.id),
        blocked + _unfinished(session, row.project_id, _uses_version([row.id])),
    )


def of_model(session: Session, row: Model) -> Deletion:
    """A model: its aliases are a part of it; its versions and what they predicted were made in its name."""
    versions = select(ModelVersion.id).where(ModelVersion.model_id == row.id)
    named = Job.spec["model"].as_string()
    waiting = or_(
        _uses_version(list(session.scalars(versions))),
        named == row.name,
        named.startswith(f"{row.name}:", autoescape=True),
        named.startswith(f"{row.name}@", autoescape=True),
    )
    return Deletion(
        "model.delete",
        row.name,
        f"model {row.name}",
        [
            (Alias, Alias.model_id == row.id),
            (AliasMove, AliasMove.model_id == row.id),
            (Model, Model.id == row.id),
        ],
        [
            *_predictions(Prediction.model_version_id.in_(versions), Measurement.model_version_id.in_(versions)),
            (ModelVersion, ModelVersion.model_id == row.id),
        ],
        _unfinished(session, row.project_id, waiting),
    )


def of_dataset_version(session: Session, dataset: Dataset, row: DatasetVersion) -> Deletion:
    """A version of a dataset with its pairs; kept while a job or a model could not be explained without it."""
    return Deletion(
        "dataset.delete",
        f"{dataset.name}@{row.number}",
        f"dataset version {dataset.name}@{row.number}",
        [(DatasetItem, DatasetItem.version_id == row.id), (DatasetVersion, DatasetVersion.id == row.id)],
        blocked_by=_users(session, dataset, row),
    )


def of_dataset(session: Session, row: Dataset) -> Deletion:
    """A dataset with all its versions; kept while a job or a model could not be explained without one of them."""
    versions = list(session.scalars(select(DatasetVersion).where(DatasetVersion.dataset_id == row.id)))
    return Deletion(
        "dataset.delete",
        row.name,
        f"dataset {row.name}",
        [
            (DatasetItem, DatasetItem.version_id.in_(select(DatasetVersion.id).filter_by(dataset_id=row.id))),
            (DatasetVersion, DatasetVersion.dataset_id == row.id),
            (Dataset, Dataset.id == row.id),
        ],
        blocked_by=[sentence for version in versions for sentence in _users(session, row, version)],
    )


def unfinished_jobs_of_model(session: Session, row: Model) -> list[str]:
    """Sentences about jobs that have not finished and name the model."""
    return of_model(session, row).blocked_by


# Conditions and sentences --------------------------------------------------------------------------------------------


def _predictions(condition: ColumnElement[bool], measured: ColumnElement[bool] | None = None) -> list[Part]:
    ids = select(Prediction.id).where(condition)
    of_them = Measurement.prediction_id.in_(ids)
    return [
        (PredictionEdit, PredictionEdit.prediction_id.in_(ids)),
        (Measurement, of_them if measured is None else or_(of_them, measured)),
        (Prediction, condition),
    ]


def _mentions(row_id: UUID) -> ColumnElement[bool]:
    return Job.spec.cast(String).contains(str(row_id))


def _uses_version(ids: list[UUID]) -> ColumnElement[bool]:
    texts = [str(each) for each in ids]
    return or_(
        Job.spec["model_version_id"].as_string().in_(texts), Job.spec["start_from_version_id"].as_string().in_(texts)
    )


def _texts(session: Session, ids: Any) -> list[str]:
    return [str(each) for each in session.scalars(ids)]


def _unfinished(session: Session, project_id: UUID, condition: ColumnElement[bool]) -> list[str]:
    jobs = session.scalars(
        select(Job).where(Job.project_id == project_id, Job.state.not_in(FINISHED), condition).limit(NAMED)
    )
    return [f"Job {job.id} is {job.state} and needs it; wait for it or cancel it first." for job in jobs]


def _named(
    session: Session,
    table: type[Model | Dataset],
    version: type[ModelVersion | DatasetVersion],
    wanted: ColumnElement[bool],
) -> list[tuple[str, int]]:
    """Name and number of the wanted versions, in their order."""
    query = select(table.name, version.number).select_from(version).join(table).where(wanted)
    return [(name, number) for name, number in session.execute(query.order_by(table.name, version.number))]


def _users(session: Session, dataset: Dataset, row: DatasetVersion) -> list[str]:
    jobs = session.scalar(
        select(func.count()).where(
            Job.project_id == row.project_id, Job.spec["dataset_version_id"].as_string() == str(row.id)
        )
    )
    models = session.scalar(select(func.count()).where(ModelVersion.dataset_version_id == row.id))
    if not jobs and not models:
        return []
    used = f"{dataset.name}@{row.number} is used by {jobs} jobs and {models} model versions"
    return [f"{used}, which could not be explained without it; delete these first."]


def _note_missing_pairs(session: Session, deletion: Deletion) -> None:
    """Say in each dataset version that loses pairs, and stays, that it did: its figures still count them."""
    if any(table is DatasetItem for table, _ in deletion.own):
        return
    for condition in (condition for table, condition in deletion.derived if table is DatasetItem):
        lost = exists().where(DatasetItem.version_id == DatasetVersion.id, condition)
        for version in session.scalars(select(DatasetVersion).where(lost)):
            items = session.scalars(select(DatasetItem).where(DatasetItem.version_id == version.id, condition))
            version.warnings = [
                *version.warnings,
                *(
                    {
                        "code": "pair_deleted",
                        "detail": "Its image was deleted after the version was made; the statistics still count it.",
                        "item": item.name,
                    }
                    for item in items
                ),
            ]
    session.flush()
