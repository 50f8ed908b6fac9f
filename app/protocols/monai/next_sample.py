"""Which image to label next: the one whose topology is least certain.

An image is scored by its uncertain features: components, holes and cavities of its map that appear or vanish when the
threshold moves by at most `topology.margins.NEAR`. Scores are kept by network and image for as long as the process
lives; where the time of one call does not suffice for all images, the best of those that are known is answered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

from fastapi import Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidRequest, NotFound, Problem
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.resources import ServicesDep
from app.imaging import Picture
from app.protocols.loose_json import body_of, checked
from app.protocols.monai.wire import new_router
from app.roles import Principal
from app.schemas.base import ModelRef
from app.services import Services
from app.serving import certainty
from app.serving.pipeline import Predictor, Segmentation, Stop
from app.store import labels, models, tables

router = new_router()

UNCERTAIN = "topological_uncertainty"
STRATEGIES = {
    UNCERTAIN: "The image with the most components and holes that a small change of the threshold changes",
    "newest": "The newest image without a label",
    "oldest": "The oldest image without a label",
}
CANDIDATES = 500
"""Images that are compared, the newest ones."""
SECONDS = 10.0
"""Time of one call for images that have no score yet."""
REMEMBERED = 100_000


class StrategyParams(BaseModel):
    """What a strategy may be told; what comes besides is passed over."""

    model: Annotated[ModelRef, Field()] | None = None


@router.post("/activelearning/{strategy}", dependencies=[require("images:read", "predict")])
async def next_sample(
    strategy: Annotated[str, Path(max_length=64)], request: Request, caller: Caller, services: ServicesDep
) -> Response:
    """The image to label next; an empty object when all are labelled."""
    if strategy not in STRATEGIES:
        raise NotFound(f"There is no strategy {strategy!r}; there are {', '.join(STRATEGIES)}.")
    given = checked(StrategyParams, await body_of(request))
    work = partial(_chosen, services, caller, strategy, given.model)
    return await while_connected(request, services, work)


def _chosen(services: Services, caller: Principal, strategy: str, model: str | None, stop: Stop) -> Response:
    with services.database.read() as session:
        query = labels.unlabelled(caller.project_id)
        if strategy == "oldest":
            query = query.order_by(None).order_by(tables.Image.id)
        candidates = list(session.scalars(query.limit(CANDIDATES if strategy == UNCERTAIN else 1)))
    if not candidates:
        return JSONResponse({})
    if strategy != UNCERTAIN:
        return JSONResponse(_described(candidates[0], None))
    image, score = _least_certain(services, caller, candidates, model, stop)
    return JSONResponse(_described(image, score))


def _described(image: tables.Image, score: float | None) -> dict[str, Any]:
    told = {"id": str(image.id), "path": "", "name": image.name, "checksum": f"SHA256:{image.sha256}"}
    return told | {"ts": int(image.created_at.timestamp())} | ({} if score is None else {"weight": score})


_scores: dict[tuple[Any, Any], float | None] = {}
"""(network, image) -> uncertain features; None: the network cannot read it."""


def _least_certain(
    services: Services, caller: Principal, candidates: list[tables.Image], model: str | None, stop: Stop
) -> tuple[tables.Image, float | None]:
    """The candidate with the highest score, the first of equals, and its score; the first where none has one."""
    version = _version(services, caller, model)
    predictor, until = services.registry.get(caller.project_id, version), time.monotonic() + SECONDS
    best: tuple[tables.Image, float | None] = (candidates[0], None)
    for image in candidates:
        known = (version.id, image.id)
        if known not in _scores:
            if time.monotonic() > until:
                continue
            if len(_scores) >= REMEMBERED:
                _scores.clear()
            _scores[known] = _scored(services, caller, predictor, image, stop)
        score = _scores[known]
        if score is not None and (best[1] is None or score > best[1]):
            best = image, score
    return best


def _version(services: Services, caller: Principal, model: str | None) -> tables.ModelVersion:
    if model is not None:
        return services.names.resolve(caller.project_id, model)[1]
    mine = models.all_of(caller.project_id).join(tables.ModelVersion, tables.ModelVersion.model_id == tables.Model.id)
    with services.database.read() as session:
        newest = session.scalar(
            mine.with_only_columns(tables.ModelVersion).order_by(tables.ModelVersion.id.desc()).limit(1)
        )
    if newest is None:
        raise InvalidRequest("There is no model yet whose uncertainty could be measured. Use the strategy newest.")
    return newest


def _scored(
    services: Services, caller: Principal, predictor: Predictor, image: tables.Image, stop: Stop
) -> float | None:
    try:
        picture = services.decoders.decode(services.blobs.read(caller.project_id, image.sha256))
        return float(sum(uncertain_features(predictor.predict(each, stop=stop)) for each in _parts(picture, predictor)))
    except Problem as problem:
        if problem.status >= 500:
            raise
        return None  # of another kind than the network was trained on


def _parts(picture: Picture, predictor: Predictor) -> Iterator[Picture]:
    """The image, or each plane of a volume where the network was trained on images."""
    if picture.is_volume and predictor.manifest.dimensions == 2:
        yield from map(picture.plane, range(picture.planes))
    else:
        yield picture


def uncertain_features(segmentation: Segmentation) -> int:
    """How many components, holes and cavities of all classes a change of the threshold by 0.1 makes or unmakes."""
    from topology.margins import NEAR

    positions = range(1, len(segmentation.classes))
    return sum(int((certainty.features(segmentation, each).margins <= NEAR).sum()) for each in positions)
