"""Which image to label next: the one whose topology is least certain (`app.serving.labelling_order`).

Where the time of one call does not suffice for all images, the best of those that have a score is answered.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidRequest, NotFound
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.resources import ServicesDep
from app.protocols.loose_json import body_of, checked
from app.protocols.monai.wire import new_router
from app.roles import Principal
from app.schemas.base import ModelRef
from app.services import Services
from app.serving import labelling_order
from app.serving.labelling_order import CANDIDATES
from app.serving.pipeline import Stop
from app.store import labels, models, tables

router = new_router()

UNCERTAIN = "topological_uncertainty"
STRATEGIES = {
    UNCERTAIN: "The image with the most components and holes that a small change of the threshold changes",
    "newest": "The newest image without a label",
    "oldest": "The oldest image without a label",
}
SECONDS = 10.0
"""Time of one call for images that have no score yet."""


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


def _least_certain(
    services: Services, caller: Principal, candidates: list[tables.Image], model: str | None, stop: Stop
) -> tuple[tables.Image, float | None]:
    """The candidate with the highest score, the first of equals, and its score; the first where none has one."""
    scores = labelling_order.score(services, _version(services, caller, model), candidates, SECONDS, stop)
    best: tuple[tables.Image, float | None] = (candidates[0], None)
    for image in candidates:
        found = scores.get(image.id)
        if found is not None and (best[1] is None or found > best[1]):
            best = image, found
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
