"""Pages that list what a deletion takes along, and the button that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Form, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app import queue
from app.admission import deletion as admission
from app.http.callers import Caller, require
from app.http.resources import Read, Write
from app.pages.models import number_of
from app.pages.rendering import Facts, new_router, page, see, uuid_of
from app.roles import Principal
from app.store import datasets, deletion, images, models, predictions

router = new_router()
Found = tuple[deletion.Deletion, str, str, str]
"""(what goes along, the deed as the audit log names it, the object as it names it, where to go afterwards)."""


def _image(session: Session, caller: Principal, image_id: str) -> Found:
    row = images.get(session, caller.project_id, uuid_of(image_id))
    return deletion.of_image(session, row), "image.delete", image_id, "/images"


def _prediction(session: Session, caller: Principal, prediction_id: str) -> Found:
    row = predictions.get(session, caller.project_id, uuid_of(prediction_id))
    return deletion.of_prediction(session, row), "prediction.delete", prediction_id, f"/images/{row.image_id}"


def _job(session: Session, caller: Principal, job_id: str) -> Found:
    row = queue.get(session, caller.project_id, uuid_of(job_id))
    return deletion.of_job(session, row), "job.delete", job_id, "/jobs"


def _model_version(session: Session, caller: Principal, name: str, number: str) -> Found:
    model = models.require(session, caller.project_id, name)
    version = models.require_version(session, model, number_of(number))
    return deletion.of_model_version(session, model, version), "model.delete", f"{name}:{number}", "/models"


def _dataset_version(session: Session, caller: Principal, name: str, number: str) -> Found:
    dataset = datasets.require(session, caller.project_id, name)
    version = datasets.require_version(session, dataset, number_of(number))
    return deletion.of_dataset_version(session, dataset, version), "dataset.delete", f"{name}@{number}", "/datasets"


PLACES: tuple[tuple[str, str, Callable[..., Found]], ...] = (
    ("/images/{image_id}", "images:write", _image),
    ("/predictions/{prediction_id}", "images:write", _prediction),
    ("/jobs/{job_id}", "jobs:write", _job),
    ("/models/{name}/versions/{number}", "models:write", _model_version),
    ("/datasets/{name}/versions/{number}", "datasets:write", _dataset_version),
)
"""(address of the object's page, scope, what finds the object)."""


def _serve(address: str, scope: str, find: Callable[..., Found]) -> None:
    @page(router, f"{address}/delete", "delete.html", scope)
    def plan(request: Request, caller: Caller, session: Read) -> Facts:
        planned, _, _, back = find(session, caller, **request.path_params)
        return {"deletion": admission.describe(session, planned), "back": back}

    @router.post(f"{address}/delete", dependencies=[require(scope)])
    def delete(request: Request, caller: Caller, session: Write, derived: Annotated[str, Form()] = "") -> Response:
        planned, what, object_, back = find(session, caller, **request.path_params)
        admission.delete(session, caller, planned, what=what, object=object_, derived=derived == "yes")
        return see(back)


for place in PLACES:
    _serve(*place)
