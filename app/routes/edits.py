"""Endpoints for edits by hand, of stored predictions and of masks that are sent along.

Edits of a stored prediction are kept and can be undone; the mask of the network stays. Of what is sent along nothing
is kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from uuid import UUID

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Query, Request, Response
from sqlalchemy.orm import Session

from app import errors
from app.admission import analyses, edits as admission
from app.admission.analyses import Source
from app.errors import Conflict, may_answer
from app.http.accept import negotiate
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.endpoints import Id, downloads, noun_router, uploads, validated
from app.http.idempotency import Attempt, Once
from app.http.paging import Listing, Page
from app.http.resources import Read, ServicesDep, Write
from app.http.telemetry import server_timing
from app.http.uploads import received_or_json
from app.imaging.foreground import foreground
from app.openapi import edits as texts
from app.openapi.predictions import JSON
from app.representations.edits import LISTED, describe
from app.roles import Principal
from app.schemas.edits import AnalysedEdit, EditOptions, HandEdit, NewEdit, StoredMap
from app.services import Services
from app.serving import edits
from app.serving.answers import NIFTI_GZ, PNG
from app.serving.pipeline import Stop, Stopwatch
from app.store import audit, edits as store, predictions, tables
from app.strict_json import parse

router = noun_router("edits")

CLASSES = ("background", "foreground")
"""Of a map that is sent along."""


# Kept with a prediction ----------------------------------------------------------------------------------------------


@router.post(
    "/predictions/{prediction_id}/edits",
    status_code=201,
    response_model=HandEdit,
    dependencies=[require("images:write")],
    responses=texts.MADE,
)
async def create_edit(
    prediction_id: Id,
    wish: NewEdit,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    attempt: Once,
) -> Response:
    """Connect, cut, fill or remove at a pixel or between two, by the pixels of the network's map that change the least.

    The edit is kept and counted: every class before and after. 422 `nothing_to_edit` says what is at the place instead.
    """
    return await while_connected(request, services, partial(_create, services, caller, prediction_id, wish, attempt))


def _create(
    services: Services, caller: Principal, prediction_id: UUID, wish: NewEdit, attempt: Attempt, stop: Stop
) -> Response:
    digest = hashlib.sha256(wish.model_dump_json().encode()).hexdigest()
    attempt.look(services.database, digest)
    rows = admission.make(services, caller, prediction_id, wish, stop.check)

    def deed(session: Session) -> Response:
        shown = describe(*rows(session))
        return Response(shown.model_dump_json(), 201, {"Location": shown.links["self"]}, JSON)

    return attempt.write(services.database, digest, deed)


@router.get("/predictions/{prediction_id}/edits", dependencies=[require("images:read")], responses=texts.LISTED)
def list_edits(prediction_id: Id, caller: Caller, session: Read, page: Page) -> Listing[HandEdit]:
    """The edits of a prediction, the last one first."""
    row = predictions.get(session, caller.project_id, prediction_id)
    shape = session.get_one(tables.Image, row.image_id).shape
    return page.listing(session, store.owned(row), tables.PredictionEdit.id, lambda edit: describe(edit, shape))


@router.get("/predictions/{prediction_id}/edits/mask", **downloads("images:read", answers=texts.MASK))
def read_edited_mask(prediction_id: Id, caller: Caller, services: ServicesDep) -> Response:
    """The mask of a prediction with its edits applied; without edits, that of the network."""
    kept = admission.read(services, caller, prediction_id)
    shown = kept.mask.labels * np.uint8(255 if len(kept.mask.classes) == 2 else 1)
    content, media_type = analyses.encoded(services, shown, kept.header)
    return Response(content, media_type=media_type, headers={"Cache-Control": "private, no-cache"})


@router.get(
    "/predictions/{prediction_id}/edits/{edit_id:uuid}",
    dependencies=[require("images:read")],
    responses=may_answer(errors.NotFound),
)
def read_edit(prediction_id: Id, edit_id: Id, caller: Caller, session: Read) -> HandEdit:
    """One edit of a prediction."""
    row = predictions.get(session, caller.project_id, prediction_id)
    return describe(store.get(session, row, edit_id), session.get_one(tables.Image, row.image_id).shape)


@router.delete(
    "/predictions/{prediction_id}/edits/{edit_id:uuid}",
    status_code=204,
    dependencies=[require("images:write")],
    responses=may_answer(errors.NotFound, Conflict),
)
def undo_edit(prediction_id: Id, edit_id: Id, caller: Caller, session: Write) -> None:
    """Undo the last edit. 409 for an earlier one: later ones were worked out on what it left."""
    row = predictions.get(session, caller.project_id, prediction_id)
    store.undo(session, row, store.get(session, row, edit_id))
    audit.note(session, caller, "prediction.edit.undo", edit_id)


# Of what is sent along -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A map, and the mask that is edited where it is not the map above the threshold."""

    image: Source
    mask: Source | None


@router.post("/analyses/edits", **uploads(None, "predict", "max_upload_bytes", texts.BODY, texts.ANALYSED))
async def analyse_edit(
    request: Request, caller: Caller, services: ServicesDep, options: Annotated[EditOptions, Query()]
) -> Response:
    """One edit of a mask by its map, worked out and counted as for stored predictions. Nothing is kept.

    The answer has the pixels that change; send the mask after the edit along with the next one.
    """
    accept = request.headers.get("accept")
    async with received_or_json(request, services, files=texts.FILES) as body:
        if isinstance(body, bytes):
            sent = await run_sync(_stored, services, caller, validated(StoredMap, parse(body)))
        else:
            sent = Sent(body["image"].file, body["mask"].file if "mask" in body else None)
        return await while_connected(request, services, partial(_analyse, services, sent, options, accept))


def _stored(services: Services, caller: Principal, named: StoredMap) -> Sent:
    mask = analyses.stored(services, caller, named.mask)[0] if named.mask else None
    return Sent(analyses.stored(services, caller, named.image)[0], mask)


def _analyse(services: Services, sent: Sent, options: EditOptions, accept: str | None, stop: Stop) -> Response:
    phases, at, to = Stopwatch(), _pixel(options.at), options.to and _pixel(options.to)
    with phases("decode"):
        picture = analyses.decoded(services, sent.image)
        form = negotiate(accept, (JSON, NIFTI_GZ if picture.is_volume else PNG))
        mask, values = analyses.mask_and_map(picture, options)
        labels = original = mask.astype(np.uint8)
        if sent.mask is not None:  # what is not 0 in it is foreground
            edited = analyses.decoded_beside(services, sent.mask, picture, "mask", options)
            labels = foreground(edited, 0.0).astype(np.uint8)
    with phases("edit"):
        made = edits.made(
            options.kind,
            at,
            to or None,
            mask=edits.ClassMask(original, labels, CLASSES, options.threshold),
            probability=values[None],
            class_name=None,
            check=stop.check,
        )
    headers = server_timing(phases.spent_ms)
    if form != JSON:
        return Response(analyses.encoded(services, made.labels * np.uint8(255), picture)[0], 200, headers, form)
    shown = AnalysedEdit.of(
        made,
        kind=options.kind,
        at=at,
        to=to or None,
        runs=edits.in_lines(made.runs, picture.shape, LISTED),
        shape=picture.shape,
        threshold=options.threshold,
        label=options.label,
        before=made.before[CLASSES[1]],
        after=made.after[CLASSES[1]],
        timings_ms=phases.spent_ms,
    )
    return Response(shown.model_dump_json(), 200, headers, JSON)


def _pixel(text: str) -> list[int]:
    """Coordinates as they stand in an address: `10,26`."""
    return [int(part) for part in text.split(",")]
