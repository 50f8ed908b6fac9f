"""Pages that compare two predictions of an image, or two model versions on common images.

Model versions are compared pair by pair: the newest evaluation of each on one dataset version, item by item and class
by class, and only where both were measured by the same convention. Cases come first where Dice sees no difference and
topology does, because those are the ones that a table of Dice hides.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from uuid import UUID

from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.comparison.statistics import paired
from app.errors import Invalid, NotFound
from app.http.callers import Caller, require
from app.http.resources import Read, ServicesDep
from app.metric_table import METRICS
from app.pages import layers, pictures, predictions
from app.pages.rendering import Facts, new_router, page
from app.pages.words import TOPOLOGY
from app.representations.models import describe_version
from app.schemas.base import ModelRef
from app.store import models as store, predictions as stored_predictions
from app.store.measurements import evaluations, newest_evaluation
from app.store.tables import Image, Job, Measurement, Model, ModelVersion, Prediction

router = new_router()
MODEL_REF = TypeAdapter(ModelRef)
SAME_DICE = 0.01
"""Dice values closer than this are called equal: a hundredth is within what two trainings differ by."""
CASES = 40
CHOICES = 30


@page(router, "/compare", "compare.html", "models:read", "images:read")
def compare(caller: Caller, session: Read, a: str = "", b: str = "") -> Facts:
    """Two predictions (by id) or two model versions (`name:3`, `name@alias`); without both, what there is to choose
    from.
    """
    facts: Facts = {"a": a, "b": b, "choices": _choices(session, caller), "kind": None}
    sides = [_side(session, caller, name, ref) for name, ref in (("a", a), ("b", b)) if ref]
    match sides:
        case [Prediction() as first, Prediction() as second]:
            return facts | _predictions(session, first, second)
        case [ModelVersion() as first, ModelVersion() as second]:
            return facts | _models(session, caller, first, second)
        case [_, _]:
            raise Invalid(
                "One side is a prediction and the other a model. Compare two predictions of one image, or two model"
                " versions."
            )
    return facts


@router.get("/predictions/{a}/against/{b}.png", dependencies=[require("images:read")])
async def disagreement(a: str, b: str, caller: Caller, services: ServicesDep) -> Response:
    """Where the masks of two predictions of one image differ: only in the first, only in the second."""

    def find(session: Session) -> list[predictions.Found]:
        pair = [predictions.require_prediction(session, caller.project_id, each) for each in (a, b)]
        _one_image(*pair)
        image = session.get_one(Image, pair[0].image_id)
        return [(row, image, stored_predictions.classes_of(session, row)) for row in pair]

    def draw(found: list[predictions.Found]) -> bytes:
        first, second = (predictions.mask_of(services, *each) for each in found)
        return layers.difference_layer(first, second)

    return await pictures.drawn(services, find, draw)


def _side(session: Session, caller: Caller, name: str, ref: str) -> Prediction | ModelVersion:
    """What one side of the comparison names; Invalid when it is written like neither of the two."""
    try:
        return stored_predictions.get(session, caller.project_id, UUID(ref))
    except ValueError:
        pass
    try:
        return store.resolve(session, caller.project_id, MODEL_REF.validate_python(ref))[1]
    except ValidationError:
        sentence = (
            f"{name} is {ref[:64]!r}. Write a model version as `vessels:3`, `vessels@champion` or `vessels`, or give"
            " the id of a prediction."
        )
        raise Invalid(sentence, errors=[{"pointer": f"/query/{name}", "detail": sentence}]) from None


def _choices(session: Session, caller: Caller) -> list[str]:
    query = (
        select(Model.name, ModelVersion.number)
        .join(ModelVersion, ModelVersion.model_id == Model.id)
        .where(Model.project_id == caller.project_id)
    )
    return [
        f"{name}:{number}" for name, number in session.execute(query.order_by(ModelVersion.id.desc()).limit(CHOICES))
    ]


# Predictions --------------------------------------------------------------------------------------------------------


def _predictions(session: Session, *rows: Prediction) -> Facts:
    _one_image(*rows)
    sides = [predictions.described(session, row) for row in rows]
    for side, row in zip(sides, rows, strict=True):
        _with_disagreement(side["viewer"], *rows, first=row is rows[0])
    others = predictions.cards(session, rows[0].project_id, Prediction.image_id == rows[0].image_id, limit=CHOICES)
    named = {str(card["id"]): f"{card['model']}, {card['created_at']:%d %b %Y %H:%M:%S}" for card in others}
    named |= {
        side["prediction"]["id"]: side["prediction"]["model"] for side in sides if side["prediction"]["id"] not in named
    }
    return {
        "kind": "predictions",
        "sides": sides,
        "image": sides[0]["image"],
        "figures": _figures(sides),
        "of_image": named,
        "distance_unit": sides[0]["distance_unit"],
    }


def _one_image(first: Prediction, second: Prediction) -> None:
    if first.image_id != second.image_id:
        raise Invalid("These predictions are of two images. Choose two predictions of one image; its page lists them.")


def _with_disagreement(viewer: Facts, a: Prediction, b: Prediction, *, first: bool) -> None:
    viewer["group"] = "pair"
    viewer["layers"].append(
        {
            "name": "disagreement",
            "label": "A against B",
            "src": f"/predictions/{a.id}/against/{b.id}.png",
            "alt": "Where the two masks differ.",
            "shown": not viewer["has_difference"],
        }
    )
    viewer["key"] += (
        [] if viewer["has_difference"] else [["false-positive", "only in A"], ["false-negative", "only in B"]]
    )


def _figures(sides: Sequence[Facts]) -> list[Facts]:
    """Each metric of both sides with the difference, class by class."""
    by_class = [{each["class_name"]: each for each in side["prediction"]["measurements"]} for side in sides]
    rows = []
    for name in [each for each in by_class[0] if each in by_class[1]]:
        one, other = by_class[0][name], by_class[1][name]
        if one["metric_digest"] == other["metric_digest"]:
            rows += [
                _figure(metric, name, one[metric], other[metric])
                for metric in METRICS
                if one[metric] is not None and other[metric] is not None
            ]
    return rows


def _figure(metric: str, class_name: str, a: float, b: float) -> Facts:
    return {"metric": metric, "class": class_name, "a": a, "b": b, "difference": b - a}


# Model versions -----------------------------------------------------------------------------------------------------


def _models(session: Session, caller: Caller, *versions: ModelVersion) -> Facts:
    jobs = _common_evaluations(session, *versions)
    facts: Facts = {
        "kind": "models",
        "versions": [describe_version(session, version) for version in versions],
        "dataset": None,
        "unlike": _unlike(*versions),
        "paired": [],
        "cases": [],
        "pairs": 0,
        "shown": None,
    }
    if jobs is None:
        return facts
    pairs = _pairs(session, *jobs)
    cases = sorted((_case(*pair) for pair in pairs), key=lambda case: case["order"])
    return facts | {
        "dataset": jobs[0].spec["dataset"],
        "evaluations": [str(job.id) for job in jobs],
        "pairs": len(pairs),
        "paired": [row for metric in METRICS if (row := _paired(metric, pairs))],
        "cases": cases[:CASES],
        "shown": _shown(session, caller, cases),
    }


def _unlike(a: ModelVersion, b: ModelVersion) -> str | None:
    """Why two versions can never be evaluated on the same images; None where they can."""
    reads = [(version.manifest["dimensions"], version.manifest["channels"]) for version in (a, b)]
    if reads[0] == reads[1] or (reads[0][0] == reads[1][0] and {reads[0][1], reads[1][1]} == {1, 3}):
        return None  # an image in colour is brought to grey for a model of one channel
    words = [
        f"{dimensions}D images of {count} {'channel' if count == 1 else 'channels'}" for dimensions, count in reads
    ]
    return f"A reads {words[0]} and B reads {words[1]}; no image suits both, so they cannot be compared."


def _common_evaluations(session: Session, a: ModelVersion, b: ModelVersion) -> tuple[Job, Job] | None:
    """The newest evaluations of both versions on the dataset version that the second was evaluated on last and the
    first was too.
    """
    datasets = evaluations(b).with_only_columns(Job.spec["dataset_version_id"].as_string())
    for dataset_version_id in dict.fromkeys(session.scalars(datasets)):
        of_a, of_b = (newest_evaluation(session, version, dataset_version_id) for version in (a, b))
        if of_a and of_b:
            return of_a, of_b
    return None


def _pairs(session: Session, a: Job, b: Job) -> list[tuple[Measurement, Measurement]]:
    """The measurements of the same class of the same item by the same convention."""
    found = [
        {
            (row.item_name, row.image_id, row.class_name, row.metric_digest): row
            for row in session.scalars(select(Measurement).where(Measurement.job_id == job.id))
        }
        for job in (a, b)
    ]
    return [(found[0][key], found[1][key]) for key in found[0] if key in found[1]]


def _paired(metric: str, pairs: Sequence[tuple[Measurement, Measurement]]) -> Facts | None:
    """Mean and spread of both sides; of their differences mean, spread and 95 % interval of the mean; in how many pairs
    the second is better.
    """
    values = [(getattr(a, metric), getattr(b, metric)) for a, b in pairs]
    values = [(a, b) for a, b in values if a is not None and b is not None]
    if not values:
        return None
    differences = [b - a for a, b in values]
    sign = 1 if METRICS[metric].better == "higher" else -1
    return {
        "metric": metric,
        "n": len(values),
        "a": _spread([a for a, _ in values]),
        "b": _spread([b for _, b in values]),
        "difference": _spread(differences) | _interval(differences),
        "b_better": sum(sign * each > 0 for each in differences),
        "b_worse": sum(sign * each < 0 for each in differences),
    }


def _interval(differences: Sequence[float]) -> Facts:
    """Ends of the interval (`app.comparison.statistics.interval`); None of fewer than two differences."""
    told = paired(differences)
    return {"low": told.low if told else None, "high": told.high if told else None}


def _spread(values: Sequence[float]) -> Facts:
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def _case(a: Measurement, b: Measurement) -> Facts:
    """One item and class on both sides; `hidden` when Dice is equal and topology is not."""
    differences = {
        name: getattr(b, name) - getattr(a, name)
        for name in METRICS
        if getattr(a, name) is not None and getattr(b, name) is not None
    }
    apart = sum(abs(differences.get(name, 0)) for name in TOPOLOGY)
    hidden = apart > 0 and abs(differences.get("dice", 1.0)) < SAME_DICE
    return {
        "item": a.item_name,
        "image": a.image_id,
        "class": a.class_name,
        "hidden": hidden,
        "differences": differences,
        "a": {name: getattr(a, name) for name in METRICS},
        "b": {name: getattr(b, name) for name in METRICS},
        "predictions": [a.prediction_id, b.prediction_id] if a.prediction_id and b.prediction_id else None,
        "order": (not hidden, -apart, abs(differences.get("dice", 0.0)), a.item_name or ""),
    }


def _shown(session: Session, caller: Caller, cases: Sequence[Facts]) -> Facts | None:
    """The two predictions of the first case that has any, to be looked at on the spot."""
    first = next((case for case in cases if case["predictions"]), None)
    if first is None:
        return None
    try:
        rows = [stored_predictions.get(session, caller.project_id, each) for each in first["predictions"]]
        return _predictions(session, *rows) | {"case": first}
    except NotFound:
        return None  # deleted since it was measured
