"""Deletions: what deleting an object would take along, and deleting it."""

from __future__ import annotations

from typing import Any

from app.admission import deletion
from app.errors import Conflict, NotFound, may_answer
from app.http.callers import Caller, require
from app.http.endpoints import Derived, Id, VersionNumber, noun_router
from app.http.resources import Read, Write
from app.openapi.datasets import DatasetName
from app.openapi.models import ModelName
from app.schemas.deletion import Deletion

router = noun_router("deletions")


def plans(scope: str) -> dict[str, Any]:
    """Options of an endpoint that lists what a deletion would take along."""
    return {"dependencies": [require(scope)], "responses": may_answer(NotFound)}


def deletes(scope: str) -> dict[str, Any]:
    """Options of an endpoint that deletes."""
    return {"status_code": 204, "dependencies": [require(scope)], "responses": may_answer(NotFound, Conflict)}


@router.get("/images/{image_id}/deletion", **plans("images:read"))
def plan_deletion_of_image(image_id: Id, caller: Caller, session: Read) -> Deletion:
    """What deleting an image would take along: its predictions, their measurements, its pairs in datasets."""
    return deletion.describe(session, deletion.image(session, caller, image_id))


@router.delete("/images/{image_id}", **deletes("images:write"))
def delete_image(image_id: Id, caller: Caller, session: Write, derived: Derived = False) -> None:
    """Delete an image, with `derived` also everything that was made from it except trained models.

    The bytes are erased by the next sweep after the grace time of unused bytes.
    """
    deletion.delete(session, caller, deletion.image(session, caller, image_id), derived=derived)


@router.get("/datasets/{name}/versions/{number}/deletion", **plans("datasets:read"))
def plan_deletion_of_dataset_version(
    name: DatasetName, number: VersionNumber, caller: Caller, session: Read
) -> Deletion:
    """What deleting a version would take along, and what it is needed for."""
    return deletion.describe(session, deletion.dataset_version(session, caller, name, number))


@router.delete("/datasets/{name}/versions/{number}", **deletes("datasets:write"))
def delete_dataset_version(name: DatasetName, number: VersionNumber, caller: Caller, session: Write) -> None:
    """Delete a version that no job and no model was made from. Its images stay, and its number is not used again."""
    deletion.delete(session, caller, deletion.dataset_version(session, caller, name, number))


@router.get("/datasets/{name}/deletion", **plans("datasets:read"))
def plan_deletion_of_dataset(name: DatasetName, caller: Caller, session: Read) -> Deletion:
    """What deleting a dataset would take along, and what its versions are needed for."""
    return deletion.describe(session, deletion.dataset(session, caller, name))


@router.delete("/datasets/{name}", **deletes("datasets:write"))
def delete_dataset(name: DatasetName, caller: Caller, session: Write) -> None:
    """Delete a dataset with all its versions, when no job and no model was made from any. Its images stay."""
    deletion.delete(session, caller, deletion.dataset(session, caller, name))


@router.get("/jobs/{job_id}/deletion", **plans("jobs:read"))
def plan_deletion_of_job(job_id: Id, caller: Caller, session: Read) -> Deletion:
    """What deleting a job would take along, and what must be ended or deleted first."""
    return deletion.describe(session, deletion.job(session, caller, job_id))


@router.delete("/jobs/{job_id}", **deletes("jobs:write"))
def delete_job(job_id: Id, caller: Caller, session: Write, derived: Derived = False) -> None:
    """Delete a finished job with its events, log and checkpoints; with `derived` also its predictions and figures."""
    deletion.delete(session, caller, deletion.job(session, caller, job_id), derived=derived)


@router.get("/models/{name}/versions/{number}/deletion", **plans("models:read"))
def plan_deletion_of_model_version(name: ModelName, number: VersionNumber, caller: Caller, session: Read) -> Deletion:
    """What deleting a version would take along, and what must be moved or ended first."""
    return deletion.describe(session, deletion.model_version(session, caller, name, number))


@router.delete("/models/{name}/versions/{number}", **deletes("models:write"))
def delete_model_version(
    name: ModelName, number: VersionNumber, caller: Caller, session: Write, derived: Derived = False
) -> None:
    """Delete a version that no alias points to and no job needs; with `derived` also what it predicted.

    Its number is not used again.
    """
    deletion.delete(session, caller, deletion.model_version(session, caller, name, number), derived=derived)


@router.get("/models/{name}/deletion", **plans("models:read"))
def plan_deletion_of_model(name: ModelName, caller: Caller, session: Read) -> Deletion:
    """What deleting a model would take along, and what must be ended first."""
    return deletion.describe(session, deletion.model(session, caller, name))


@router.delete("/models/{name}", **deletes("models:promote"))
def delete_model(name: ModelName, caller: Caller, session: Write, derived: Derived = False) -> None:
    """Delete a model with its aliases; with `derived` also its versions and what they predicted."""
    deletion.delete(session, caller, deletion.model(session, caller, name), derived=derived)


@router.get("/predictions/{prediction_id}/deletion", **plans("images:read"))
def plan_deletion_of_prediction(prediction_id: Id, caller: Caller, session: Read) -> Deletion:
    """What deleting a stored prediction would take along: its edits and its measurements."""
    return deletion.describe(session, deletion.prediction(session, caller, prediction_id))


@router.delete("/predictions/{prediction_id}", **deletes("images:write"))
def delete_prediction(prediction_id: Id, caller: Caller, session: Write) -> None:
    """Delete a stored prediction with its edits and what was measured on it; the image stays."""
    deletion.delete(session, caller, deletion.prediction(session, caller, prediction_id))
