"""Predictions, stored or not, as the API and the pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from app.imaging.formats import SUFFIXES
from app.schemas.predictions import ClassMeasurement, ClassTopology, Expectation, Prediction, Repair, Stored
from app.serving import answers, expectations
from app.serving.answers import EXTENSIONS
from app.serving.contract import CONVERSIONS
from app.serving.expectations import Expected
from app.store import predictions as store, rows, tables

if TYPE_CHECKING:
    from app.serving.prediction import Answer


def describe(session: Session, row: tables.Prediction) -> Prediction:
    """A stored prediction as the API and the pages show it."""
    return _described(session, row, store.measurements_of(session, row))


def describe_all(session: Session, listed: Sequence[tables.Prediction]) -> list[Prediction]:
    """The predictions of a page; what they refer to is read once for all of them."""
    with (
        rows.held(
            session,
            (tables.ModelVersion, [row.model_version_id for row in listed]),
            (tables.Image, [row.image_id for row in listed]),
        ) as (versions, _images),
        rows.held(session, (tables.Model, [each.model_id for each in versions])),
    ):
        measured = store.measurements_by_prediction(session, listed)
        return [_described(session, row, measured.get(row.id, [])) for row in listed]


def _described(session: Session, row: tables.Prediction, measured: Sequence[tables.Measurement]) -> Prediction:
    version = session.get_one(tables.ModelVersion, row.model_version_id)
    model, image = session.get_one(tables.Model, version.model_id), session.get_one(tables.Image, row.image_id)
    here, manifest = f"/v1/predictions/{row.id}", version.manifest
    links = _links(model, version) | {"self": here, "image": f"/v1/images/{image.id}", "reference": f"{here}/reference"}
    if row.reference_sha256 and image.dimensions != 3:
        links["difference"] = f"{here}/difference.png"
    return Prediction.of(
        row,
        model=f"{model.name}:{version.number}",
        image=image.id,
        job=row.job_id,
        shape=image.shape,
        spacing_mm=image.spacing_mm,
        classes=manifest["classes"],
        threshold=row.threshold if manifest["activation"] == "sigmoid" else None,
        conversion=CONVERSIONS.get((image.channels, manifest["channels"])),
        topology=_topology(row.report),
        expectation=expectation(row.report),
        repair=repair(row.report),
        artifacts={
            name: Stored(**each, href=f"{here}/{name}{EXTENSIONS[each['media_type']]}")
            for name, each in row.artifacts.items()
        },
        measurements=[ClassMeasurement.of(each) for each in measured],
        links=links | ({"job": f"/v1/jobs/{row.job_id}"} if row.job_id else {}),
    )


def describe_source(session: Session, row: tables.Prediction) -> str:
    """What the files of a prediction are named after, such as `Image_07L.vessels-1`: its image and its model."""
    version = session.get_one(tables.ModelVersion, row.model_version_id)
    model, image = session.get_one(tables.Model, version.model_id), session.get_one(tables.Image, row.image_id)
    ending = next((each for each in SUFFIXES if image.name.lower().endswith(each)), "")
    return f"{image.name[: len(image.name) - len(ending)]}.{model.name}-{version.number}"


def describe_unstored(model: tables.Model, version: tables.ModelVersion, answer: Answer) -> Prediction:
    """A prediction that is not kept as the API shows it."""
    picture = answer.picture
    return Prediction.of(
        answer.segmentation,
        **dict.fromkeys(("id", "image", "job", "created_at")),
        model=f"{model.name}:{version.number}",
        shape=picture.shape,
        spacing_mm=picture.spacing_mm,
        topology=_topology(answer.report),
        expectation=expectation(answer.report),
        repair=repair(answer.report),
        artifacts={},
        measurements=[],
        timings_ms=answer.timings_ms,
        links=_links(model, version),
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


def expectation(report: dict[str, Any] | None) -> Expectation | None:
    """Whether the topology is as expected, from what is kept with each class; None when nothing was."""
    expected: Expected = {name: facts["expected"] for name, facts in (report or {}).items() if "expected" in facts}
    wrong = expectations.listed(report or {})
    return (
        Expectation.model_validate({"satisfied": not wrong, "expected": expected, "violations": wrong})
        if expected
        else None
    )


def repair(report: dict[str, Any] | None) -> Repair | None:
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
