"""Endpoints for predictions: an image in; mask, probability, NIfTI or topology report out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from anyio.to_thread import run_sync
from fastapi import Path, Query, Request, Response
from sqlalchemy.orm import Session

from app import errors
from app.admission import predictions as admission, references
from app.errors import Forbidden, NotFound, may_answer
from app.http.accept import Prefer, negotiate, respond_async
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.downloads import download
from app.http.endpoints import Id, downloads, noun_router, uploads, validated
from app.http.finding import Wanted, finding
from app.http.idempotency import Attempt, Once
from app.http.paging import Listing, Page, Together
from app.http.resources import BlobsDep, Read, ServicesDep
from app.http.telemetry import server_timing
from app.http.uploads import ANY, received, received_or_json
from app.imaging import Header
from app.openapi import images as image_texts, predictions as texts
from app.openapi.analyses import GRAPHML
from app.openapi.predictions import JSON
from app.representations import jobs as job_shapes
from app.representations.predictions import (
    describe,
    describe_all,
    describe_source,
    describe_unstored,
    expectation,
    repair,
)
from app.roles import Principal
from app.schemas.base import ModelRef
from app.schemas.predictions import Prediction, PredictOptions, ReferenceImage
from app.services import Services
from app.serving import analysis, segmentation_objects
from app.serving.answers import EXTENSIONS, MIXED, NIFTI_GZ, NRRD, PLACED, PNG, REAL, TIFF, Artifact
from app.serving.contract import Manifest
from app.serving.pipeline import Stop
from app.serving.prediction import Answer
from app.serving.registry import read_manifest
from app.serving.segmentation_objects import DICOM
from app.store import models, predictions as store
from app.store.finding import PREDICTIONS
from app.store.tables import ModelVersion
from app.strict_json import parse
from app.upload import Upload

router = noun_router("predictions")

GRAPHS = {"skeleton.json": JSON, "skeleton.graphml": GRAPHML}
"""Files that are made when somebody asks for them."""

Ref = Annotated[
    ModelRef, Path(description="`name` (newest version), `name@alias` or `name:3`.", examples=["vessels@champion"])
]


@dataclass(frozen=True)
class PredictRequest:
    """One request to predict, once its bytes are here."""

    services: Services
    caller: Principal
    ref: str
    options: PredictOptions
    accept: str | None
    upload: Upload
    attempt: Attempt


@router.post("/models/{ref}/predict", **uploads(None, "predict", "max_upload_bytes", image_texts.BODY, texts.PREDICTED))
async def predict(
    ref: Ref,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    attempt: Once,
    options: Annotated[PredictOptions, Query()],
    prefer: Prefer = None,
) -> Response:
    """Segment one image. `Accept` chooses the form of the answer: image/png (default), image/tiff, application/gzip,
    application/json, or multipart/mixed: the JSON and the mask in one answer; of a DICOM image also application/dicom,
    a segmentation object that refers to it.

    With `Prefer: respond-async` the image is stored, a job predicts it, and the answer is 202 with the job's Location.
    """
    later = respond_async(prefer)
    if (options.store or later) and not caller.may("images:write"):
        what = "Prefer: respond-async" if later else "store=true"
        raise Forbidden(
            f"{what} keeps the image, which needs the scope images:write. Leave it out, or use a key that has it."
        )
    async with received(request, services) as upload:
        asked = PredictRequest(services, caller, ref, options, request.headers.get("accept"), upload, attempt)
        if later:
            queued = partial(respond_later, asked, request.scope.get("request_id"))
            return await run_sync(queued, limiter=services.decode_slots)
        return await while_connected(request, services, partial(respond, asked))


def respond(asked: PredictRequest, stop: Stop) -> Response:
    """Everything between the bytes of the request and the bytes of the answer, in one thread."""
    started, services, options, upload = time.perf_counter(), asked.services, asked.options, asked.upload
    model, version = services.names.resolve(asked.caller.project_id, asked.ref)
    if options.store:
        asked.attempt.look(services.database, upload.sha256)

    def choose(header: Header, manifest: Manifest) -> str:
        return negotiate(asked.accept, offers(header, options, manifest))

    with (
        admission.predicted(services, asked.caller, version, options, upload, stop, choose) as (answer, form),
        answer.phases("encode"),
    ):
        ref = f"{model.name}:{version.number}"
        artifact = None if form == JSON else _artifact(asked, ref, version, answer, form)
    headers = _headers(ref, options.variant, answer)
    if options.store:
        rows = admission.keep(services, asked.caller, version, upload, answer)

        def deed(session: Session) -> Response:
            shown = describe(session, rows(session))
            return _response(answer, form, artifact, shown, headers | {"Location": shown.links["self"]}, 201)

        response = asked.attempt.write(services.database, upload.sha256, deed)
    else:
        response = _response(answer, form, artifact, describe_unstored(model, version, answer), headers)
    response.headers.update(server_timing(answer.timings_ms | {"total": (time.perf_counter() - started) * 1000}))
    return response


def respond_later(asked: PredictRequest, request_id: str | None) -> Response:
    """Store the image, queue its job, and say where to watch it."""
    services, digest = asked.services, asked.upload.sha256
    _, version = services.names.resolve(asked.caller.project_id, asked.ref)
    asked.attempt.look(services.database, digest)
    rows = admission.later(services, asked.caller, version, asked.options, asked.upload, request_id=request_id)

    def deed(session: Session) -> Response:
        shown = job_shapes.describe(session, rows(session))
        headers = {"Location": shown.links["self"], "Retry-After": "1"}
        headers |= {"Preference-Applied": "respond-async", "Vary": "Prefer"}
        return Response(shown.model_dump_json(), 202, headers, JSON)

    return asked.attempt.write(services.database, digest, deed)


def offers(header: Header, options: PredictOptions, manifest: Manifest) -> Sequence[str]:
    """The forms in which an image can be answered, the usual one first."""
    if options.artifact == "report":
        return (JSON, DICOM) if header.is_dicom else (JSON,)
    extra = (DICOM,) if header.is_dicom and options.artifact in (None, "mask", "skeleton") else ()
    if header.is_volume:
        return (NIFTI_GZ, NRRD, JSON, MIXED, *extra)
    flat: tuple[str, ...] = (PNG, TIFF, JSON, MIXED)
    if options.artifact in ("probability", "probability_skeleton"):
        flat = (TIFF, PNG, JSON, MIXED) if manifest.outputs == 1 else (TIFF, JSON, MIXED)
    elif options.artifact in ("mask", "skeleton", "simple_points"):
        flat = (PNG, JSON, MIXED)
    return (*flat, *extra) if header.affine is None else (*flat, NIFTI_GZ, NRRD, *extra)


def _artifact(asked: PredictRequest, ref: str, version: ModelVersion, answer: Answer, form: str) -> Artifact:
    options = asked.options
    usual = "probability" if form == TIFF else "skeleton" if options.skeleton else "mask"
    name = options.artifact or usual
    if form == MIXED:  # nothing is lost: float32 where the artifact is, and the grid where the image has one
        form = NIFTI_GZ if name in REAL or answer.picture.affine is not None else PNG
    if form == DICOM:
        decides = options.model_dump(exclude={"store", "topology", "margins", "segmentation"}, exclude_none=True)
        by = segmentation_objects.author(ref, read_manifest(version), decides)
        if name == "report":
            return segmentation_objects.report(answer, asked.upload.file, by)
        kind = options.segmentation or "binary"
        return segmentation_objects.artifact(name, answer.segmentation, asked.upload.file, by, kind)
    return answer.artifact(name, form, asked.services.settings.png_level)


def _headers(ref: str, variant: str | None, answer: Answer) -> dict[str, str]:
    """What every answer says in its headers, whatever its form."""
    headers = {"Toposerve-Model": ref, "Vary": "Accept"}
    if variant:
        headers["Toposerve-Variant"] = variant
    if answer.segmentation.conversion:
        headers["Toposerve-Conversion"] = answer.segmentation.conversion
    if expected := expectation(answer.report):
        headers["Toposerve-Expectation"] = "satisfied" if expected.satisfied else "violated"
    if repaired := repair(answer.report):
        headers["Toposerve-Edits"] = str(repaired.edit_count)
    return headers


def _response(
    answer: Answer, form: str, artifact: Artifact | None, shown: Prediction, headers: dict[str, str], status: int = 200
) -> Response:
    if artifact is None:
        return Response(shown.model_dump_json(), status, headers, JSON)
    if form == MIXED:
        boundary = f"toposerve-{uuid4().hex}"
        parts = {
            "report": (JSON, shown.model_dump_json().encode()),
            artifact.name: (artifact.media_type, artifact.content),
        }
        return Response(_mixed(parts, boundary), status, headers, f"{MIXED}; boundary={boundary}")
    if answer.report is not None:
        numbers = {name: _numbers(facts) for name, facts in answer.report.items()}
        headers["Toposerve-Topology"] = json.dumps(numbers, separators=(",", ":"))
    if artifact.media_type in (*PLACED, DICOM):
        suffix = ".dcm" if artifact.media_type == DICOM else EXTENSIONS[artifact.media_type]
        headers["Content-Disposition"] = f'attachment; filename="{artifact.name}{suffix}"'
    return Response(artifact.content, status, headers, artifact.media_type)


def _mixed(parts: dict[str, tuple[str, bytes]], boundary: str) -> bytes:
    """The body of a multipart answer (RFC 2046) of these named parts, each its media type and its bytes."""
    pieces = [
        f'--{boundary}\r\nContent-Disposition: inline; name="{name}"\r\nContent-Type: {media_type}\r\n\r\n'.encode()
        + content
        for name, (media_type, content) in parts.items()
    ]
    return b"\r\n".join([*pieces, f"--{boundary}--\r\n".encode()])


def _numbers(facts: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in facts.items() if name in ("beta0", "beta1", "beta2", "euler")}


# Stored predictions -------------------------------------------------------------------------------------------------


@router.get("/predictions", dependencies=[require("images:read")], responses=texts.LISTED)
def list_predictions(
    caller: Caller,
    session: Read,
    page: Page,
    wanted: Annotated[Wanted, finding(PREDICTIONS.without("model"))],
    model: Annotated[
        ModelRef | None, Query(description="Only those of this model version: `vessels:3`, `vessels@champion`.")
    ] = None,
    image: Annotated[UUID | None, Query(description="Only those of this image.")] = None,
    job: Annotated[UUID | None, Query(description="Only those of this job.")] = None,
) -> Listing[Prediction]:
    """The stored predictions of this project, newest first or in another order, all or those that fit."""
    version = models.resolve(session, caller.project_id, model)[1] if model else None
    query = store.owned(caller.project_id, model_version_id=version.id if version else None, image_id=image, job_id=job)
    return page.found(session, query, wanted, Together(lambda rows: describe_all(session, rows)))


@router.get(
    "/predictions/{prediction_id}", dependencies=[require("images:read")], responses=may_answer(errors.NotFound)
)
def read_prediction(prediction_id: Id, caller: Caller, session: Read) -> Prediction:
    """A stored prediction: its topology, its timings, its files, and how far it is from its reference."""
    return describe(session, store.get(session, caller.project_id, prediction_id))


@router.get("/predictions/{prediction_id}/{file}", **downloads("images:read", answers=texts.FILES))
def read_file(
    prediction_id: Id,
    file: Annotated[
        str,
        Path(
            max_length=64,
            description=(
                "mask.png, skeleton.png, simple_points.png, probability.tiff, uncertainty.png; of a volume .nii.gz;"
                " of a DICOM image mask.dcm, a segmentation object that refers to it, and report.dcm, a structured"
                " report of what was counted;"
                " difference.png when there is a reference; skeleton.json and skeleton.graphml: the graph of it."
            ),
            examples=["mask.png"],
        ),
    ],
    request: Request,
    caller: Caller,
    session: Read,
    blobs: BlobsDep,
    services: ServicesDep,
    class_name: Annotated[
        str | None, Query(max_length=64, description="Class of the skeleton's graph; default is all foreground.")
    ] = None,
    segmentation: Annotated[
        Literal["binary", "labelmap"] | None, Query(description="Kind of `mask.dcm`; default is binary.")
    ] = None,
) -> Response:
    """A file of a stored prediction.

    The graph of the skeleton has its nodes, and its branches with length and mean width, in mm where the spacing is
    known. difference.png is white where prediction and reference agree, orange where only the prediction has
    foreground, blue where only the reference has.
    """
    row = store.get(session, caller.project_id, prediction_id)
    files = {name + EXTENSIONS[each["media_type"]]: each for name, each in row.artifacts.items()}
    if file in files:
        found = files[file]
        name = f"{describe_source(session, row)}.{file}"
        return download(
            request, blobs, row.project_id, found["sha256"], found["bytes"], media_type=found["media_type"], name=name
        )
    if file in ("mask.dcm", "report.dcm") and "mask" in row.artifacts:
        content = (
            admission.mask_as_dicom(services, session, row, segmentation or "binary")
            if file == "mask.dcm"
            else admission.report_as_dicom(services, session, row)
        )
        disposition = {"Cache-Control": "private, no-cache", "Content-Disposition": f'attachment; filename="{file}"'}
        return Response(content, media_type=DICOM, headers=disposition)
    if file == "difference.png" and row.reference_sha256 is not None and "mask.png" in files:
        drawn = references.difference_png(services, row, store.classes_of(session, row))
        return Response(drawn, media_type=PNG, headers={"Cache-Control": "private, no-cache"})
    if file in GRAPHS and "mask" in row.artifacts:
        graph = admission.skeleton_graph(services, session, row, class_name)
        content = graph.model_dump_json().encode() if GRAPHS[file] == JSON else analysis.graphml(graph)
        return Response(content, media_type=GRAPHS[file], headers={"Cache-Control": "private, no-cache"})
    raise NotFound(
        f"This prediction has no file {file}. It has:"
        f" {', '.join([*files, *GRAPHS])}{', difference.png' if row.reference_sha256 and 'mask.png' in files else ''}."
    )


@router.put(
    "/predictions/{prediction_id}/reference",
    **uploads(Prediction, "images:write", "max_upload_bytes", texts.REFERENCE_BODY, texts.REFERENCE),
)
async def set_reference(
    prediction_id: Id,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    resample: Annotated[
        bool, Query(description="Bring a mask on another grid to that of the prediction by its nearest voxels.")
    ] = False,
) -> Prediction:
    """Say what is right: a mask of class positions (or 0 and 255), 255 where nobody knows.

    Every metric is measured and kept; an earlier reference is replaced.
    """
    async with received_or_json(request, services, fields=("name",)) as body:
        source = validated(ReferenceImage, parse(body)).image if isinstance(body, bytes) else body[ANY]
        return await run_sync(
            _measured, services, caller, prediction_id, source, resample, limiter=services.decode_slots
        )


def _measured(
    services: Services, caller: Principal, prediction_id: UUID, source: Upload | UUID, resample: bool
) -> Prediction:
    rows = references.measure(services, caller, prediction_id, source, resample=resample)
    with services.database.write() as session:
        return describe(session, rows(session))
