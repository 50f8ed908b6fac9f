"""The compare job: says what its trainings found, once all of them have ended."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.comparison.table import compared, means_over_classes, winner
from app.store import children
from app.store.tables import Checkpoint, Job
from workers.items import dataset_version, pairs_of, read_pair
from workers.work import Failed, Work


def compare(work: Work) -> None:
    """Compare the figures of the trainings and drop their checkpoints; one that failed is a row with its reason."""
    work.heartbeat.progress(phase="compare")
    with work.database.read() as session:
        table = compared(session, session.get_one(Job, work.claim.id))
    if not table.candidates[0].measured:
        raise Failed("baseline_failed", table.verdict)
    beside = _second_observer(work)

    def rows(session: Session) -> dict[str, Any]:
        jobs = children.of(session, session.get_one(Job, work.claim.id))
        failed = [job for job in jobs if job.state != "succeeded"]
        if not failed:  # else they are what a resumed training starts from
            session.execute(delete(Checkpoint).where(Checkpoint.job_id.in_([job.id for job in jobs])))
        return {
            "verdict": table.verdict,
            "baseline": table.baseline,
            "winner": winner(table),
            "helps": table.helps,
            "trainings": len(jobs),
            "failed": len(failed),
            "images": table.images,
        } | beside

    work.finish(rows)


def _second_observer(work: Work) -> dict[str, Any]:
    """{"second_observer": {item: figures}}: masks of a second person against those of the dataset, image by image; {}
    where the comparison names none.
    """
    spec = work.claim.spec
    if spec.get("second_observer_version_id") is None:
        return {}
    from app.serving.answers import measurements  # compiled code, which only this needs

    with work.database.read() as session:
        first = dataset_version(session, spec["dataset_version_id"])
        second = dataset_version(session, spec["second_observer_version_id"])
        drawn = {pair.image.id: pair for pair in pairs_of(session, second) if pair.item.mask_sha256 is not None}
        pairs = [
            (pair, drawn[pair.image.id])
            for pair in pairs_of(session, first)
            if pair.item.mask_sha256 is not None and pair.image.id in drawn
        ]
    found = {}
    for number, (pair, other) in enumerate(pairs):
        work.heartbeat.check()
        picture, reference = read_pair(work, pair, first)
        _, labels = read_pair(work, other, second)
        assert reference is not None and labels is not None  # only images with both masks are here
        figures = measurements(labels, reference, first.classes, picture.spacing_mm)
        found[pair.item.name] = means_over_classes(list(figures.values()))
        work.heartbeat.progress(fraction=(number + 1) / len(pairs))
    return {"second_observer": found}
