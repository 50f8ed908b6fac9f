"""Predictions out: one image in, its mask, probability, NIfTI or topology report out, kept when asked for.

One file, though long: an answer that is sent and one that is stored and read later have the same shape, which is made
here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Path, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app import errors, imaging
from app.errors import Forbidden, Invalid, MaskMismatch, NotFound, may_answer
from app.http.accept import negotiate
from app.http.callers import Caller, require
from app.http.downloads import download
from app.http.endpoints import noun_router
from app.http.idempotency import Once
from app.http.limits import body_up_to
from app.http.paging import Listing, Page
from app.http.resources import BlobsDep, Read, ServicesDep
from app.http.uploads import ANY, Upload, received, received_or_json
from app.imaging import Header, Picture
from app.imaging.labels import value_counts
from app.roles import Principal
from app.routes import deferred, images
from app.routes.deferred import Question
from app.schemas.base import ModelRef
from app.schemas.job_status import Job
from app.schemas.predictions import (
    PREDICTION,
    ClassMeasurement,
    ClassTopology,
    Expectation,
    Prediction,
    PredictOptions,
    ReferenceImage,
    Repair,
    Stored,
)
from app.services import Services
from app.serving import answers, expectations
from app.serving.answers import EXTENSIONS, NIFTI_GZ, PNG, TIFF, Artifact
from app.serving.contract import Manifest
from app.serving.expectations import Expected
from app.serving.pipeline import Prediction as Answer, Predictor, Stop, Stopwatch
from app.serving.report import Asked, examined
from app.serving.slots import CallerLeft
from app.store import audit, images as stored_images, models, predictions as store, tables
from app.strict_json import parse

router = noun_router("predictions")

JSON = "application/json"
Ref = Annotated[
    ModelRef, Path(description="`name` (newest version), `name@alias` or `name:3`.", examples=["vessels@champion"])
]
PredictionId = Annotated[UUID, Path(examples=["01936f5e-7c00-7000-8000-000000000001"])]
ANSWERS = {
    200: {
        "model": Prediction,
        "description": (
            "The mask as PNG (0 and 255, or class positions where there are more than two), the float32 probability as"
            " TIFF, the mask as NIfTI on the grid of the NIfTI that was sent, or everything about it as JSON."
            " `artifact` chooses another picture."
        ),
        "content": {
            PNG: {"schema": images.FILE},
            TIFF: {"schema": images.FILE},
            NIFTI_GZ: {"schema": images.FILE},
            JSON: {"example": PREDICTION},
        },
        "headers": {
            "Toposerve-Variant": {
                "schema": {"type": "string"},
                "description": "The smaller form that answered, where one was asked for.",
            },
            "Toposerve-Model": {"schema": {"type": "string"}, "description": "The version that answered: `vessels:3`."},
            "Toposerve-Conversion": {
                "schema": {"type": "string"},
                "description": "`luminance` when a colour image was read as grey.",
            },
            "Toposerve-Topology": {
                "schema": {"type": "string"},
                "description": "JSON: Betti numbers and Euler characteristic by class, when there is a report.",
            },
            "Toposerve-Expectation": {
                "schema": {"type": "string", "enum": ["satisfied", "violated"]},
                "description": "Whether the topology is as `expect` says.",
            },
            "Toposerve-Edits": {"schema": {"type": "integer"}, "description": "Edits that `repair=true` made."},
            "Server-Timing": {
                "schema": {"type": "string"},
                "description": "Milliseconds: decode, normalise, infer, stitch, repair, topology, encode.",
            },
        },
    },
    201: {"model": Prediction, "description": "The same, and it was stored; Location names it."},
    202: {
        "model": Job,
        "description": (
            "`Prefer: respond-async`: the image was stored and will be predicted by the job that Location names."
        ),
        "content": {JSON: {"example": deferred.JOB}},
    },
}


PROBLEMS = (
    *images.PROBLEMS,
    errors.NotFound,
    errors.NotAcceptable,
    errors.WrongInput,
    errors.ImageTooSmall,
    errors.ModelNonFinite,
    errors.ModelSignature,
    errors.ExpectationViolated,
    errors.RepairFailed,
    errors.Busy,
    errors.Gone,
    errors.BlobCorrupt,
)


@dataclass(frozen=True)
class Result:
    """What was found out for a question."""

    model: tables.Model
    version: tables.ModelVersion
    picture: Picture
    """Without its pixels."""
    answer: Answer
    report: dict[str, dict[str, Any]] | None
    timings_ms: dict[str, float]
    persistence_threshold: tuple[float, float] | None
    variant: str | None

    @property
    def ref(self) -> str:
        return f"{self.model.name}:{self.version.number}"


@router.post(
    "/models/{ref}/predict",
    response_class=Response,
    openapi_extra=images.BODY,
    dependencies=[require("predict"), body_up_to("max_upload_bytes")],
    responses=ANSWERS | may_answer(*PROBLEMS),
)
async def predict(
    ref: Ref,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    attempt: Once,
    options: Annotated[PredictOptions, Query()],
    prefer: deferred.Prefer = None,
) -> Response:
    """Segment one image. `Accept` chooses the form of the answer: image/png (default), image/tiff, application/gzip or
    application/json.

    With `Prefer: respond-async` the image is stored, a job predicts it, and the answer is 202 with the job's Location.
    """
    later = deferred.is_wanted(prefer)
    if (options.store or later) and not caller.may("images:write"):
        what = "Prefer: respond-async" if later else "store=true"
        raise Forbidden(
            f"{what} keeps the image, which needs the scope images:write. Leave it out, or use a key that has it."
        )
    async with received(request, services) as upload:
        question = Question(services, caller, ref, options, request.headers.get("accept"), upload, attempt)
        if later:
            return await run_sync(
                partial(deferred.put, question, request.scope.get("request_id")), limiter=services.decode_slots
            )
        try:
            return await services.registry.slots.run(partial(respond, question), gone=hung_up(request))
        except CallerLeft:
            return Response(status_code=499)


async def hung_up(request: Request) -> None:
    """Ends when the client does; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def respond(question: Question, stop: Stop) -> Response:
    """Everything between the bytes of the request and the bytes of the answer, in one thread."""
    started, phases, services, options = time.perf_counter(), Stopwatch(), question.services, question.options
    model, version = services.names.resolve(question.caller.project_id, question.ref)
    if options.store:
        with services.database.read() as session:
            question.attempt.look(session, question.upload.sha256)
    predictor = services.registry.get(question.caller.project_id, version, options.variant)
    manifest = predictor.manifest
    deferred.fits_together(options)
    expected = expectations.read(options.expect, manifest.classes, manifest.dimensions) if options.expect else {}
    with services.registry.statistics.request(version.id, stop.waited_ms) as counted:
        with phases("decode"):
            form = negotiate(
                question.accept, offers(services.decoders.read_header(question.upload.file), options, manifest)
            )
            picture = services.decoders.decode(question.upload.file)
        asked = Asked(
            topology=bool(options.topology or (options.topology is None and form == JSON)),
            margins=options.margins,
            expected=expected,
            strict=options.strict,
            repair=options.repair,
            repair_margin=options.repair_margin,
        )
        needs_map = options.store or asked.needs_map or options.artifact in answers.REAL or form == TIFF
        answer, report = examined(
            predictor.predict(picture, threshold=options.threshold, probability=needs_map, stop=stop),
            asked,
            picture.spacing_mm,
            phases,
        )
        with phases("encode"):
            persistence = _persistence_threshold(predictor, picture, form, options, stop)
            picture = picture.without_pixels()  # what follows needs their memory, not them
            artifact = (
                None
                if form == JSON
                else _artifact(answer, picture, form, options, services.settings.png_level, persistence)
            )
        counted.timings_ms = phases.spent_ms | answer.timings_ms
    result = Result(model, version, picture, answer, report, dict(counted.timings_ms), persistence, options.variant)
    response = _store(question, result, artifact) if options.store else _response(result, artifact)
    response.headers["Server-Timing"] = _server_timing(result.timings_ms, started)
    return response


def offers(header: Header, options: PredictOptions, manifest: Manifest) -> Sequence[str]:
    """The forms in which an image can be answered, the usual one first."""
    if header.is_volume:
        return (NIFTI_GZ, JSON)
    flat: tuple[str, ...] = (PNG, TIFF, JSON)
    if options.artifact in ("probability", "probability_skeleton"):
        flat = (TIFF, PNG, JSON) if manifest.outputs == 1 else (TIFF, JSON)
    elif options.artifact in ("mask", "skeleton", "simple_points"):
        flat = (PNG, JSON)
    return flat if header.affine is None else (*flat, NIFTI_GZ)


def _persistence_threshold(
    predictor: Predictor, picture: Picture, form: str, options: PredictOptions, stop: Stop
) -> tuple[float, float] | None:
    """What persistence a ridge of this image needs, where the answer or what is kept shows uncertainty and the network
    says so.
    """
    wanted = options.store or (options.artifact == "uncertainty" and form != JSON)
    return predictor.persistence_threshold(picture, stop=stop) if wanted else None


def _artifact(
    answer: Answer,
    picture: Picture,
    form: str,
    options: PredictOptions,
    png_level: int,
    persistence: tuple[float, float] | None,
) -> Artifact:
    usual = "probability" if form == TIFF else "skeleton" if options.skeleton else "mask"
    return answers.artifact(
        options.artifact or usual, answer, picture, form, png_level=png_level, persistence_threshold=persistence
    )


def _response(
    result: Result, artifact: Artifact | None, stored: Prediction | None = None, status: int = 200
) -> Response:
    headers = {"Toposerve-Model": result.ref, "Vary": "Accept"} | (
        {"Toposerve-Variant": result.variant} if result.variant else {}
    )
    if result.answer.conversion:
        headers["Toposerve-Conversion"] = result.answer.conversion
    if shown_expectation := _expectation(result.report):
        headers["Toposerve-Expectation"] = "satisfied" if shown_expectation.satisfied else "violated"
    if shown_repair := _repair(result.report):
        headers["Toposerve-Edits"] = str(shown_repair.edit_count)
    if artifact is None:
        return Response((stored or _show_unstored(result)).model_dump_json(), status, headers, JSON)
    if result.report is not None:
        headers["Toposerve-Topology"] = json.dumps(
            {name: _numbers(facts) for name, facts in result.report.items()}, separators=(",", ":")
        )
    if artifact.media_type == NIFTI_GZ:
        headers["Content-Disposition"] = f'attachment; filename="{artifact.name}.nii.gz"'
    return Response(artifact.content, status, headers, artifact.media_type)


def _numbers(facts: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in facts.items() if name in ("beta0", "beta1", "beta2", "euler")}


def _server_timing(timings_ms: dict[str, float], started: float) -> str:
    total = (time.perf_counter() - started) * 1000
    return ", ".join(f"{phase};dur={spent:.3f}" for phase, spent in (timings_ms | {"total": total}).items())


def _store(question: Question, result: Result, artifact: Artifact | None) -> Response:
    """Bytes first, then the rows that name them, then the answer, which is kept with the rows when it has an
    Idempotency-Key.
    """
    services, project_id, upload = question.services, question.caller.project_id, question.upload
    kept = {
        name: {"sha256": sha256, "bytes": size, "media_type": made.media_type}
        for name, made in answers.artifacts(
            result.answer,
            result.picture,
            png_level=services.settings.png_level,
            persistence_threshold=result.persistence_threshold,
        ).items()
        for sha256, size in [services.blobs.put(project_id, made.content)]
    }
    upload.file.seek(0)
    services.blobs.put(project_id, iter(lambda: upload.file.read(1 << 20), b""))
    with services.database.write() as session:
        question.attempt.claim(session, upload.sha256)
        image, _ = stored_images.add(
            session, project_id, upload.sha256, **images.facts_of(result.picture, upload, upload.name)
        )
        row = store.add(
            session,
            project_id=project_id,
            model_version_id=result.version.id,
            image_id=image.id,
            report=result.report,
            artifacts=kept,
            threshold=(
                result.answer.threshold if result.answer.threshold is not None else result.version.manifest["threshold"]
            ),
            timings_ms=result.timings_ms,
        )
        audit.note(session, project_id=project_id, who=question.caller.who, what="prediction.store", object=row.id)
        shown = describe(session, row)
        response = _response(result, artifact, shown, 201)
        response.headers["Location"] = shown.links["self"]
        question.attempt.remember(response)
    return response


# Stored predictions -------------------------------------------------------------------------------------------------


@router.get(
    "/predictions",
    dependencies=[require("images:read")],
    responses={200: {"content": {JSON: {"example": {"items": [PREDICTION], "next_cursor": None}}}}}
    | may_answer(errors.InvalidCursor, errors.NotFound, errors.Invalid),
)
def list_predictions(
    caller: Caller,
    session: Read,
    page: Page,
    model: Annotated[
        ModelRef | None, Query(description="Only those of this model version: `vessels:3`, `vessels@champion`.")
    ] = None,
    image: Annotated[UUID | None, Query(description="Only those of this image.")] = None,
    job: Annotated[UUID | None, Query(description="Only those of this job.")] = None,
) -> Listing[Prediction]:
    """The stored predictions of this project, newest first."""
    version = models.resolve(session, caller.project_id, model)[1] if model else None
    query = store.owned(caller.project_id, model_version_id=version.id if version else None, image_id=image, job_id=job)
    return page.listing(session, query, tables.Prediction.id, lambda row: describe(session, row))


@router.get(
    "/predictions/{prediction_id}", dependencies=[require("images:read")], responses=may_answer(errors.NotFound)
)
def read_prediction(prediction_id: PredictionId, caller: Caller, session: Read) -> Prediction:
    """A stored prediction: its topology, its timings, its files, and how far it is from its reference."""
    return describe(session, store.get(session, caller.project_id, prediction_id))


FILES = {"content": {PNG: {"schema": images.FILE}, TIFF: {"schema": images.FILE}, NIFTI_GZ: {"schema": images.FILE}}}


@router.get(
    "/predictions/{prediction_id}/{file}",
    dependencies=[require("images:read")],
    response_class=Response,
    responses={
        200: {**FILES, "description": "The file."},
        206: {**FILES, "description": "The range that was asked for."},
        304: {"description": "The caller has it."},
    }
    | may_answer(errors.NotFound, errors.Gone, errors.RangeNotSatisfiable, errors.BlobCorrupt),
)
def read_file(
    prediction_id: PredictionId,
    file: Annotated[
        str,
        Path(
            max_length=64,
            description=(
                "mask.png, skeleton.png, simple_points.png, probability.tiff, uncertainty.png; of a volume .nii.gz;"
                " difference.png when there is a reference."
            ),
            examples=["mask.png"],
        ),
    ],
    request: Request,
    caller: Caller,
    session: Read,
    blobs: BlobsDep,
    services: ServicesDep,
) -> Response:
    """A file of a stored prediction.

    difference.png is white where prediction and reference agree, orange where only the prediction has foreground, blue
    where only the reference has.
    """
    row = store.get(session, caller.project_id, prediction_id)
    files = {name + EXTENSIONS[each["media_type"]]: each for name, each in row.artifacts.items()}
    if file in files:
        found = files[file]
        return download(
            request, blobs, row.project_id, found["sha256"], found["bytes"], media_type=found["media_type"], name=file
        )
    if file == "difference.png" and row.reference_sha256 is not None and "mask.png" in files:
        return Response(
            _difference(services, row, _classes(session, row)),
            media_type=PNG,
            headers={"Cache-Control": "private, no-cache"},
        )
    raise NotFound(
        f"This prediction has no file {file}. It has:"
        f" {', '.join(files)}{', difference.png' if row.reference_sha256 and 'mask.png' in files else ''}."
    )


def _difference(services: Services, row: tables.Prediction, classes: Sequence[str]) -> bytes:
    labels, reference = _labels(services, row, classes), _reference(services, row)
    return imaging.encode_png(answers.difference(labels, reference), services.settings.png_level)


@router.put(
    "/predictions/{prediction_id}/reference",
    dependencies=[require("images:write"), body_up_to("max_upload_bytes")],
    openapi_extra={
        "requestBody": {
            **images.BODY["requestBody"],
            "description": "A mask, or the id of an image that is one.",
            "content": (
                images.BODY["requestBody"]["content"]
                | {
                    JSON: {
                        "schema": {"$ref": "#/components/schemas/ReferenceImage"},
                        "example": {"image": PREDICTION["image"]},
                    }
                }
            ),
        }
    },
    responses=may_answer(
        *images.PROBLEMS,
        errors.NotFound,
        errors.MaskMismatch,
        errors.UnknownLabel,
        errors.InvalidJson,
        errors.Gone,
        errors.BlobCorrupt,
    ),
)
async def set_reference(
    prediction_id: PredictionId, request: Request, caller: Caller, services: ServicesDep
) -> Prediction:
    """Say what is right: a mask of class positions (or 0 and 255), 255 where nobody knows.

    Every metric is measured and kept; an earlier reference is replaced.
    """
    async with received_or_json(request, services, fields=("name",)) as body:
        source = _named_image(body) if isinstance(body, bytes) else body[ANY]
        return await run_sync(_measure, services, caller, prediction_id, source, limiter=services.decode_slots)


def _named_image(body: bytes) -> UUID:
    try:
        return ReferenceImage.model_validate(parse(body)).image
    except ValidationError as error:
        raise Invalid(
            errors=[
                {"pointer": "/" + "/".join(map(str, each["loc"])), "detail": each["msg"]} for each in error.errors()
            ]
        ) from None


def _measure(services: Services, caller: Principal, prediction_id: UUID, source: Upload | UUID) -> Prediction:
    from topology.metrics import EXACT

    with services.database.read() as session:
        row = store.get(session, caller.project_id, prediction_id)
        image, classes = session.get_one(tables.Image, row.image_id), _classes(session, row)
        named = stored_images.get(session, caller.project_id, source).sha256 if isinstance(source, UUID) else None
    content = services.blobs.read(caller.project_id, named) if named else source.file  # type: ignore[union-attr]
    reference = _positions(services.decoders.decode_mask(content), classes)
    labels = _labels(services, row, classes)
    if reference.shape != labels.shape:
        sides = [" x ".join(map(str, each.shape)) for each in (reference, labels)]
        raise MaskMismatch(
            f"The reference is {sides[0]} pixels and the prediction {sides[1]}. Send a mask of the same size."
        )
    figures = answers.measurements(labels, reference, classes, image.spacing_mm)
    kept = (
        imaging.encode_png(reference, services.settings.png_level)
        if reference.ndim == 2
        else imaging.encode_nifti_gz(reference)
    )
    sha256, _ = services.blobs.put(caller.project_id, kept)
    with services.database.write() as session:
        row = store.get(session, caller.project_id, prediction_id)
        store.set_reference(session, row, sha256, figures, metric_spec=EXACT.as_dict(), metric_digest=EXACT.digest())
        audit.note(session, project_id=caller.project_id, who=caller.who, what="prediction.reference", object=row.id)
        return describe(session, row)


def _positions(mask: Any, classes: Sequence[str]) -> Any:
    """Class positions of a mask that a caller sent: 0 and 255 for two classes, or positions, with IGNORE where nothing
    is labelled.
    """
    values = set(value_counts(mask))
    if len(classes) == 2 and values <= {0, 255}:
        return (mask > 0).astype("uint8")
    meaning = imaging.LabelMap(
        tuple((name, (position,)) for position, name in enumerate(classes) if position),
        background=(0,),
        ignore=(imaging.IGNORE,),
    )
    return imaging.to_index(mask, meaning)[0]


def _labels(services: Services, row: tables.Prediction, classes: Sequence[str]) -> Any:
    return answers.positions(
        services.decoders.decode_mask(services.blobs.read(row.project_id, row.artifacts["mask"]["sha256"])), classes
    )


def _reference(services: Services, row: tables.Prediction) -> Any:
    assert row.reference_sha256 is not None
    return services.decoders.decode_mask(services.blobs.read(row.project_id, row.reference_sha256))


# Shapes -------------------------------------------------------------------------------------------------------------


def describe(session: Session, row: tables.Prediction) -> Prediction:
    """A stored prediction as the API and the pages show it."""
    version = session.get_one(tables.ModelVersion, row.model_version_id)
    model, image = session.get_one(tables.Model, version.model_id), session.get_one(tables.Image, row.image_id)
    here, manifest = f"/v1/predictions/{row.id}", version.manifest
    links = _links(model, version) | {"self": here, "image": f"/v1/images/{image.id}", "reference": f"{here}/reference"}
    if row.reference_sha256 and not image.dimensions == 3:
        links["difference"] = f"{here}/difference.png"
    return Prediction(
        id=row.id,
        model=f"{model.name}:{version.number}",
        image=image.id,
        job=row.job_id,
        created_at=row.created_at,
        shape=image.shape,
        spacing_mm=image.spacing_mm,
        classes=manifest["classes"],
        threshold=row.threshold if manifest["activation"] == "sigmoid" else None,
        conversion="luminance" if (image.channels, manifest["channels"]) == (3, 1) else None,
        topology=_topology(row.report),
        expectation=_expectation(row.report),
        repair=_repair(row.report),
        artifacts={
            name: Stored(**each, href=f"{here}/{name}{EXTENSIONS[each['media_type']]}")
            for name, each in row.artifacts.items()
        },
        measurements=[_measurement(each) for each in store.measurements_of(session, row)],
        timings_ms=row.timings_ms,
        links=links | ({"job": f"/v1/jobs/{row.job_id}"} if row.job_id else {}),
    )


def _show_unstored(result: Result) -> Prediction:
    answer, picture = result.answer, result.picture
    return Prediction(
        id=None,
        model=result.ref,
        image=None,
        job=None,
        created_at=None,
        shape=list(picture.shape),
        spacing_mm=list(picture.spacing_mm) if picture.spacing_mm else None,
        classes=list(answer.classes),
        threshold=answer.threshold,
        conversion=answer.conversion,
        topology=_topology(result.report),
        expectation=_expectation(result.report),
        repair=_repair(result.report),
        artifacts={},
        measurements=[],
        timings_ms=result.timings_ms,
        links=_links(result.model, result.version),
    )


def _links(model: tables.Model, version: tables.ModelVersion) -> dict[str, str]:
    return {"model": f"/v1/models/{model.name}/versions/{version.number}"}


def _topology(report: dict[str, Any] | None) -> list[ClassTopology] | None:
    return (
        None
        if report is None
        else [
            ClassTopology(class_name=name, **{key: value for key, value in facts.items() if key not in answers.JUDGED})
            for name, facts in report.items()
        ]
    )


def _expectation(report: dict[str, Any] | None) -> Expectation | None:
    """Whether the topology is as expected, from what is kept with each class; None when nothing was."""
    expected: Expected = {name: facts["expected"] for name, facts in (report or {}).items() if "expected" in facts}
    wrong = expectations.listed(report or {})
    return (
        Expectation.model_validate({"satisfied": not wrong, "expected": expected, "violations": wrong})
        if expected
        else None
    )


def _repair(report: dict[str, Any] | None) -> Repair | None:
    """What was changed, from what is kept with each class. Only a mask that was counted anew gets this far."""
    edited = {name: facts for name, facts in (report or {}).items() if "edits" in facts}
    edits = [{"class_name": name} | each for name, facts in edited.items() for each in facts["edits"]]
    return (
        Repair.model_validate(
            {"certified": True, "edit_count": sum(facts["edit_count"] for facts in edited.values()), "edits": edits}
        )
        if edited
        else None
    )


def _measurement(row: tables.Measurement) -> ClassMeasurement:
    return ClassMeasurement(**{name: getattr(row, name) for name in ClassMeasurement.model_fields})


def _classes(session: Session, row: tables.Prediction) -> list[str]:
    return session.get_one(tables.ModelVersion, row.model_version_id).manifest["classes"]
