"""The analyse job: topology of stored masks, and metrics where references are given."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from app import imaging
from app.errors import Problem, Unavailable
from app.imaging import Picture
from app.imaging.foreground import foreground
from app.imaging.spacing import sized
from app.store import measurements
from app.store.tables import Image
from workers.predict import existing, find_images
from workers.work import Work

CLASSES = ("background", "foreground")

Figures = dict[str, dict[str, Any]]


def analyse(work: Work) -> None:
    """Analyse every image; a bad one is noted and does not stop the others.

    The result holds one report for each image.
    """
    spec, project_id = work.claim.spec, work.claim.project_id
    asked = list(zip(spec["images"], spec["references"] or [None] * len(spec["images"]), strict=True))
    with work.database.read() as session:
        images = find_images(session, project_id, [each for pair in asked for each in pair if each])
    work.heartbeat.progress(phase="measure", step=0, steps=len(asked))
    reports: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    first: Problem | None = None
    for number, (image_id, reference_id) in enumerate(asked, start=1):
        work.heartbeat.check()
        try:
            reports.append(_analyse(work, images, image_id, reference_id))
        except Unavailable:
            raise
        except Problem as problem:
            first = first or problem
            failed.append({"image": image_id, "code": problem.code, "detail": problem.detail})
            work.heartbeat.record(
                "log", level="warning", message=f"Image {image_id}: {problem.detail}", code=problem.code
            )
        work.heartbeat.progress(step=number, fraction=number / len(asked))
    if first is not None and not reports:
        raise first  # a job that analysed nothing did not succeed

    def rows(session: Session) -> dict[str, Any]:
        _measurements(session, work, reports)
        return {"items": len(reports), "failed": failed, "reports": reports}

    work.finish(rows)


def _analyse(
    work: Work, images: dict[uuid.UUID, Image | None], image_id: str, reference_id: str | None
) -> dict[str, Any]:
    from app.serving import answers

    threshold = work.claim.spec["threshold"]
    picture = _map_of(work, images[uuid.UUID(image_id)])
    mask = foreground(picture, threshold).astype(np.uint8)
    topology = answers.topology(mask, CLASSES, picture.spacing_mm)["foreground"]
    topology["components"] = len(topology["components"])  # of thousands of images, the sizes of each would be too much
    report = {"image": image_id, "topology": topology}
    if reference_id is None:
        return report
    placed = imaging.onto(_map_of(work, images[uuid.UUID(reference_id)]), picture, what="reference")
    reference = foreground(placed, threshold).astype(np.uint8)
    return report | {
        "reference": reference_id,
        "metrics": answers.measurements(mask, reference, CLASSES, picture.spacing_mm)["foreground"],
    }


def _map_of(work: Work, image: Image | None) -> Picture:
    row = existing(image)
    return sized(imaging.decode_map(work.blobs.read(work.claim.project_id, row.sha256), work.settings), row.spacing_mm)


def _measurements(session: Session, work: Work, reports: list[dict[str, Any]]) -> None:
    from topology.metrics import EXACT

    for report in {report["image"]: report for report in reports if "metrics" in report}.values():
        measurements.record(
            session,
            {"foreground": report["metrics"]},
            project_id=work.claim.project_id,
            job_id=work.claim.id,
            image_id=uuid.UUID(report["image"]),
            metric_spec=EXACT.as_dict(),
            metric_digest=EXACT.digest(),
        )
