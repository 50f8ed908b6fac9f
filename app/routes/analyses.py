"""Analyses: the topology of one mask or probability map, at once and without keeping anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Annotated, Any
from uuid import UUID

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app import errors, imaging
from app.errors import MaskMismatch, TooManyPixels, may_answer
from app.http.callers import Caller, require
from app.http.endpoints import noun_router
from app.http.limits import body_up_to
from app.http.resources import ServicesDep
from app.http.uploads import received_or_json
from app.imaging import Picture
from app.imaging.foreground import foreground, fraction
from app.roles import Principal
from app.routes import images
from app.routes.predictions import hung_up
from app.schemas.jobs import by
from app.schemas.topology import AnalyseOptions, Analysis, StoredMask
from app.services import Services
from app.serving import analysis
from app.serving.pipeline import Stop, Stopwatch
from app.serving.slots import CallerLeft
from app.store import images as store
from app.strict_json import parse

router = noun_router("analyses")

MOST_PIXELS = 16_777_216
"""Pixels that are analysed while the caller waits: 4096 x 4096; larger images are analysed by a job."""
FILES = ("image", "reference")
FORM = {
    "type": "object",
    "required": ["image"],
    "properties": dict.fromkeys(FILES, images.FILE),
    "additionalProperties": False,
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "One mask or probability map (PNG, JPEG, TIFF or NIfTI); a form of two with a `reference`; or JSON that"
            " names stored images."
        ),
        "content": {
            **{
                media: {"schema": images.FILE}
                for media in ("application/octet-stream", "image/png", "image/tiff", "application/gzip")
            },
            "multipart/form-data": {"schema": FORM},
            "application/json": {
                "schema": {"type": "object"},
                "example": StoredMask.model_config["json_schema_extra"]["examples"][0],
            },  # type: ignore[index, call-overload]
        },
    }
}
PICTURE = {
    200: {
        "description": "A mask of the same shape: PNG, for a volume NIfTI.",
        "content": {"image/png": {"schema": images.FILE}, "application/gzip": {"schema": images.FILE}},
    }
}
REFUSALS = may_answer(*images.PROBLEMS, MaskMismatch, errors.NotFound, errors.Busy, errors.Gone, errors.BlobCorrupt)
Options = Annotated[AnalyseOptions, Query()]


@dataclass(frozen=True)
class Question:
    """One request to analyse, once its bytes are here or known to be."""

    services: Services
    image: IO[bytes] | bytes
    reference: IO[bytes] | bytes | None
    options: AnalyseOptions
    stored: StoredMask | None = None


MAY = [require("predict"), body_up_to("max_upload_bytes")]


@router.post("/analyses", response_model=Analysis, openapi_extra=BODY, dependencies=MAY, responses=REFUSALS)
async def analyse(request: Request, caller: Caller, services: ServicesDep, options: Options) -> Response:
    """Betti numbers, simple points, skeleton graph and persistence of a mask or map; with a reference every metric and
    each error's place.
    """
    return await _answered(request, services, caller, options, _everything)


@router.post(
    "/analyses/skeleton", response_class=Response, openapi_extra=BODY, dependencies=MAY, responses=PICTURE | REFUSALS
)
async def skeleton(request: Request, caller: Caller, services: ServicesDep, options: Options) -> Response:
    """The one pixel wide centre lines of a mask or map, with exactly its Betti numbers."""
    return await _answered(request, services, caller, options, partial(_layer, analysis.skeleton))


@router.post(
    "/analyses/simple-points",
    response_class=Response,
    openapi_extra=BODY,
    dependencies=MAY,
    responses=PICTURE | REFUSALS,
)
async def simple_points(request: Request, caller: Caller, services: ServicesDep, options: Options) -> Response:
    """The foreground pixels whose removal, one at a time, changes no Betti number."""
    return await _answered(request, services, caller, options, partial(_layer, analysis.simple_points))


async def _answered(
    request: Request,
    services: Services,
    caller: Principal,
    options: AnalyseOptions,
    work: Callable[[Question, Stop], Response],
) -> Response:
    async with _asked(request, services, caller, options) as question:
        try:
            return await services.registry.slots.run(partial(work, question), gone=hung_up(request))
        except CallerLeft:
            return Response(status_code=499)


@asynccontextmanager
async def _asked(
    request: Request, services: Services, caller: Principal, options: AnalyseOptions
) -> AsyncIterator[Question]:
    async with received_or_json(request, services, files=FILES) as body:
        if isinstance(body, bytes):
            yield await run_sync(_stored, services, caller, _named(body), options)
        else:
            reference = body.get("reference")
            yield Question(services, body["image"].file, reference.file if reference else None, options)


def _named(body: bytes) -> StoredMask:
    sent = parse(body)
    try:
        return StoredMask.model_validate(sent)
    except ValidationError as error:
        raise RequestValidationError(
            [{**item, "loc": ("body", *item["loc"])} for item in error.errors()], body=sent
        ) from None


def _stored(services: Services, caller: Principal, named: StoredMask, options: AnalyseOptions) -> Question:
    def read(image_id: UUID) -> bytes:
        with services.database.read() as session:
            row = store.get(session, caller.project_id, image_id)
        return services.blobs.read(caller.project_id, row.sha256)

    return Question(services, read(named.image), read(named.reference) if named.reference else None, options, named)


def _decoded(services: Services, source: IO[bytes] | bytes) -> Picture:
    header = services.decoders.read_header(source)
    if header.pixels > MOST_PIXELS:
        raise TooManyPixels(
            f"The image has {header.pixels} pixels; {MOST_PIXELS} are analysed at once. Store it and submit a job of"
            " kind analyse."
        )
    return services.decoders.decode(source)


def _everything(question: Question, _stop: Stop) -> Response:
    """The whole report, in one thread."""
    options, phases = question.options, Stopwatch()
    with phases("decode"):
        picture = _decoded(question.services, question.image)
        mask, reference = foreground(picture, options.threshold, options.label), _reference(question, picture)
        # With a label the mask is what was asked about, and the map behind it means nothing.
        values = fraction(picture) if options.label is None else mask.astype(np.float32)
    with phases("skeleton"):
        graph = analysis.graph(mask, picture.spacing_mm)
    with phases("topology"):
        topology, simple = (
            analysis.topology(mask, picture.spacing_mm),
            int(np.count_nonzero(analysis.simple_points(mask))),
        )
    with phases("persistence"):
        bars = analysis.persistence(values)
    with phases("compare"):
        compared = (
            None
            if reference is None
            else analysis.comparison(values, mask, reference, options.threshold, picture.spacing_mm)
        )
    report = Analysis(
        image=question.stored and question.stored.image,
        reference=question.stored and question.stored.reference,
        shape=list(picture.shape),
        spacing_mm=picture.spacing_mm and list(picture.spacing_mm),
        threshold=options.threshold,
        label=options.label,
        topology=topology,
        simple_points=simple,
        skeleton=graph,
        persistence=bars,
        comparison=compared,
        timings_ms=phases.spent_ms,
    )
    return Response(report.model_dump_json(), headers=_timed(phases), media_type="application/json")


def _reference(question: Question, picture: Picture) -> np.ndarray | None:
    if question.reference is None:
        return None
    reference = _decoded(question.services, question.reference)
    if reference.shape != picture.shape:
        raise MaskMismatch(
            f"The image is {by(picture.shape)} and its reference {by(reference.shape)}. Both must have the same shape."
        )
    return foreground(reference, question.options.threshold, question.options.label)


def _layer(find: Callable[[np.ndarray], np.ndarray], question: Question, _stop: Stop) -> Response:
    """One mask found in another, as an image."""
    phases = Stopwatch()
    with phases("decode"):
        picture = _decoded(question.services, question.image)
        mask = foreground(picture, question.options.threshold, question.options.label)
    with phases("topology"):
        found = find(mask)
    with phases("encode"):
        if picture.is_volume:
            content, media_type = imaging.encode_nifti_gz(found, picture.affine), "application/gzip"
        else:
            content, media_type = imaging.encode_png(found, question.services.settings.png_level), "image/png"
    return Response(content, headers=_timed(phases), media_type=media_type)


def _timed(phases: Stopwatch) -> dict[str, str]:
    return {"Server-Timing": ", ".join(f"{phase};dur={spent:.3f}" for phase, spent in phases.spent_ms.items())}
