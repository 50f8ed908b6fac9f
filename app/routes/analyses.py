"""Analyses: the topology of one mask or probability map, at once and without keeping anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Query, Request, Response

from app.admission import analyses as admission
from app.admission.analyses import Source
from app.http.accept import negotiate
from app.http.callers import Caller
from app.http.disconnects import while_connected
from app.http.endpoints import noun_router, uploads, validated
from app.http.resources import ServicesDep
from app.http.telemetry import server_timing
from app.http.uploads import received_or_json
from app.imaging import Picture
from app.imaging.foreground import foreground
from app.openapi import analyses as texts
from app.openapi.predictions import JSON
from app.roles import Principal
from app.schemas.topology import Analysis, MaskOptions, SkeletonGraph, StoredMask, StoredPair
from app.services import Services
from app.serving import analysis
from app.serving.answers import NIFTI_GZ, PNG
from app.serving.pipeline import Stop, Stopwatch
from app.strict_json import parse

router = noun_router("analyses")

Options = Annotated[MaskOptions, Query()]


@dataclass(frozen=True)
class AnalyseRequest:
    """One request to analyse, once its bytes are here or known to be."""

    services: Services
    image: Source
    reference: Source | None
    options: MaskOptions
    spacing_mm: Sequence[float] | None
    stored: StoredPair | None = None


layer = uploads(None, "predict", "max_upload_bytes", texts.ONE_MASK, texts.LAYER)


@router.post("/analyses", **uploads(Analysis, "predict", "max_upload_bytes", texts.MASK_OR_PAIR, texts.ANALYSED))
async def analyse(request: Request, caller: Caller, services: ServicesDep, options: Options) -> Response:
    """Betti numbers, simple points, skeleton graph and persistence of a mask or map; with a reference every metric and
    each error's place.
    """
    return await _answered(request, services, caller, options, StoredPair, _everything)


@router.post(
    "/analyses/skeleton", **uploads(SkeletonGraph, "predict", "max_upload_bytes", texts.ONE_MASK, texts.SKELETON)
)
async def skeleton(request: Request, caller: Caller, services: ServicesDep, options: Options) -> Response:
    """The one pixel wide centre lines of a mask or map, with exactly its Betti numbers: as a mask, or as a graph of
    nodes and branches with their lengths and mean widths (`Accept: application/json` or `application/graphml+xml`).
    """
    work = partial(_skeleton, request.headers.get("accept"))
    return await _answered(request, services, caller, options, StoredMask, work)


@router.post("/analyses/simple-points", **layer)
async def simple_points(request: Request, caller: Caller, services: ServicesDep, options: Options) -> Response:
    """The foreground pixels whose removal, one at a time, changes no Betti number."""
    return await _answered(request, services, caller, options, StoredMask, partial(_layer, analysis.simple_points))


async def _answered(
    request: Request,
    services: Services,
    caller: Principal,
    options: MaskOptions,
    takes: type[StoredMask],
    work: Callable[[AnalyseRequest, Stop], Response],
) -> Response:
    """takes  the schema of a request by name; its fields are also the files that a form may hold."""
    async with _asked(request, services, caller, options, takes) as asked:
        return await while_connected(request, services, partial(work, asked))


@asynccontextmanager
async def _asked(
    request: Request, services: Services, caller: Principal, options: MaskOptions, takes: type[StoredMask]
) -> AsyncIterator[AnalyseRequest]:
    async with received_or_json(request, services, files=tuple(takes.model_fields)) as body:
        if isinstance(body, bytes):
            yield await run_sync(_stored, services, caller, validated(takes, parse(body)), options)
        else:
            reference = body.get("reference")
            yield AnalyseRequest(
                services, body["image"].file, reference.file if reference else None, options, options.spacing_mm
            )


def _stored(services: Services, caller: Principal, named: StoredMask, options: MaskOptions) -> AnalyseRequest:
    pair = StoredPair(**named.model_dump())
    reference = admission.stored(services, caller, pair.reference)[0] if pair.reference else None
    image, spacing_mm = admission.stored(services, caller, pair.image)
    return AnalyseRequest(services, image, reference, options, options.spacing_mm or spacing_mm, pair)


def _everything(asked: AnalyseRequest, _stop: Stop) -> Response:
    """The whole report, in one thread."""
    options, phases = asked.options, Stopwatch()
    with phases("decode"):
        picture = admission.decoded(asked.services, asked.image, asked.spacing_mm)
        (mask, values), reference = admission.mask_and_map(picture, options), _reference(asked, picture)
    with phases("skeleton"):
        graph = analysis.graph(mask, picture.spacing_mm)
    with phases("topology"):
        topology = analysis.topology(mask, picture.spacing_mm)
        simple = int(np.count_nonzero(analysis.simple_points(mask)))
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
    return Response(report.model_dump_json(), headers=server_timing(phases.spent_ms), media_type="application/json")


def _reference(asked: AnalyseRequest, picture: Picture) -> np.ndarray | None:
    if asked.reference is None:
        return None
    reference = admission.decoded_beside(asked.services, asked.reference, picture, "reference", asked.options)
    return foreground(reference, asked.options.threshold, asked.options.label)


def _skeleton(accept: str | None, asked: AnalyseRequest, _stop: Stop) -> Response:
    """The skeleton in the form that is asked for."""
    phases = Stopwatch()
    with phases("decode"):
        picture = admission.decoded(asked.services, asked.image, asked.spacing_mm)
    form = negotiate(accept, (NIFTI_GZ if picture.is_volume else PNG, JSON, texts.GRAPHML))
    if form not in (JSON, texts.GRAPHML):
        return _drawn(analysis.skeleton, asked, picture, phases)
    with phases("skeleton"):
        mask = foreground(picture, asked.options.threshold, asked.options.label)
        graph = analysis.whole_graph(mask, picture.spacing_mm)
    content = graph.model_dump_json().encode() if form == JSON else analysis.graphml(graph)
    return Response(content, headers=server_timing(phases.spent_ms), media_type=form)


def _layer(find: Callable[[np.ndarray], np.ndarray], asked: AnalyseRequest, _stop: Stop) -> Response:
    """One mask found in another, as an image."""
    phases = Stopwatch()
    with phases("decode"):
        picture = admission.decoded(asked.services, asked.image, asked.spacing_mm)
    return _drawn(find, asked, picture, phases)


def _drawn(
    find: Callable[[np.ndarray], np.ndarray], asked: AnalyseRequest, picture: Picture, phases: Stopwatch
) -> Response:
    with phases("topology"):
        found = find(foreground(picture, asked.options.threshold, asked.options.label))
    with phases("encode"):
        content, media_type = admission.encoded(asked.services, found, picture)
    return Response(content, headers=server_timing(phases.spent_ms), media_type=media_type)
