"""Labels of images: the queue of those to label next, uploads, masks edited by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import imaging
from app.admission import amendments, analyses, edits, references
from app.admission.amendments import Changes
from app.errors import Forbidden, Invalid, NotFound
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.limits import body_up_to
from app.http.resources import Read, ServicesDep
from app.imaging import Header, LabelMap, sniff
from app.imaging.formats import HEAD_BYTES
from app.imaging.masks import class_indexes
from app.pages.forms import sent_file
from app.pages.rendering import Facts, new_router, page, see, uuid_of
from app.representations.images import describe
from app.roles import Principal
from app.services import Services
from app.serving import labelling_order
from app.serving.pipeline import Stop
from app.store import audit, datasets, images, labels, models
from app.store.tables import Dataset, DatasetVersion, Image, ModelVersion
from app.upload import Upload

router = new_router()
MOST_DATASETS = 100
"""Datasets that a form proposes, the newest ones."""
MOST_VERSIONS = 100
"""Model versions that the queue can be ordered by, the newest ones."""
MOST_SHOWN = 24
"""Images of the queue on its page."""
SECONDS = 10.0
"""For how long one click scores images."""


# The queue -----------------------------------------------------------------------------------------------------------


@page(router, "/images/queue", "queue.html", "images:read", "models:read")
def queue(caller: Caller, session: Read, model: str = "", dataset: str = "") -> Facts:
    """Images without a label, those first of which a model's topology is least certain."""
    versions = _versions(session, caller)
    found = next((each for each in versions if each[0] == model), versions[0] if versions and not model else None)
    if model and found is None:
        raise NotFound(f"There is no model {model[:64]!r} here. Choose one of the list.")
    facts: Facts = {"models": [ref for ref, _ in versions], "model": None, "images": [], "count": 0, "scored": 0}
    if found is None:
        return facts | {"datasets": [], "dataset": ""}
    ref, version = found
    candidates = _candidates(session, version)
    scores = labelling_order.known(version, candidates)
    listed = [image for image in candidates if scores.get(image.id, 0.0) is not None]
    listed.sort(key=lambda image: -(scores.get(image.id, -1.0) or 0.0))  # without a score last, the newest first
    places = datasets_for(session, version.manifest, caller.project_id)
    return facts | {
        "model": ref,
        "images": [describe(image).model_dump() | {"score": scores.get(image.id)} for image in listed[:MOST_SHOWN]],
        "count": len(listed),
        "scored": len(scores),
        "candidates": len(candidates),
        "datasets": places,
        "dataset": dataset if dataset in [place["ref"] for place in places] else "",
    }


@router.post("/images/queue", dependencies=[require("images:read", "predict")])
async def score(request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The button that scores images which have no score yet, for some seconds."""
    async with request.form() as form:
        chosen = {name: str(form.get(name) or "") for name in ("model", "dataset")}

    def work(stop: Stop) -> Response:
        _, version = services.names.resolve(caller.project_id, chosen["model"])
        with services.database.read() as session:
            candidates = _candidates(session, version)
        labelling_order.score(services, version, candidates, SECONDS, stop)
        return see(f"/images/queue?{urlencode(chosen)}")

    return await while_connected(request, services, work)


def _versions(session: Session, caller: Principal) -> list[tuple[str, ModelVersion]]:
    found = models.newest_of_project(session, caller.project_id, MOST_VERSIONS)
    return [(f"{name}:{version.number}", version) for name, version in found]


def _candidates(session: Session, version: ModelVersion) -> list[Image]:
    """The newest images without a label that the network may read; one for images reads volumes plane by plane."""
    query = labels.unlabelled(version.project_id).where(Image.dimensions >= version.manifest["dimensions"])
    return list(session.scalars(query.limit(labelling_order.CANDIDATES)))


def datasets_for(session: Session, manifest: Mapping[str, Any], project_id: UUID) -> list[Facts]:
    """The newest versions of datasets of the images and the classes that a model has."""
    newest = (
        select(func.max(DatasetVersion.number))
        .where(DatasetVersion.dataset_id == Dataset.id)
        .correlate(Dataset)
        .scalar_subquery()
    )
    query = (
        select(Dataset.name, DatasetVersion.number, DatasetVersion.classes)
        .join(DatasetVersion, DatasetVersion.dataset_id == Dataset.id)
        .where(Dataset.project_id == project_id, DatasetVersion.number == newest)
        .where(DatasetVersion.dimensions == manifest["dimensions"], DatasetVersion.channels == manifest["channels"])
        .order_by(Dataset.id.desc())
        .limit(MOST_DATASETS)
    )
    return [
        {"ref": f"{name}@{number}", "name": name}
        for name, number, classes in session.execute(query)
        if set(classes[1:]) == set(manifest["classes"][1:])
    ]


# Labels --------------------------------------------------------------------------------------------------------------


@router.post("/images/{image_id}/label", dependencies=[body_up_to("max_upload_bytes"), require("images:write")])
async def upload_label(image_id: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that gives an image the mask that somebody drew, alone or in the next version of a dataset."""
    async with sent_file(request, services) as file:
        work = partial(_uploaded, services, caller, uuid_of(image_id), file)
        made = await run_sync(work, limiter=services.dataset_slots)
    chosen = {name: file.fields.get(name, "") for name in ("model", "dataset")}
    if made:  # the next label goes into the version that this one has made
        name, _, number = made.rpartition("/versions/")
        chosen["dataset"] = f"{name.removeprefix('/datasets/')}@{number}"
    return see(f"/images/queue?{urlencode(chosen)}")


def _uploaded(services: Services, caller: Principal, image_id: UUID, file: Upload) -> str | None:
    ref = file.fields.get("dataset", "")
    with services.database.read() as session:
        image = images.get(session, caller.project_id, image_id)
        if ref:
            name, number = _version_of(ref)
            version = datasets.require_version(session, datasets.require(session, caller.project_id, name), number)
            meaning, classes = LabelMap.parse(version.label_map), version.classes
    header = services.decoders.read_header(services.blobs.read(image.project_id, image.sha256))
    if ref:
        found = class_indexes(services.decoders, file.file, meaning, header, resample=False)
    else:
        _, model = services.names.resolve(caller.project_id, file.fields.get("model", ""))
        classes = model.manifest["classes"]
        mask = imaging.onto(services.decoders.decode_labels(file.file), header, what="label")
        found = references.positions(mask.pixels[0], classes)
    return kept(services, caller, Label(image_id, found, classes, header), ref)


@router.post("/predictions/{prediction_id}/edits/label", dependencies=[require("images:write")])
async def edits_as_label(prediction_id: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that makes the mask as edited the label of its image, and of a dataset's next version."""
    async with request.form() as form:
        ref = str(form.get("dataset") or "")
    work = partial(_edits_kept, services, caller, uuid_of(prediction_id), ref)
    return see(await run_sync(work, limiter=services.dataset_slots))


def _edits_kept(services: Services, caller: Principal, prediction_id: UUID, ref: str) -> str:
    edited = edits.read(services, caller, prediction_id)
    label = Label(edited.row.image_id, edited.mask.labels, edited.mask.classes, edited.header)
    return kept(services, caller, label, ref) or f"/predictions/{prediction_id}"


@dataclass(frozen=True)
class Label:
    """What somebody says is on an image."""

    image_id: UUID
    labels: np.ndarray
    """(...) uint8 position in `classes`, IGNORE where nothing is labelled."""
    classes: Sequence[str]
    place: Header


def kept(services: Services, caller: Principal, label: Label, ref: str) -> str | None:
    """Keep a label as the final one of its image and, where `ref` names the newest version of a dataset, in its next
    version; the address of that.
    """
    rows, values = None, {name: position for position, name in enumerate(label.classes) if position}
    shown = label.labels
    if ref:
        if not caller.may("datasets:write"):
            raise Forbidden("A new version of a dataset needs the scope datasets:write. Keep the label without one.")
        name, number = _version_of(ref)
        with services.database.read() as session:
            version = datasets.require_version(session, datasets.require(session, caller.project_id, name), number)
        values = amendments.plain_values(version)
        shown = amendments.in_values(shown, label.classes, version)
    content, _ = analyses.encoded(services, shown, label.place)
    if ref:
        rows = amendments.amend(services, caller, name, number, Changes(masks={label.image_id: content}))
    sha256, size = services.blobs.put(caller.project_id, content)
    columns = {"sha256": sha256, "bytes": size, "format": sniff(content[:HEAD_BYTES]).name, "label_map": values}
    with services.database.write() as session:
        image = images.get(session, caller.project_id, label.image_id)
        labels.put(session, image, labels.FINAL, **columns, drawn_by=caller.who)
        audit.note(session, caller, "image.label", f"{image.id} {labels.FINAL}")
        return f"/datasets/{name}/versions/{rows(session).number}" if rows else None


def _version_of(ref: str) -> tuple[str, int]:
    name, _, number = ref.partition("@")
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise Invalid(f"The dataset is {ref[:64]!r}; it must be one of the list, such as vessels@1.")
    return name, int(number)
