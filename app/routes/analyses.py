"""Analyses: the topology of one mask or probability map, at once and without keeping anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, BinaryIO
from uuid import UUID

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Query, Request, Response

from app import imaging
from app.errors import MaskMismatch, TooManyPixels
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.endpoints import noun_router, validated
from app.http.limits import body_up_to
from app.http.resources import ServicesDep
from app.http.uploads import received_or_json
from app.imaging import Picture
from app.imaging.foreground import foreground, fraction
from app.openapi import analyses as texts
from app.roles import Principal
from app.schemas.base import by
from app.schemas.topology import AnalyseOptions, Analysis, StoredMask
from app.services import Services
from app.serving import analysis
from app.serving.analysis import MOST_PIXELS
from app.serving.pipeline import Stop, Stopwatch
from app.store import images as store
from app.strict_json import parse

router = noun_router("analyses")

Options = Annotated[AnalyseOptions, Query()]


@dataclass(frozen=True)
class AnalyseRequest:
    """One request to analyse, once its bytes are here or known to be."""

    services: Services
    image: BinaryIO | bytes
    reference: BinaryIO | bytes | None
    options: AnalyseOptions
    stored: StoredMask | None = None


MAY = [require("predict"), body_up_to("max_upload_bytes")]


@router.post("/analyses", response_model=Analysis, openapi_extra=texts.BODY, dependencies=MAY, responses=texts.ANALYSED)
async def analyse(request: Request, caller: Caller, services: ServicesDep, options: Options) -> Response:
    """Betti numbers, simple points, skeleton graph and persistence of a mask or map; with a reference every metric and
    each error's place.
    """
    return await _answered(request, services, caller, options, _everything)


@router.post(
    "/analyses/skeleton", response_class=Response, openapi_extra=texts.BODY, dependencies=MAY, responses=texts.LAYER
)
async def skeleton(request: Request, caller: Caller, services: ServicesDep, options: Options) -> Response:
    """The one pixel wide centre lines of a mask or map, with exactly its Betti numbers."""
    return await _answered(request, services, caller, options, partial(_layer, analysis.skeleton))


@router.post(
    "/analyses/simple-points",
    response_class=Response,
    openapi_extra=texts.BODY,
    dependencies=MAY,
    responses=texts.LAYER,
)
async def simple_points(request: Request, caller: Caller, services: ServicesDep, options: Options) -> Response:
    """The foreground pixels whose removal, one at a time, changes no Betti number."""
    return await _answered(request, services, caller, options, partial(_layer, analysis.simple_points))


async def _answered(
    request: Request,
    services: Services,
    caller: Principal,
    options: AnalyseOptions,
    work: Callable[[AnalyseRequest, Stop], Response],
) -> Response:
    async with _asked(request, services, caller, options) as asked:
        return await while_connected(request, services, partial(work, asked))


@asynccontextmanager
async def _asked(
    request: Request, services: Services, caller: Principal, options: AnalyseOptions
) -> AsyncIterator[AnalyseRequest]:
    async with received_or_json(request, services, files=texts.FILES) as body:
        if isinstance(body, bytes):
            yield await run_sync(_stored, services, caller, validated(StoredMask, parse(body)), options)
        else:
            reference = body.get("reference")
            yield AnalyseRequest(services, body["image"].file, reference.file if reference else None, options)


def stored(services: Services, caller: Principal, image_id: UUID) -> bytes:
    """The bytes of a stored image."""
    with services.database.read() as session:
        row = store.get(session, caller.project_id, image_id)
    return services.blobs.read(caller.project_id, row.sha256)


def _stored(services: Services, caller: Principal, named: StoredMask, options: AnalyseOptions) -> AnalyseRequest:
    reference = stored(services, caller, named.reference) if named.reference else None
    return AnalyseRequest(services, stored(services, caller, named.image), reference, options, named)


def decoded(services: Services, source: BinaryIO | bytes) -> Picture:
    """An image that is small enough to be analysed while the caller waits."""
    header = services.decoders.read_header(source)
    if header.pixels > MOST_PIXELS:
        raise TooManyPixels(
            f"The image has {header.pixels} pixels; {MOST_PIXELS} are analysed at once. Store it and submit a job of"
            " kind analyse."
        )
    return services.decoders.decode(source)


def _everything(asked: AnalyseRequest, _stop: Stop) -> Response:
    """The whole report, in one thread."""
    options, phases = asked.options, Stopwatch()
    with phases("decode"):
        picture = decoded(asked.services, asked.image)
        mask, reference = foreground(picture, options.threshold, options.label), _reference(asked, picture)
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
        image=asked.stored and asked.stored.image,
        reference=asked.stored and asked.stored.reference,
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


def _reference(asked: AnalyseRequest, picture: Picture) -> np.ndarray | None:
    if asked.reference is None:
        return None
    reference = decoded(asked.services, asked.reference)
    if reference.shape != picture.shape:
        raise MaskMismatch(
            f"The image is {by(picture.shape)} and its reference {by(reference.shape)}. Both must have the same shape."
        )
    return foreground(reference, asked.options.threshold, asked.options.label)


def _layer(find: Callable[[np.ndarray], np.ndarray], asked: AnalyseRequest, _stop: Stop) -> Response:
    """One mask found in another, as an image."""
    phases = Stopwatch()
    with phases("decode"):
        picture = decoded(asked.services, asked.image)
        mask = foreground(picture, asked.options.threshold, asked.options.label)
    with phases("topology"):
        found = find(mask)
    with phases("encode"):
        if picture.is_volume:
            content, media_type = imaging.encode_nifti_gz(found, picture.affine), "application/gzip"
        else:
            content, media_type = imaging.encode_png(found, asked.services.settings.png_level), "image/png"
    return Response(content, headers=_timed(phases), media_type=media_type)


def _timed(phases: Stopwatch) -> dict[str, str]:
    return {"Server-Timing": ", ".join(f"{phase};dur={spent:.3f}" for phase, spent in phases.spent_ms.items())}
