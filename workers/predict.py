"""The predict job: many images through one network, the bad ones noted."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import NotFound, Problem, StorageFull, Unavailable
from app.imaging import Picture
from app.queue import CancelRequested, LeaseLost
from app.store import images as stored_images, predictions
from app.store.tables import Image, ModelVersion, Prediction
from workers.heartbeat import DATABASE_ERRORS, WorkerStops
from workers.items import dataset_version, pairs_of, picture_of
from workers.work import Failed, Work

if TYPE_CHECKING:
    from app.serving.prediction import Answer, Question

log = structlog.get_logger()

NOT_THE_IMAGES = (Unavailable, StorageFull, LeaseLost, CancelRequested, WorkerStops, *DATABASE_ERRORS)
"""What ends or interrupts the whole job; everything else is the fault of one image and is noted beside it."""


def predict(work: Work) -> None:
    """Predict and store every image once; those that an earlier attempt predicted are not predicted again."""
    spec, project_id = work.claim.spec, work.claim.project_id
    with work.database.read() as session:
        network = session.get_one(ModelVersion, uuid.UUID(spec["model_version_id"]))
        images = _images(session, work)
        ready = set(session.scalars(select(Prediction.image_id).where(Prediction.job_id == work.claim.id)))
    work.installation.registry.get(
        project_id, network
    )  # a network that cannot be loaded fails the job, not every image
    question = _question(spec, network)
    work.heartbeat.progress(phase="predict", step=0, steps=len(images))
    failed = []
    for number, (image_id, image) in enumerate(images.items(), start=1):
        work.heartbeat.check()
        if image_id not in ready:
            try:
                _predict(work, network, existing(image), question)
            except NOT_THE_IMAGES:
                raise
            except Exception as error:
                failed.append(_noted(work, image_id, error))
        work.heartbeat.progress(step=number, fraction=number / len(images))
    if failed and len(images) == 1:
        raise Failed(failed[0]["code"], failed[0]["detail"])  # a job of one image ends as its image does
    work.finish(
        lambda session: (
            {"items": len(images) - len(failed), "failed": failed} | (_only(session, work) if len(images) == 1 else {})
        )
    )


def _question(spec: dict[str, Any], network: ModelVersion) -> Question:
    """What the job asks about each image; jobs that were queued before something could be asked do not ask it."""
    from app.serving.prediction import Question, expected_of
    from app.serving.registry import read_manifest

    return Question(
        threshold=spec["threshold"],
        probability=True,
        uncertainty=True,
        topology=spec["topology"],
        margins=spec.get("margins", False),
        expected=expected_of(spec.get("expect"), read_manifest(network)),
        strict=spec.get("strict", False),
        repair=spec.get("repair", False),
        repair_margin=spec.get("repair_margin"),
        other_spacing=spec.get("other_spacing", "resample"),
    )


def _noted(work: Work, image_id: uuid.UUID, error: Exception) -> dict[str, str]:
    """Why an image has no prediction, for its submitter; what nobody foresaw goes to the log as well."""
    if isinstance(error, Problem):
        code, detail = error.code, error.detail
    elif isinstance(error, MemoryError):
        code, detail = (
            "resource_exhausted",
            "The image needed more memory than there is. Send a smaller one, or run the job on a larger machine.",
        )
    else:
        log.error("image_failed", image=str(image_id), exc_info=error)
        code, detail = (
            "internal",
            f"Something went wrong on our side. The worker's log has the details under job {work.claim.id}.",
        )
    work.heartbeat.record("log", level="warning", message=f"Image {image_id}: {detail}", code=code)
    return {"image": str(image_id), "code": code, "detail": detail}


def _only(session: Session, work: Work) -> dict[str, str]:
    """The prediction of a job of one image."""
    return {"prediction": str(session.scalars(select(Prediction.id).where(Prediction.job_id == work.claim.id)).one())}


def _images(session: Session, work: Work) -> dict[uuid.UUID, Image | None]:
    """The images by id, each once; None for one that was deleted since the job was sent."""
    spec = work.claim.spec
    if spec.get("dataset_version_id"):
        return {
            pair.image.id: pair.image
            for pair in pairs_of(session, dataset_version(session, spec["dataset_version_id"]))
        }
    return find_images(session, work.claim.project_id, spec["images"])


def find_images(session: Session, project_id: uuid.UUID, ids: Sequence[str]) -> dict[uuid.UUID, Image | None]:
    """The images of these ids in their order, each once; None for one that does not exist."""
    wanted = [uuid.UUID(image_id) for image_id in ids]
    found = stored_images.by_id(session, project_id, wanted)
    return {image_id: found.get(image_id) for image_id in wanted}


def existing(image: Image | None) -> Image:
    """The image; NotFound when it was deleted."""
    if image is None:
        raise NotFound("The image was deleted after the job was sent.")
    return image


def _predict(work: Work, network: ModelVersion, image: Image, question: Question) -> None:
    columns = stored(work, network, image, answered(work, network, picture_of(work, image), question))
    work.write(lambda session, job: _add(session, columns))


def _add(session: Session, columns: dict[str, Any]) -> None:
    # Held until the row that names it is there: an image may be deleted while it is being predicted.
    existing(session.get(Image, columns["image_id"], with_for_update={"read": True, "key_share": True}))
    predictions.add(session, **columns)


def answered(work: Work, network: ModelVersion, picture: Picture, question: Question) -> Answer:
    """What the network says, unless the job shall stop meanwhile."""
    from app.serving import prediction  # and with it ONNX Runtime, which trainings do not need
    from app.serving.pipeline import Stop, Stopped

    stop = Stop()
    predictor = work.installation.registry.get(work.claim.project_id, network)
    with work.heartbeat.on_stop(stop.ask):
        try:
            return prediction.ask(predictor, picture, question, stop=stop)
        except Stopped:
            work.heartbeat.check()
            raise


def stored(work: Work, network: ModelVersion, image: Image, answer: Answer) -> dict[str, Any]:
    """The columns of a prediction whose artifacts have been stored."""
    from app.serving import prediction

    project_id, png_level = work.claim.project_id, work.settings.png_level
    columns = prediction.stored(answer, network, work.blobs, project_id, png_level=png_level)
    return columns | {"job_id": work.claim.id, "image_id": image.id}
