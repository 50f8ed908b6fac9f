"""What lists can be narrowed by and sorted by, one table for each noun.

The endpoints of `/v1` and the forms on pages are made from these rows (`app/http/finding.py`). A condition is one that
an index or the rows of one project answer; nothing here reads files.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Float, SQLColumnExpression, cast, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from app.job_kinds import KINDS
from app.metric_table import METRICS
from app.store.models import split
from app.store.tables import (
    STATES,
    Alias,
    Dataset,
    DatasetItem,
    DatasetVersion,
    Image,
    Job,
    Measurement,
    Model,
    ModelVersion,
    Prediction,
)

ERRORS = ("beta0_error", "beta1_error", "beta2_error")
TERABYTE = 2**40


@dataclass(frozen=True)
class Filter:
    """One way to narrow a list.

    label      on pages
    about      in the OpenAPI document
    condition  of the rows that fit a value
    kind       str, int, date or UUID: what the value is
    choices    the values there are, when they are few
    """

    label: str
    about: str
    condition: Callable[[Any], ColumnElement[bool]]
    kind: type = str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """One way to sort a list; rows without a value come last in either direction.

    value  None: by age
    least  smaller than every value
    most   larger than every value
    by_age  the words for the newest and for the oldest first
    """

    label: str
    value: SQLColumnExpression[Any] | None = None
    least: Any = -1e300
    most: Any = 1e300
    by_age: tuple[str, str] = ("newest first", "oldest first")


@dataclass(frozen=True)
class Finder:
    """How the rows of one noun are found.

    id       their UUIDv7, which is also their age
    filters  by the name of the query parameter
    orders   by the name that `sort` takes; the first is the usual one
    """

    id: InstrumentedAttribute[UUID]
    filters: dict[str, Filter]
    orders: dict[str, Order]

    def without(self, *names: str) -> Finder:
        """The same without these filters: where the address says it already."""
        return replace(self, filters={name: each for name, each in self.filters.items() if name not in names})


def _contains(column: InstrumentedAttribute[str]) -> Callable[[str], ColumnElement[bool]]:
    return lambda text: column.icontains(text, autoescape=True)


def _since(column: InstrumentedAttribute[datetime]) -> Callable[[date], ColumnElement[bool]]:
    return lambda day: column >= datetime.combine(day, time(), UTC)


def _until(column: InstrumentedAttribute[datetime]) -> Callable[[date], ColumnElement[bool]]:
    return lambda day: column < datetime.combine(day, time(), UTC) + timedelta(days=1)


def _dates(column: InstrumentedAttribute[datetime]) -> dict[str, Filter]:
    return {
        "since": Filter("From", "Only those made on this day (UTC) or later.", _since(column), date),
        "until": Filter("To", "Only those made on this day (UTC) or earlier.", _until(column), date),
    }


def _versions_named(ref: str) -> Any:
    """Ids of the versions of a dataset, of one number or of all."""
    name, _, number = ref.partition("@")
    found = select(DatasetVersion.id).join(Dataset, Dataset.id == DatasetVersion.dataset_id).where(Dataset.name == name)
    return found.where(DatasetVersion.number == _number(number)) if number else found


def _number(text: str) -> int:
    """A number in a reference; what is no number is none of them."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0


def _in_dataset(image_id: InstrumentedAttribute[UUID]) -> Callable[[str], ColumnElement[bool]]:
    return lambda ref: image_id.in_(
        select(DatasetItem.image_id).where(DatasetItem.version_id.in_(_versions_named(ref)))
    )


def _by_model(ref: str) -> ColumnElement[bool]:
    """Predictions of a model: of every version, of one number, or of the version an alias points to now."""
    name, alias, number = split(ref if _number(ref.partition(":")[2]) or ":" not in ref else ref.partition(":")[0])
    found = select(ModelVersion.id).join(Model, Model.id == ModelVersion.model_id).where(Model.name == name)
    if alias is not None:
        of_alias = (Alias.model_id == Model.id) & (Alias.number == ModelVersion.number)
        found = found.join(Alias, of_alias).where(Alias.alias == alias)
    elif number is not None:
        found = found.where(ModelVersion.number == number)
    return Prediction.model_version_id.in_(found)


def _spec_names(field: str, mark: str) -> Callable[[str], ColumnElement[bool]]:
    """Jobs whose spec names a dataset or model, with or without the number of a version."""
    named = Job.spec[field].as_string()
    return lambda ref: named == ref if mark in ref else or_(named == ref, named.startswith(ref + mark, autoescape=True))


def _wrong(answer: str) -> ColumnElement[bool]:
    """Predictions that were measured against a reference, with or without an error of a Betti number."""
    errors = [getattr(Measurement, name) > 0 for name in ERRORS]
    measured = select(Measurement.prediction_id).where(Measurement.prediction_id == Prediction.id)
    wrong = measured.where(or_(*errors)).exists()
    return wrong if answer == "wrong" else measured.exists() & ~wrong


def _mean(name: str) -> SQLColumnExpression[Any]:
    """The mean of a metric over the classes of a prediction."""
    column = cast(func.avg(getattr(Measurement, name)), Float(53))
    return select(column).where(Measurement.prediction_id == Prediction.id).correlate(Prediction).scalar_subquery()


def _result(name: str) -> SQLColumnExpression[Any]:
    """What a job measured: a training on its validation images, an evaluation on its dataset."""
    return func.coalesce(Job.result[("metrics", name)].as_float(), Job.result[("means", name)].as_float())


def _figures(value: Callable[[str], SQLColumnExpression[Any]]) -> dict[str, Order]:
    return {name: Order(metric.label, value(name)) for name, metric in METRICS.items()}


CREATED = {"created": Order("made")}

IMAGES = Finder(
    Image.id,
    {
        "name": Filter("Name", "Only those whose name contains this.", _contains(Image.name)),
        "dataset": Filter("Dataset", "Only those in this dataset: `isbi12` or `isbi12@1`.", _in_dataset(Image.id)),
        "dimensions": Filter("Dimensions", "2 or 3.", lambda many: Image.dimensions == int(many), str, ("2", "3")),
        **_dates(Image.created_at),
    },
    CREATED
    | {
        "name": Order("name", Image.name, "", "\U0010ffff"),
        "bytes": Order("size of the file", Image.bytes, -1, TERABYTE),
    },
)
DATASETS = Finder(
    Dataset.id,
    {
        "name": Filter("Name", "Only those whose name contains this.", _contains(Dataset.name)),
        **_dates(Dataset.created_at),
    },
    CREATED
    | {
        "name": Order("name", Dataset.name, "", "\U0010ffff"),
        "versions": Order("versions", Dataset.last_version, -1, 2**40),
    },
)
JOBS = Finder(
    Job.id,
    {
        "state": Filter("State", "Only those in this state.", lambda state: Job.state == state, str, STATES),
        "kind": Filter("Kind", "Only those of this kind.", lambda kind: Job.kind == kind, str, tuple(KINDS)),
        "dataset": Filter(
            "Dataset", "Only those on this dataset: `isbi12` or `isbi12@1`.", _spec_names("dataset", "@")
        ),
        "model": Filter("Model", "Only those that make or use this model: `vessels`.", _spec_names("model", ":")),
        "parent": Filter(
            "Part of job", "Only the trainings of this comparison.", lambda job: Job.parent_id == job, UUID
        ),
        **_dates(Job.created_at),
    },
    CREATED | {"done": Order("share that is done", Job.fraction)} | _figures(_result),
)
MODELS = Finder(
    Model.id,
    {"name": Filter("Name", "Only those whose name contains this.", _contains(Model.name)), **_dates(Model.created_at)},
    CREATED | {"name": Order("name", Model.name, "", "\U0010ffff")},
)
MODEL_VERSIONS = Finder(
    ModelVersion.id,
    {
        "name": Filter(
            "Name",
            "Only those of models whose name contains this.",
            lambda text: ModelVersion.model_id.in_(select(Model.id).where(_contains(Model.name)(text))),
        ),
        "dataset": Filter(
            "Trained on",
            "Only those trained on this dataset: `isbi12` or `isbi12@1`.",
            lambda ref: ModelVersion.dataset_version_id.in_(_versions_named(ref)),
        ),
        **_dates(ModelVersion.created_at),
    },
    CREATED
    | _figures(lambda name: ModelVersion.metrics[name].as_float())
    | {"training_s": Order("time of training", ModelVersion.training_s)},
)
PREDICTIONS = Finder(
    Prediction.id,
    {
        "model": Filter("Model", "Only those of this model: `vessels`, `vessels:3` or `vessels@champion`.", _by_model),
        "image_name": Filter(
            "Image",
            "Only those of images whose name contains this.",
            lambda text: Prediction.image_id.in_(select(Image.id).where(_contains(Image.name)(text))),
        ),
        "dataset": Filter(
            "Dataset", "Only those of images in this dataset: `isbi12` or `isbi12@1`.", _in_dataset(Prediction.image_id)
        ),
        "topology": Filter(
            "Betti numbers",
            "Only those that were measured: `wrong` with an error of a Betti number, `right` without one.",
            _wrong,
            str,
            ("wrong", "right"),
        ),
        "expectation": Filter(
            "Expectation",
            "Only those of which a topology was expected: `violated` or `satisfied`.",
            # Both conditions, so that Postgres sees that the index of those that were judged has them all.
            lambda answer: Prediction.violated.is_not(None) & Prediction.violated.is_(answer == "violated"),
            str,
            ("violated", "satisfied"),
        ),
        **_dates(Prediction.created_at),
    },
    CREATED | _figures(_mean),
)


def items_of(version: DatasetVersion, class_name: str) -> Finder:
    """How the items of a dataset version are found; Betti numbers and pixels are those of one class."""
    codes: dict[str, set[str]] = {}
    for warning in version.warnings:
        if warning.get("item"):
            codes.setdefault(warning["code"], set()).add(warning["item"])
    betti = [DatasetItem.statistics[("betti", class_name, k)].as_integer() for k in range(version.dimensions)]
    pixels = DatasetItem.statistics[("pixels", class_name)].as_integer()
    nouns = ("components", "loops", "cavities")[: version.dimensions]
    warned = Filter(
        "Warning",
        "Only those whose label looks wrong in this way.",
        lambda code: DatasetItem.name.in_(codes[code]),
        str,
        tuple(codes),
    )
    bounds = {
        f"beta{k}_{side}": Filter(
            f"β{k} at {side}",
            f"Only those whose mask has at {side} so many {nouns[k]} of the class.",
            partial(operator.ge if side == "least" else operator.le, betti[k]),
            int,
        )
        for k in range(version.dimensions)
        for side in ("least", "most")
    }
    return Finder(
        DatasetItem.id,
        {
            "name": Filter("Name", "Only those whose name contains this.", _contains(DatasetItem.name)),
            **({"warning": warned} if codes else {}),
            "part": Filter(
                "Part",
                "Only those of this part; job: those that a job may put into any.",
                lambda part: DatasetItem.split.is_(None) if part == "job" else DatasetItem.split == part,
                str,
                ("train", "val", "test", "job"),
            ),
            "class_name": Filter(
                "Class", "Only those whose mask has this class.", lambda _: pixels > 0, str, tuple(version.classes[1:])
            ),
            **bounds,
        },
        {
            "place": Order("place", by_age=("in their order", "backwards")),
            "name": Order("name", DatasetItem.name, "", "\U0010ffff"),
            "pixels": Order("pixels of the class", pixels),
            **{f"beta{k}": Order(f"β{k}, {nouns[k]}", betti[k]) for k in range(version.dimensions)},
        },
    )
