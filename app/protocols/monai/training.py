"""Trainings and batches as MONAI Label's clients start, watch and stop them.

A model is trained again as its newest version was, from that version's weights, on the labels that were handed in;
where there are none, on the data of that version. Its clients know one task, so they are shown the newest job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Query, Request
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.admission import datasets as admitted_datasets, jobs as admission
from app.errors import Conflict, InvalidRequest, NotFound
from app.http.callers import Caller, require
from app.http.endpoints import validated
from app.http.resources import Read, ServicesDep, Write
from app.imaging import LabelMap, Pair
from app.protocols.loose_json import body_of, checked
from app.protocols.monai.wire import new_router, written
from app.roles import Principal
from app.schemas.base import ModelRef
from app.schemas.datasets import FileReading
from app.schemas.jobs import PredictSpec, TrainSpec
from app.services import Services
from app.store import labels, models, tables
from app.store.tables import FINISHED, now

router = new_router()

STATUS = {
    "queued": "SUBMITTED",
    "running": "RUNNING",
    "cancelling": "RUNNING",
    "succeeded": "DONE",
    "failed": "ERROR",
    "cancelled": "STOPPED",
    "interrupted": "STOPPED",
}
LINES = 20
"""Of the log of a job, in a task."""
LABELS, BEFORE = "labels", "before"
"""What a model is trained on: the labels that were handed in, or the data of its newest version."""
MOST_LISTED = 100


class TrainParams(BaseModel):
    """What a viewer may set; what it sends besides is passed over."""

    steps: Annotated[int, Field(ge=1)] | None = None
    max_epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    batch: Annotated[int, Field(ge=1, le=256)] | None = None
    train_batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    dataset: Annotated[str, Field(pattern=f"^({LABELS}|{BEFORE})$")] | None = None
    pretrained: bool = True


def described(model: tables.Model, version: tables.ModelVersion) -> dict[str, Any]:
    """How a model can be trained again, as a viewer's form shows it."""
    spec = version.spec
    config = {"steps": spec.get("steps"), "batch": spec.get("batch"), "dataset": [LABELS, BEFORE], "pretrained": True}
    labels_ = version.manifest["classes"][1:]
    return {"description": f"Train {model.name} again, as version {version.number} was", "config": config} | {
        "labels": labels_
    }


def statistics(session: Session, project_id: UUID) -> dict[str, Any]:
    """How the newest training of each model goes."""
    found: dict[str, Any] = {}
    newest = _jobs(project_id, "train").limit(MOST_LISTED)
    for job in session.scalars(newest):
        found.setdefault(str(job.spec.get("model", "")), _progress(session, job))
    return found


def _progress(session: Session, job: tables.Job) -> dict[str, Any]:
    epoch = job.epoch or 0
    total = round(epoch * job.steps / job.step) if job.steps and job.step else epoch
    begun = job.started_at or job.created_at
    lasted = int(((job.finished_at or now()) - begun).total_seconds())
    metrics = (job.result or {}).get("metrics") or {}
    return {
        "epoch": epoch,
        "total_epochs": max(total, epoch),
        "best_metric": metrics.get("dice") or _best_dice(session, job),
        "start_ts": int(begun.timestamp()),
        "total_time" if job.finished_at else "current_time": lasted,
        "train": {"step": job.step or 0, "steps": job.steps or 0, "fraction": job.fraction},
        "eval": metrics,
    }


def _best_dice(session: Session, job: tables.Job) -> float:
    """The best mean Dice of the validations so far; 0 before the first."""
    query = select(tables.JobEvent.data).where(tables.JobEvent.job_id == job.id, tables.JobEvent.event == "metric")
    return max((_dice(data) for data in session.scalars(query)), default=0.0)


def _dice(data: dict[str, Any]) -> float:
    found = data.get("dice", (data.get("metrics") or {}).get("dice"))
    return float(found) if isinstance(found, int | float) else 0.0


def _jobs(project_id: UUID, kind: str) -> Any:
    mine = (tables.Job.project_id == project_id) & (tables.Job.kind == kind)
    return select(tables.Job).where(mine).order_by(tables.Job.id.desc())


def task(session: Session, job: tables.Job) -> dict[str, Any]:
    """A job as MONAI Label shows a task, with the last lines of its log."""
    last = select(tables.JobEvent).where(tables.JobEvent.job_id == job.id, tables.JobEvent.event != "progress")
    events = list(session.scalars(last.order_by(tables.JobEvent.number.desc()).limit(LINES)))[::-1]
    lines = [f"{row.created_at:%H:%M:%S} [{row.event}] {json.dumps(row.data)[:500]}" for row in events]
    if job.error:
        lines.append(str(job.error.get("detail", "")))
    ended = {"end_ts": written(job.finished_at)} if job.finished_at else {}
    return {
        "id": str(job.id),
        "model": job.spec.get("model"),
        "status": STATUS[job.state],
        "request": {"model": job.spec.get("model")},
        "start_ts": written(job.started_at or job.created_at),
        **ended,
        "details": lines,
    }


# Start ---------------------------------------------------------------------------------------------------------------


@router.post("/train/{model}", dependencies=[require("jobs:write", "datasets:write")])
async def train(
    model: ModelRef,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    run_sync_: Annotated[bool, Query(alias="run_sync")] = False,
    enqueue: bool = False,
) -> dict[str, Any]:
    """Train a model again and say where to watch it. Conflict while it is being trained, unless `enqueue`."""
    given = checked(TrainParams, await body_of(request))
    if run_sync_:
        raise InvalidRequest("A training is not waited for. Leave run_sync out and watch GET /monai/train/.")
    start = partial(_start, services, caller, model, given, enqueue, request.scope.get("request_id"))
    return await run_sync(start, limiter=services.dataset_slots)


@router.post("/train/", dependencies=[require("jobs:write", "datasets:write")])
async def train_all(request: Request, caller: Caller, services: ServicesDep, enqueue: bool = False) -> dict[str, Any]:
    """Train the models that the body names, each with parameters of its own, or the newest of the project."""
    sent = await body_of(request)
    named = {name: params for name, params in sent.items() if isinstance(params, dict)}
    names = named or {await run_sync(_newest_trained, services, caller, limiter=services.readers): sent}
    if len(names) > MOST_LISTED:
        raise InvalidRequest(f"The body names {len(names)} models; at most {MOST_LISTED} are trained by one call.")
    request_id, tasks = request.scope.get("request_id"), dict[str, dict[str, Any]]()
    for name, params in names.items():
        start = partial(
            _start, services, caller, validated(ModelRef, name), checked(TrainParams, params), enqueue, request_id
        )
        tasks[name] = {"result": await run_sync(start, limiter=services.dataset_slots), "detail": ""}
    return tasks if named else next(iter(tasks.values()))["result"]


def _newest_trained(services: Services, caller: Principal) -> str:
    query = (
        models.all_of(caller.project_id)
        .join(tables.ModelVersion, tables.ModelVersion.model_id == tables.Model.id)
        .where(tables.ModelVersion.job_id.is_not(None))
        .order_by(tables.ModelVersion.id.desc())
    )
    with services.database.read() as session:
        model = session.scalar(query.limit(1))
    if model is None:
        raise NotFound("No model of this project was trained here yet. Queue its first training: POST /v1/jobs.")
    return model.name


def _start(
    services: Services, caller: Principal, ref: str, given: TrainParams, enqueue: bool, request_id: str | None
) -> dict[str, Any]:
    model, version = services.names.resolve(caller.project_id, ref)
    if version.job_id is None or not version.spec:
        raise InvalidRequest(
            f"{model.name} was imported, so nobody knows how it was trained. Train another: POST /v1/jobs."
        )
    with services.database.read() as session:
        waiting = _jobs(caller.project_id, "train").where(tables.Job.state.not_in(FINISHED))
        busy = next((job for job in session.scalars(waiting) if job.spec.get("model") == model.name), None)
        drawn = _drawn(session, caller)
    if busy is not None and not enqueue:
        raise Conflict(f"{model.name} is being trained by job {busy.id}. Wait for it, stop it, or send enqueue=true.")
    if given.dataset == LABELS and not drawn:
        raise InvalidRequest("No image has a final label yet. Hand labels in first, or train with dataset=before.")
    use_labels = bool(drawn) and given.dataset != BEFORE
    classes = version.manifest["classes"][1:]
    draft = _draft(services, caller, _dataset_name(model.name), drawn, classes) if use_labels else None
    with services.database.write() as session:
        dataset, pairs = version.spec["dataset"], None
        if draft is not None:
            name = _dataset_name(model.name)
            made, _ = admitted_datasets.add(session, caller, name, draft, must_be_new=False)
            dataset, pairs = f"{name}@{made.number}", len(drawn)
        spec = _spec(session, version, model.name, dataset, pairs, given)
        job = admission.submit(session, caller, spec, services.settings, request_id=request_id)
        return task(session, job)


def _dataset_name(model: str) -> str:
    return f"{model[:57]}-labels"


def _spec(
    session: Session, version: tables.ModelVersion, model: str, dataset: str, pairs: int | None, given: TrainParams
) -> TrainSpec:
    """The spec of the training that made a version, on these data, with what the viewer set."""
    before = {name: value for name, value in version.spec.items() if name in TrainSpec.model_fields}
    batch = given.batch or given.train_batch_size or before.get("batch", 4)
    steps = given.steps or before["steps"]
    if given.max_epochs is not None:
        steps = given.max_epochs * max(1, -(-(pairs or _pairs(session, version)) // batch))
    start = {"start_from": f"{model}:{version.number}" if given.pretrained else None}
    return validated(TrainSpec, before | {"dataset": dataset, "model": model, "batch": batch, "steps": steps} | start)


def _pairs(session: Session, version: tables.ModelVersion) -> int:
    data = session.get(tables.DatasetVersion, version.dataset_version_id)
    return int(data.statistics.get("pairs", 1)) if data else 1


Drawn = Sequence[tuple[tables.Image, tables.ImageLabel]]


def _drawn(session: Session, caller: Principal) -> Drawn:
    """Every image of the project with its final label."""
    query = (
        select(tables.Image, tables.ImageLabel)
        .join(tables.ImageLabel, tables.ImageLabel.image_id == tables.Image.id)
        .where(tables.Image.project_id == caller.project_id, tables.ImageLabel.tag == labels.FINAL)
        .order_by(tables.Image.id)
    )
    return [(image, label) for image, label in session.execute(query)]


def _draft(services: Services, caller: Principal, name: str, drawn: Drawn, classes: Sequence[str]) -> Any:
    """A dataset version of drawn labels, counted and stored; Invalid where their names are not those of the model."""
    maps = [label.label_map for _, label in drawn]
    if any(found != maps[0] for found in maps):
        raise Conflict("The labels give their values different names. Hand them in again with one label_info for all.")
    if set(maps[0]) - set(classes):
        raise Conflict(
            f"The labels are called {', '.join(maps[0])} and the classes of the model {', '.join(classes)}. Name them"
            " alike in label_info."
        )
    read = partial(services.blobs.read, caller.project_id)
    pairs = [
        Pair(str(image.id), None, partial(read, image.sha256), partial(read, label.sha256), None)
        for image, label in drawn
    ]
    meaning = {"background": 0} | {name: maps[0].get(name, 0xFFFF - k) for k, name in enumerate(classes)}

    @contextmanager
    def opened() -> Iterator[admitted_datasets.Labelled]:
        yield admitted_datasets.Labelled(pairs, LabelMap.parse(meaning))

    digest = hashlib.sha256("".join(f"{image.sha256}{label.sha256}" for image, label in drawn).encode()).hexdigest()
    ids = {str(image.id): image.id for image, _ in drawn}
    source = admitted_datasets.Source(digest, None, opened, ids, FileReading())
    return admitted_datasets.draft(services, caller.project_id, name, source, must_be_new=False)


# Batches -------------------------------------------------------------------------------------------------------------


@router.post("/batch/infer/{model}", dependencies=[require("jobs:write", "images:read")])
async def batch(
    model: ModelRef, request: Request, caller: Caller, services: ServicesDep, images: str = "unlabeled"
) -> dict[str, Any]:
    """Predict all images, those with a final label, or those without; the masks are stored predictions."""
    await body_of(request)
    if images not in ("all", "labeled", "unlabeled"):
        raise InvalidRequest(f"images is {images[:16]!r}; it can be all, labeled or unlabeled.")
    work = partial(_batch, services, caller, model, images, request.scope.get("request_id"))
    return await run_sync(work, limiter=services.writers)


def _batch(services: Services, caller: Principal, model: str, which: str, request_id: str | None) -> dict[str, Any]:
    with services.database.write() as session:
        everything = select(tables.Image.id).where(tables.Image.project_id == caller.project_id)
        without = set(session.scalars(labels.unlabelled(caller.project_id).with_only_columns(tables.Image.id)))
        wanted = [
            each
            for each in session.scalars(everything.order_by(tables.Image.id))
            if which == "all" or (each in without) == (which == "unlabeled")
        ]
        if not wanted:
            raise InvalidRequest(f"There are no such images ({which}). Upload some first.")
        spec = validated(PredictSpec, {"kind": "predict", "model": model, "images": wanted})
        return task(session, admission.submit(session, caller, spec, services.settings, request_id=request_id))


# Watch and stop ------------------------------------------------------------------------------------------------------


@router.get("/train/", dependencies=[require("jobs:read")], response_model=None)
def train_status(
    caller: Caller,
    session: Read,
    all: bool = False,
    check_if_running: bool = False,
) -> dict[str, Any] | list[dict[str, Any]]:
    """The newest training, or all; NotFound without one, and with `check_if_running` unless it has not finished."""
    return _status(session, caller, "train", all, check_if_running)


@router.get("/batch/infer", dependencies=[require("jobs:read")], response_model=None)
def batch_status(
    caller: Caller,
    session: Read,
    all: bool = False,
    check_if_running: bool = False,
) -> dict[str, Any] | list[dict[str, Any]]:
    """The newest batch, or all; NotFound as for trainings."""
    return _status(session, caller, "predict", all, check_if_running)


def _status(
    session: Session, caller: Principal, kind: str, every: bool, running: bool
) -> dict[str, Any] | list[dict[str, Any]]:
    query = _jobs(caller.project_id, kind)
    if running:
        query = query.where(tables.Job.state.not_in(FINISHED))
    found = [task(session, job) for job in session.scalars(query.limit(MOST_LISTED if every else 1))]
    if not found:
        raise NotFound(f"No {kind} job {'is running' if running else 'was queued yet'}.")
    return found if every else found[0]


@router.delete("/train/", dependencies=[require("jobs:write")])
def stop_training(caller: Caller, session: Write) -> dict[str, Any] | None:
    """Stop the newest training that has not finished; null where there is none."""
    return _stop(session, caller, "train")


@router.delete("/batch/infer", dependencies=[require("jobs:write")])
def stop_batch(caller: Caller, session: Write) -> dict[str, Any] | None:
    """Stop the newest batch that has not finished; null where there is none."""
    return _stop(session, caller, "predict")


def _stop(session: Session, caller: Principal, kind: str) -> dict[str, Any] | None:
    query = _jobs(caller.project_id, kind).where(tables.Job.state.not_in(FINISHED))
    job = session.scalar(query.limit(1))
    return None if job is None else task(session, admission.cancel(session, caller, job.id, keep=False))
