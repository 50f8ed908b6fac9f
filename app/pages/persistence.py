"""The persistence diagram of a prediction: features of its map and their places."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import Query
from sqlalchemy.orm import Session

from app.errors import Gone, Invalid, TooManyPixels
from app.http.callers import Caller
from app.http.resources import ServicesDep
from app.pages import pictures
from app.pages.charts import Tick, round_steps
from app.pages.predictions import described, require_prediction
from app.pages.rendering import Facts, new_router, page
from app.schemas.base import by
from app.services import Services
from app.serving import answers, certainty
from app.serving.analysis import MOST_PIXELS
from app.serving.pipeline import Segmentation
from app.store import predictions as store
from app.store.tables import Image, Prediction

router = new_router()
MOST_FEATURES = 250
"""Features in a diagram, those that live longest."""
SIDE, LEFT, RIGHT, TOP, BOTTOM = 360, 40, 12, 22, 46
"""The square of the plot in user units, and what is left around it."""
NOUNS = ("component", "loop", "cavity")
SHAPES = ("M-4 0 A4 4 0 1 1 4 0 A4 4 0 1 1 -4 0 Z", "M-4 -4 H4 V4 H-4 Z", "M0 -5 L5 4 H-5 Z")
"""By dimension: a circle, a square, a triangle."""


@dataclass(frozen=True)
class Found:
    """What a diagram is made of."""

    shown: Facts
    row: Prediction
    image: Image
    classes: list[str]


def _dressed(facts: Facts) -> Facts:
    """The diagram as SVG: birth to the right, death upwards, so that what the mask has lies in the corner below right
    of the threshold; what never ends lies on a line below the lowest death.
    """
    features, threshold = facts["features"], facts["threshold"]
    ends = [each["death"] for each in features if each["death"] is not None]
    values = [*(each["birth"] for each in features), *ends, threshold, *((0.0, 1.0) if threshold > 0 else (-1.0, 1.0))]
    low, high = min(values), max(values)

    def across(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (SIDE - LEFT - RIGHT), 1)

    def up(value: float | None) -> float:
        bottom = SIDE - BOTTOM
        return SIDE - BOTTOM + 14 if value is None else round(bottom - (value - low) / (high - low) * (bottom - TOP), 1)

    ticks = [value for value in round_steps(low, high, 4) if low <= value <= high]
    return {
        "diagram": {
            "side": SIDE,
            "points": [{"x": across(each["birth"]), "y": up(each["death"])} for each in features],
            "x_ticks": [Tick(across(value), f"{value:g}".replace("-", "−")) for value in ticks],
            "y_ticks": [Tick(up(value), f"{value:g}".replace("-", "−")) for value in ticks],
            "left": LEFT,
            "right": SIDE - RIGHT,
            "top": TOP,
            "bottom": SIDE - BOTTOM,
            "never": up(None),
            "threshold": [across(threshold), up(threshold)],
        },
        "shapes": SHAPES,
        "nouns": NOUNS,
    }


@page(router, "/predictions/{prediction_id}/persistence", "persistence.html", "images:read", dressed=_dressed)
async def persistence(
    prediction_id: str,
    caller: Caller,
    services: ServicesDep,
    class_name: Annotated[str | None, Query(max_length=255)] = None,
    axis: pictures.Axis = 0,
    plane: pictures.Plane = None,
) -> Facts:
    """When the features of the map of one class appear and end while the threshold falls, and where."""

    def find(session: Session) -> Found:
        row = require_prediction(session, caller.project_id, prediction_id)
        image = _computable(session, row)
        classes = store.classes_of(session, row)
        if class_name is not None and class_name not in classes[1:]:
            raise Invalid(f"class_name must be one of {', '.join(classes[1:])}.")
        return Found(described(session, row, axis, plane), row, image, classes)

    def compute(found: Found) -> Facts:
        position = found.classes.index(class_name) if class_name else 1
        kept = ("prediction", "image", "model", "viewer")
        return {name: found.shown[name] for name in kept} | {
            "classes": found.classes[1:],
            "class_name": found.classes[position],
            **_features(services, found, position),
        }

    shown = await pictures.made(services, find, compute)
    shown["viewer"] |= {"places": ""}  # the table is that of the features, not of wrong places
    return shown


def _computable(session: Session, row: Prediction) -> Image:
    """The image of a prediction whose map was stored and is not too large for an answer while somebody waits."""
    if not {"mask", "probability"} <= set(row.artifacts):
        raise Gone("This prediction was stored without its map. Predict the image again, and its diagram is here.")
    image = session.get_one(Image, row.image_id)
    if math.prod(image.shape) > MOST_PIXELS:
        raise TooManyPixels(
            f"The image is {by(image.shape)}; diagrams are made of at most {MOST_PIXELS} pixels. An analyse job takes"
            " larger ones."
        )
    return image


def _features(services: Services, found: Found, position: int) -> Facts:
    row, threshold = found.row, found.shown["prediction"]["threshold"]
    mask = pictures.labels(services, row.project_id, row.artifacts["mask"]["sha256"], found.image)
    content = services.blobs.read(row.project_id, row.artifacts["probability"]["sha256"])
    probability = services.decoders.decode(content).pixels
    classes = tuple(found.classes)
    said = Segmentation(answers.positions(mask, classes), probability, classes, threshold, None, 0, {})
    every = certainty.features(said, position)
    longest = np.argsort(-every.bars.persistence, kind="stable")[:MOST_FEATURES]
    level = 0.0 if threshold is None else threshold
    features: list[dict[str, Any]] = [certainty.describe(every, int(k), level) for k in longest]
    return {"threshold": level, "features": features, "count": len(every)}
