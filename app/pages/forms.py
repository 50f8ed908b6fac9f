"""Forms that bring an image, a mask or a dataset, or ask a model.

They go the way of the API from there on.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Annotated, Any, BinaryIO, cast
from uuid import UUID

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from app.admission import analyses, datasets, edits, images, networks, predictions, references
from app.errors import Invalid, Problem
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.endpoints import validated
from app.http.limits import body_up_to
from app.http.resources import ServicesDep, Write
from app.http.sessions import CSRF_FIELD
from app.imaging import door
from app.pages.models import number_of
from app.pages.rendering import Visitor, new_router, render, see, uuid_of, visitor_of
from app.roles import Principal
from app.schemas.base import Name, Spacing
from app.schemas.datasets import FileReading, LabelMap
from app.schemas.edits import NewEdit
from app.schemas.predictions import PredictOptions
from app.services import Services
from app.serving.pipeline import Stop
from app.store import audit, edits as edit_rows, images as stored_images, predictions as stored_predictions
from app.store.tables import Image
from app.strict_json import parse
from app.upload import Upload, label

router = new_router()

MOST_SHOWN = 200
"""Pairs and files that a page lists."""


@router.post("/images", dependencies=[body_up_to("max_upload_bytes"), require("images:write")])
async def upload(request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that stores one image or several; those before one that is refused are kept."""
    async with request.form() as form:
        files = [file for file in form.getlist("file") if isinstance(file, UploadFile) and file.size]
        if not files:
            raise Invalid("The form has no file. Choose one, then send it again.")
        text = str(form.get("spacing_mm", "")).strip()
        spacing_mm = validated(Spacing, datasets.reading("spacing_mm", text), "spacing_mm") if text else None
        for number, file in enumerate(files, start=1):
            try:
                async with _upload_of(services, file, {}) as sent:
                    picture = await run_sync(services.decoders.decode, sent.file, limiter=services.decode_slots)
                    picture = await run_sync(images.known, services, caller, sent.sha256, picture, spacing_mm)
                    image_id = await run_sync(_keep, services, caller, sent, images.columns(picture, sent))
            except Problem as problem:
                if len(files) > 1:
                    problem.detail = f"Image {number} of {len(files)}, {label(file.filename)}: {problem.detail}"
                raise
    return see(f"/images/{image_id}" if len(files) == 1 else "/images")


def _keep(services: Services, caller: Principal, file: Upload, facts: dict[str, Any]) -> UUID:
    services.blobs.put_file(caller.project_id, file.file)
    with services.database.write() as session:
        return images.add(session, caller, file.sha256, facts)[0].id


@router.post(
    "/models/{name}/versions/{number}/try",
    dependencies=[body_up_to("max_upload_bytes"), require("predict", "images:write")],
)
async def try_it(name: str, number: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that asks a model version about an image and stores the answer."""
    async with sent_file(request, services) as file:
        options = _options(file.fields)
        work = partial(_predict, services, caller, f"{name}:{number_of(number)}", options, file)
        return await while_connected(request, services, work)


def _predict(
    services: Services, caller: Principal, ref: str, options: PredictOptions, file: Upload, stop: Stop
) -> Response:
    _, version = services.names.resolve(caller.project_id, ref)
    with predictions.predicted(services, caller, version, options, file, stop) as (answer, _):
        pass  # nothing is encoded for this answer: its page shows what is stored
    rows = predictions.keep(services, caller, version, file, answer)
    with services.database.write() as session:
        return see(f"/predictions/{rows(session).id}")


@router.post("/images/{image_id}/predict", dependencies=[require("predict", "images:write")])
async def predict_stored(image_id: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that asks a model version about a stored image and stores the answer."""
    async with request.form() as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
    options = _options(fields)
    image = await run_sync(_stored, services, caller, uuid_of(image_id))

    def work(stop: Stop) -> Response:
        with services.blobs.open(caller.project_id, image.sha256) as file:
            upload = Upload(cast(BinaryIO, file), image.sha256, image.bytes, image.name)
            return _predict(services, caller, fields.get("model", ""), options, upload, stop)

    return await while_connected(request, services, work)


def _stored(services: Services, caller: Principal, image_id: UUID) -> Image:
    with services.database.read() as session:
        return stored_images.get(session, caller.project_id, image_id)


@router.post(
    "/predictions/{prediction_id}/reference", dependencies=[body_up_to("max_upload_bytes"), require("images:write")]
)
async def reference(prediction_id: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that gives a prediction the mask it is measured against."""
    async with sent_file(request, services) as file:
        await run_sync(_measured, services, caller, uuid_of(prediction_id), file, limiter=services.decode_slots)
    return see(f"/predictions/{prediction_id}")


def _measured(services: Services, caller: Principal, prediction_id: UUID, file: Upload) -> None:
    rows = references.measure(services, caller, prediction_id, file)
    with services.database.write() as session:
        rows(session)


@router.post("/predictions/{prediction_id}/edits", dependencies=[require("images:write")])
async def edit(prediction_id: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that edits the mask of a prediction by hand."""
    async with request.form() as form:
        fields = {name: value.strip() for name, value in form.items() if isinstance(value, str)}
    wish = validated(
        NewEdit,
        {
            "kind": fields.get("kind"),
            "at": _place(fields.get("at", "")),
            "to": _place(fields["to"]) if fields.get("to") else None,
            "class_name": fields.get("class_name") or None,
        },
    )
    made = partial(_edited, services, caller, uuid_of(prediction_id), wish)
    return await while_connected(request, services, made)


def _edited(services: Services, caller: Principal, prediction_id: UUID, wish: NewEdit, stop: Stop) -> Response:
    rows = edits.make(services, caller, prediction_id, wish, stop.check)
    with services.database.write() as session:
        rows(session)
    return see(f"/predictions/{prediction_id}")


def _place(text: str) -> list[int]:
    """`row, column` or `plane, row, column` as a person writes it."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isascii() and part.isdigit() and len(part) < 11 for part in parts):
        raise Invalid(f"The place is {text[:32]!r}; write it as row and column, such as 83, 513.")
    return [int(part) for part in parts]


@router.post("/predictions/{prediction_id}/edits/{edit_id}/undo", dependencies=[require("images:write")])
def undo(prediction_id: str, edit_id: str, caller: Caller, session: Write) -> Response:
    """The button that undoes the last edit."""
    row = stored_predictions.get(session, caller.project_id, uuid_of(prediction_id))
    edit_rows.undo(session, row, edit_rows.get(session, row, uuid_of(edit_id)))
    audit.note(session, caller, "prediction.edit.undo", edit_id)
    return see(f"/predictions/{prediction_id}")


@router.post("/predictions/{prediction_id}/edits/reference", dependencies=[require("images:write")])
async def edits_as_reference(prediction_id: str, caller: Caller, services: ServicesDep) -> Response:
    """The button that makes the mask as edited the reference, which the next training can use."""
    await run_sync(_kept_as_reference, services, caller, uuid_of(prediction_id), limiter=services.decode_slots)
    return see(f"/predictions/{prediction_id}")


def _kept_as_reference(services: Services, caller: Principal, prediction_id: UUID) -> None:
    kept = edits.read(services, caller, prediction_id)
    shown = kept.mask.labels * np.uint8(255 if len(kept.mask.classes) == 2 else 1)
    content, _ = analyses.encoded(services, shown, kept.header)
    sent = Upload(io.BytesIO(content), hashlib.sha256(content).hexdigest(), len(content), None)
    _measured(services, caller, prediction_id, sent)


@router.post("/datasets", dependencies=[body_up_to("max_dataset_bytes"), require("datasets:write")])
async def upload_dataset(request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that stores an archive of labelled images as a new dataset, or as the next version of one."""
    async with sent_file(request, services, images=False) as file:
        name = validated(Name, file.fields.get("name", "").strip(), "name")
        text = file.fields.get("label_map", "").strip()
        label_map = validated(LabelMap, parse(text.encode()), "label_map") if text else None
        said = {field: file.fields.get(field, "").strip() for field in ("mask_threshold", "spacing_mm", "pairing")}
        written = {field: datasets.reading(field, text) for field, text in said.items() if text}
        masks = validated(FileReading, written)
        source = datasets.from_archive(file, label_map, masks, services)
        number = await run_sync(_kept, services, caller, name, source, limiter=services.dataset_slots)
    return see(f"/datasets/{name}/versions/{number}")


@router.post("/datasets/pairing", dependencies=[body_up_to("max_dataset_bytes"), require("datasets:write")])
async def show_pairing(
    request: Request, caller: Caller, services: ServicesDep, visitor: Annotated[Visitor, Depends(visitor_of)]
) -> Response:
    """The button that shows which file of an archive would be the mask of which."""
    async with sent_file(request, services, images=False) as file:
        found = await run_sync(datasets.shown_pairing, file, services, limiter=services.dataset_slots)
    facts = found.model_dump() | {"file": file.name or "the archive", "most": MOST_SHOWN}
    return render(request, "pairing.html", facts, visitor=visitor, place="/datasets")


def _kept(services: Services, caller: Principal, name: str, source: datasets.Source) -> int:
    ready = datasets.draft(services, caller.project_id, name, source, must_be_new=False)
    with services.database.write() as session:
        return datasets.add(session, caller, name, ready, must_be_new=False)[0].number


@router.post("/models", dependencies=[body_up_to("max_model_bytes"), require("models:write")])
async def import_model(request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that imports a network that was trained elsewhere as the next version of a model."""
    async with sent_file(request, services, images=False) as file:
        name = validated(Name, file.fields.get("name", "").strip(), "name")
        number = await run_sync(_imported, services, caller, name, file, limiter=services.dataset_slots)
    return see(f"/models/{name}/versions/{number}")


def _imported(services: Services, caller: Principal, name: str, file: Upload) -> int:
    with networks.admitted(file.file, services.settings) as network:
        onnx = services.blobs.put_file(caller.project_id, network.file)
    with services.database.write() as session:
        return networks.register(session, caller, name, network.manifest, onnx)[0].number


@asynccontextmanager
async def sent_file(request: Request, services: Services, *, images: bool = True) -> AsyncIterator[Upload]:
    """The file of the form and its other fields; the caller's token has been looked at by now.

    images  whether it is an image, which leaves its identities at the door
    """
    async with request.form() as form:
        file = form.get("file")
        if not isinstance(file, UploadFile) or not file.size:
            raise Invalid("The form has no file. Choose one, then send it again.")
        fields = {name: value for name, value in form.items() if isinstance(value, str) and name != CSRF_FIELD}
        async with _upload_of(services, file, fields, images=images) as sent:
            yield sent


@asynccontextmanager
async def _upload_of(
    services: Services, file: UploadFile, fields: dict[str, str], *, images: bool = True
) -> AsyncIterator[Upload]:
    # typeshed's BinaryIO lacks the `readinto` that every binary file has.
    digest = await run_sync(hashlib.file_digest, file.file, "sha256")  # type: ignore[arg-type]
    await file.seek(0)
    sent = Upload(file.file, digest.hexdigest(), file.size or 0, label(file.filename), fields)
    if not images:
        yield sent
        return
    found, _ = await run_sync(door.admitted, services.decoders, services.settings, sent)
    with closing(found.file):
        yield found


def _options(fields: Mapping[str, str]) -> PredictOptions:
    """What a form asks for; fields that are left empty ask for nothing."""
    return PredictOptions(
        threshold=_threshold(fields.get("threshold")),
        expect=fields.get("expect", "").strip()[:2048] or None,
        repair=fields.get("repair") == "yes",
        topology=True,
        store=True,
    )


def _threshold(text: str | None) -> float | None:
    if not text:
        return None
    try:
        return PredictOptions(threshold=text).threshold  # a form sends text
    except ValidationError:
        raise Invalid(
            f"The threshold is {text[:32]!r}; it must be a number between 0 and 1. Write it like 0.5."
        ) from None
