"""The predictions of a job as a table (CSV) and as a zip archive, streamed.

A table has a row for each image and class, and a row with its problem for each image that could not be predicted. Text
that a spreadsheet would run as a formula is written with an apostrophe before it (OWASP, "CSV Injection"); numbers stay
numbers.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select

from app.errors import Problem
from app.imaging.archive import Outbox, entry
from app.schemas.comparison_answers import CandidateFigure, Comparison
from app.services import Services
from app.serving.answers import EXTENSIONS
from app.store import predictions
from app.store.tables import Image, Job, Prediction

NUMBERS = (
    "beta0",
    "beta1",
    "beta2",
    "euler",
    "foreground",
    "skeleton_length",
    "length_unit",
    "skeleton_length_px",
    "branch_points",
    "end_points",
    "branches",
    "spurs",
    "roundness",
    "edit_count",
)
"""Columns that come from the topology report of a class."""
COLUMNS = (
    "image",
    "name",
    "prediction",
    "model",
    "threshold",
    "class",
    *NUMBERS,
    "expectation",
    "mask",
    "problem",
    "detail",
)
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What a cell must not begin with; the wide forms are read like the narrow ones."""
ROWS = 50
"""Predictions that are in memory at once; each may have a report of a thousand components."""


def table(services: Services, job: Job) -> Iterator[str]:
    """The table as lines of CSV."""
    return (_line(row) for row in rows(services, job))


def rows(services: Services, job: Job, damaged: Mapping[UUID, Problem] | None = None) -> Iterator[Sequence[Any]]:
    """The head, a row for each class of each prediction in the order they were made, and a row for each image that
    failed.

    damaged  predictions whose mask could not be read, which their rows say
    """
    yield COLUMNS
    for prediction, name in _predictions(services, job):
        yield from _rows_of(prediction, name, job.spec["model"], (damaged or {}).get(prediction.id))
    failed = (job.result or {}).get("failed", [])
    if not failed and job.error and len(job.spec.get("images") or []) == 1:
        failed = [{"image": job.spec["images"][0], **job.error}]
    for start in range(0, len(failed), ROWS):
        part = failed[start : start + ROWS]
        names = _names(services, job, [UUID(each["image"]) for each in part])
        for each in part:
            yield _row(
                image=each["image"],
                name=names.get(UUID(each["image"])),
                model=job.spec["model"],
                problem=each["code"],
                detail=each["detail"],
            )


def _rows_of(prediction: Prediction, name: str, model: str, damage: Problem | None) -> Iterator[Sequence[Any]]:
    facts: dict[str, Any] = {
        "image": prediction.image_id,
        "name": name,
        "prediction": prediction.id,
        "model": model,
        "threshold": prediction.threshold,
        "mask": mask_name(prediction),
    }
    if damage is not None:
        facts |= {"mask": None, "problem": damage.code, "detail": damage.detail}
    for class_name, found in (prediction.report or {}).items():
        judged = {"expectation": "violated" if found["violations"] else "satisfied"} if "expected" in found else {}
        yield _row(**facts, **{"class": class_name}, **{key: found.get(key) for key in NUMBERS}, **judged)
    if not prediction.report:
        yield _row(**facts)


def _row(**cells: Any) -> Sequence[Any]:
    return [cells.get(column) for column in COLUMNS]


def mask_name(prediction: Prediction) -> str | None:
    """Where the archive has the mask of a prediction; None when there is none."""
    mask = prediction.artifacts.get("mask")
    return f"masks/{prediction.image_id}{EXTENSIONS[mask['media_type']]}" if mask else None


def _predictions(services: Services, job: Job) -> Iterator[tuple[Prediction, str]]:
    """The predictions of a job with the names of their images, `ROWS` in memory at a time."""
    after: UUID | None = None
    while True:
        query = (
            predictions.owned(job.project_id, job_id=job.id)
            .add_columns(Image.name)
            .join(Image, Image.id == Prediction.image_id)
        )
        query = query if after is None else query.where(Prediction.id > after)
        with services.database.read() as session:
            found = session.execute(query.order_by(Prediction.id).limit(ROWS)).all()
        if not found:
            return
        yield from ((row[0], row[1]) for row in found)
        after = found[-1][0].id


def _names(services: Services, job: Job, ids: Collection[UUID]) -> dict[UUID, str]:
    with services.database.read() as session:
        return {
            row.id: row.name
            for row in session.execute(
                select(Image.id, Image.name).where(Image.project_id == job.project_id, Image.id.in_(ids))
            )
        }


FACTS = ("mean", "sd", "rank", "images", "difference", "low", "high", "p", "p_holm", "better", "worse")
"""Columns of a comparison for each metric."""


def comparison(table: Comparison) -> Iterator[str]:
    """A row for each candidate and metric, as lines of CSV; empty where there is nothing to say."""
    about = ("candidate", "measured_on", "baseline", "trainings", "measured", "seconds_per_step", "peak_bytes")
    yield _line((*about, "metric", *FACTS))
    sets = [("held out", table.candidates)]
    if table.shifted is not None:
        sets.append((table.shifted.dataset, table.shifted.candidates))
    for name, rows in sets:
        for row in rows:
            facts = (row.name, name, row.baseline, row.trainings, row.measured, row.seconds_per_step, row.peak_bytes)
            yield from _figures(facts, row.figures)
    for control in table.controls:
        yield from _figures((control.name, "held out", *[None] * 5), control.figures)


def _figures(facts: Sequence[Any], figures: Mapping[str, CandidateFigure]) -> Iterator[str]:
    for metric, figure in figures.items():
        cells = {"mean": figure.spread.mean, "sd": figure.spread.sd, "rank": figure.rank}
        if (contrast := figure.contrast) is not None:
            cells |= contrast.model_dump() | {"difference": contrast.mean, "mean": figure.spread.mean}
        yield _line((*facts, metric, *(cells.get(name) for name in FACTS)))
    if not figures:
        yield _line(facts)


def _line(row: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([_cell(value) for value in row])
    return line.getvalue()


def _cell(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value


# The archive --------------------------------------------------------------------------------------------------------


def archive(services: Services, job: Job) -> Iterator[bytes]:
    """The table and the masks it names as a zip archive, piece by piece.

    Masks first, so that the table can say which of them could not be read.
    """
    outbox, damaged = Outbox(), dict[UUID, Problem]()
    with zipfile.ZipFile(outbox, "w") as target:
        for prediction, _ in _predictions(services, job):
            if (name := mask_name(prediction)) is None:
                continue
            mask = prediction.artifacts["mask"]
            try:
                services.blobs.verify(job.project_id, mask["sha256"])
            except Problem as problem:
                damaged[prediction.id] = problem
                continue
            with target.open(entry(name, mask["bytes"]), "w") as file:
                for piece in services.blobs.chunks(job.project_id, mask["sha256"]):
                    file.write(piece)
                    yield outbox.take()
        with target.open(entry("results.csv", 0, zipfile.ZIP_DEFLATED), "w", force_zip64=True) as file:
            for row in rows(services, job, damaged):
                file.write(_line(row).encode())
                yield outbox.take()
    yield outbox.take()
