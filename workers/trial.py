"""What a training of a comparison leaves: figures of every held-out image, no version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from app.comparison.table import means_over_classes
from app.queue import storable
from app.store import measurements
from workers.items import dataset_version, pairs_of
from workers.work import Crashed, Work

if TYPE_CHECKING:
    from workers.supervise import Event


def keep_figures(work: Work, done: Event) -> None:
    """Store the figures of each image that the training held out, and finish the job with their means.

    A shared pre-training keeps none: it is not a candidate.
    """
    from topology.metrics import EXACT  # compiled code, which only a measurement needs

    measured: list[dict[str, Any]] | None = done.get("items")
    if measured is None:
        raise Crashed("the training did not say what it measured")
    candidate = work.claim.spec["trial"]["candidate"]

    def rows(session: Session) -> dict[str, Any]:
        version = dataset_version(session, work.claim.spec["dataset_version_id"])
        images = {pair.item.name: pair.image.id for pair in pairs_of(session, version)}
        convention = {"metric_spec": EXACT.as_dict(), "metric_digest": EXACT.digest()}
        whose = {"project_id": work.claim.project_id, "job_id": work.claim.id} | convention
        known = set()
        for item in measured if candidate is not None else ():
            image = images.get(item["id"])
            if image is None or image in known:
                continue  # it was deleted meanwhile, or is in the dataset twice
            known.add(image)
            figures = {name: storable(values) for name, values in item["figures"].items()}
            measurements.record(session, figures, image_id=image, item_name=item["id"], **whose)
        return {
            "candidate": candidate,
            "images": len(known),
            "metrics": done["metrics"] or {},
            "shifted": _means(done.get("shifted")),
            "controls": {name: _means(items) for name, items in (done.get("controls") or {}).items()},
            "peak_bytes": done.get("peak_bytes"),
        }

    work.finish(rows)


def _means(items: list[dict[str, Any]] | None) -> dict[str, dict[str, float]]:
    """{item: {metric: mean over its classes}}: what is measured beside the held-out images."""
    return {item["id"]: means_over_classes(list(item["figures"].values())) for item in items or ()}
