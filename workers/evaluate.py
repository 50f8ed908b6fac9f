"""The evaluate job: metrics of a model on every item of a dataset.

The predictions behind the metrics are stored too, so that a page can show where they differ from the reference.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import imaging
from app.store import measurements, predictions
from app.store.tables import DatasetVersion, Job, Measurement, ModelVersion
from workers.items import ItemRows, dataset_version, pairs_of, read_pair
from workers.predict import answered, stored
from workers.work import Failed, Work


def evaluate(work: Work) -> None:
    """Measure a model version on a dataset version; items that an earlier attempt measured are not measured again."""
    spec = work.claim.spec
    with work.database.read() as session:
        network = session.get_one(ModelVersion, uuid.UUID(spec["model_version_id"]))
        version = dataset_version(session, spec["dataset_version_id"])
        pairs = [
            pair
            for pair in pairs_of(session, version)
            if pair.item.mask_sha256 and spec["split"] in (None, pair.item.split)
        ]
        measured = set(session.scalars(select(Measurement.image_id).where(Measurement.job_id == work.claim.id)))
    _refuse_other_classes(spec, network, version)
    work.heartbeat.progress(phase="measure", step=0, steps=len(pairs))
    for number, pair in enumerate(pairs, start=1):
        work.heartbeat.check()
        if pair.image.id in measured:
            continue
        _measure(work, network, pair, version)
        measured.add(pair.image.id)
        work.heartbeat.progress(step=number, fraction=number / len(pairs))

    def rows(session: Session) -> dict[str, Any]:
        return {"means": measurements.means(session, session.get_one(Job, work.claim.id)), "items": len(measured)}

    work.finish(rows)


def _measure(work: Work, network: ModelVersion, pair: ItemRows, version: DatasetVersion) -> None:
    from app.serving import answers
    from app.serving.prediction import Question
    from topology.metrics import EXACT  # compiled code, which only this job kind needs

    picture, reference = read_pair(work, pair, version)
    assert reference is not None  # only images with a mask are measured
    answer = answered(work, network, picture, Question(threshold=work.claim.spec["threshold"]))
    said = answer.segmentation
    rules = work.claim.spec.get("rules", ())  # absent from the jobs of an older gateway
    figures = answers.measurements(said.labels, reference, said.classes, picture.spacing_mm, rules)
    kept = (
        imaging.encode_nifti_gz(reference, picture.affine, forms=picture.forms)
        if picture.is_volume
        else imaging.encode_png(reference)
    )
    reference_sha256, _ = work.blobs.put(work.claim.project_id, kept)
    columns = stored(work, network, pair.image, answer)

    def rows(session: Session, job: Job) -> None:
        row = predictions.add(session, **columns, reference_sha256=reference_sha256)
        about = {"job_id": job.id, "item_name": pair.item.name}
        convention = {"metric_spec": EXACT.as_dict(), "metric_digest": EXACT.digest()}
        measurements.record_of(session, row, figures, **about, **convention)

    work.write(rows)


def _refuse_other_classes(spec: dict[str, Any], network: ModelVersion, version: DatasetVersion) -> None:
    """With two classes foreground is foreground, whatever it is called; of several, equal positions must mean equal
    things.
    """
    ours, theirs = network.manifest["classes"], version.classes
    if len(ours) != len(theirs) or (len(ours) > 2 and ours != theirs):
        raise Failed(
            "input_invalid",
            f"{spec['model']} tells {', '.join(ours)} apart and {spec['dataset']} labels {', '.join(theirs)}. Evaluate"
            " it on data with the same classes.",
        )
