"""Sample content for pages: images, a dataset, jobs in every state, two models.

Everything is put straight into the tables and the blob store; figures are measured, not invented. The network behind
the models is a real ONNX file (a blur with a threshold), so that the try-it form answers.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
from PIL import Image as Pillow, ImageDraw, ImageFilter
from scipy.ndimage import label
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from app import imaging
from app.metric_table import METRICS
from app.schemas.jobs import TrainSpec
from app.services import Services
from app.serving import answers
from app.store import keys, models, projects
from app.store.session import clock
from app.store.tables import (
    Checkpoint,
    Dataset,
    DatasetItem,
    DatasetVersion,
    Image,
    Job,
    JobEvent,
    Measurement,
    Model,
    ModelVersion,
    Prediction,
    Worker,
    now,
)
from tests.serving.networks import blur, manifest

CLASSES = ["background", "vessel"]
NASTY = '<script>alert("x")</script>.png'
"""A file name that must be shown and never run."""
STEPS = 1000


def vessels(seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey image (side, side) uint8 of a branching tree on uneven light, and its mask of 0 and 1."""
    rng = np.random.default_rng(seed)
    mask = Pillow.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    for turn in range(3):
        angle = 2.1 * turn + rng.uniform(0, 1.2)
        start = side / 2 + side * 0.5 * np.array([math.cos(angle), math.sin(angle)])
        _grow(pen, rng, start, angle + math.pi + rng.normal(0, 0.25), side / 50, side)
    truth = np.asarray(mask) > 0
    rows, columns_ = np.mgrid[:side, :side] / side
    light = 118 + 46 * np.cos(2.4 * (rows - rng.uniform(0.3, 0.7))) * np.cos(2.1 * (columns_ - rng.uniform(0.3, 0.7)))
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(1.1)), float) / 255
    image = light + 64 * soft + rng.normal(0, 7, (side, side))
    return image.clip(0, 255).astype(np.uint8), truth.astype(np.uint8)


def _grow(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, at: np.ndarray, angle: float, width: float, side: int
) -> None:
    while width > 1.6:
        for _ in range(int(rng.integers(4, 9))):
            angle += rng.normal(0, 0.16)
            to = at + side / 46 * np.array([math.cos(angle), math.sin(angle)])
            pen.line([*at, *to], fill=255, width=max(1, round(width)))
            pen.ellipse([*(to - width / 2), *(to + width / 2)], fill=255)
            at = to
            if not (-20 < at[0] < side + 20 and -20 < at[1] < side + 20):
                return
        width *= 0.86
        if rng.random() < 0.75:
            _grow(pen, rng, at, angle + rng.choice([-1, 1]) * rng.uniform(0.5, 0.95), width * 0.66, side)


def broken(truth: np.ndarray, seed: int, gaps: int | None = None, specks: int = 5) -> np.ndarray:
    """A prediction with the right pixels nearly everywhere: small gaps cut the vessels, small specks appear."""
    rng = np.random.default_rng(seed)
    made, spots = truth.copy(), np.argwhere(truth)
    radius = max(2, len(truth) // 90)
    for row, column in spots[rng.integers(0, len(spots), len(truth) // 24 if gaps is None else gaps)]:
        made[max(0, row - radius) : row + radius, max(0, column - radius) : column + radius] = 0
    for row, column in rng.integers(0, len(truth) - 4, (specks, 2)):
        made[row : row + 3, column : column + 3] = 1
    return made


def thick(truth: np.ndarray, seed: int) -> np.ndarray:
    """A prediction with as many wrong pixels as `broken`, nearly all of them at the rim, where they change no Betti
    number.
    """
    rng = np.random.default_rng(seed)
    made, wrong = broken(truth, seed + 1000, gaps=1, specks=1), int((broken(truth, seed) != truth).sum())
    grown = np.asarray(Pillow.fromarray(truth * np.uint8(255)).filter(ImageFilter.MaxFilter(3))) > 0
    rim = np.argwhere(grown & (made == 0))
    rim = rim[((rim > 0) & (rim < len(truth) - 1)).all(axis=1)]
    for row, column in rim[rng.permutation(len(rim))]:
        if int((made != truth).sum()) >= wrong:
            break
        around = made[row - 1 : row + 2, column - 1 : column + 2].copy()
        made[row, column] = _is_simple(around)
    return made


def _is_simple(around: np.ndarray) -> bool:
    """Whether filling the middle of a 3 x 3 window changes no Betti number: one piece of foreground around it, one of
    background beside it.
    """
    around[1, 1] = 0
    pieces = label(around, np.ones((3, 3)))[1]
    around[1, 1] = 1
    beside = label(around == 0)[0]
    return pieces == 1 and len({int(beside[place]) for place in ((0, 1), (1, 0), (1, 2), (2, 1))} - {0}) == 1


@dataclass
class Gallery:
    """Ids of the stored content."""

    key: str = ""
    viewer_key: str = ""
    stranger_key: str = ""
    project_id: uuid.UUID = field(default_factory=uuid.uuid4)
    images: list[uuid.UUID] = field(default_factory=list)
    jobs: dict[str, uuid.UUID] = field(default_factory=dict)
    predictions: dict[str, list[uuid.UUID]] = field(default_factory=dict)
    foreign: dict[str, uuid.UUID] = field(default_factory=dict)


class Curator:
    """Puts things into one project."""

    def __init__(self, services: Services, session: Session, project_id: uuid.UUID):
        self.services, self.session, self.project_id = services, session, project_id

    def add(self, row: Any) -> Any:
        """The row, with its id."""
        row.project_id = self.project_id
        self.session.add(row)
        self.session.flush()
        return row

    def put(self, content: bytes) -> dict[str, Any]:
        """Where the bytes are, as an artifact names them."""
        sha256, size = self.services.blobs.put(self.project_id, content)
        return {"sha256": sha256, "bytes": size, "media_type": "image/png"}

    def image(self, pixels: np.ndarray, name: str, spacing_mm: list[float] | None = None) -> Image:
        """A stored PNG."""
        kept = self.put(imaging.encode_png(pixels))
        facts = {
            "format": "png",
            "dimensions": 2,
            "channels": 1,
            "shape": list(pixels.shape),
            "dtype": "uint8",
            "spacing_mm": spacing_mm,
        }
        return self.add(Image(sha256=kept["sha256"], bytes=kept["bytes"], name=name, **facts))

    def dataset(self, name: str, pairs: Sequence[tuple[Image, np.ndarray]]) -> DatasetVersion:
        """A dataset of images and masks of 0 and 1, counted as an upload would be."""
        sources = [
            imaging.Pair(
                image.name,
                "train" if index % 4 else "test",
                partial(imaging.encode_png, self._pixels(image)),
                partial(imaging.encode_png, mask * np.uint8(255)),
            )
            for index, (image, mask) in enumerate(pairs)
        ]
        seen = imaging.examine(sources, self.services.settings, imaging.LabelMap.parse({"vessel": 255}))
        dataset = self.add(Dataset(name=name, last_version=1))
        version = self.add(
            DatasetVersion(
                dataset_id=dataset.id,
                number=1,
                digest=hashlib.sha256(name.encode()).hexdigest(),
                classes=seen.classes,
                label_map={
                    name: values if isinstance(values, list) else [values]
                    for name, values in seen.label_map.as_dict().items()
                },
                channels=seen.channels,
                dimensions=seen.dimensions,
                statistics=seen.statistics,
                warnings=seen.warnings,
            )
        )
        ids = sorted((uuid7() for _ in pairs), reverse=True)  # as uploads make them: lists show the newest id first
        for position, ((image, mask), item) in enumerate(zip(pairs, seen.items, strict=True)):
            kept = self.put(imaging.encode_png(mask * np.uint8(255)))
            self.add(
                DatasetItem(
                    id=ids[position],
                    version_id=version.id,
                    position=position,
                    name=image.name,
                    image_id=image.id,
                    mask_sha256=kept["sha256"],
                    split=item.split,
                    group=None,
                    statistics=item.statistics,
                )
            )
        return version

    def _pixels(self, image: Image) -> np.ndarray:
        return imaging.decode(self.services.blobs.read(self.project_id, image.sha256), self.services.settings).pixels[0]

    def training(
        self, state: str, *, upto: int = STEPS, loss: dict[str, Any] | None = None, seed: int = 0, **columns_: Any
    ) -> Job:
        """A training with its story up to a step."""
        asked = {
            "kind": "train",
            "dataset": "vessels@1",
            "model": "vessels",
            "steps": STEPS,
            "seed": seed,
            "patch": [128, 128],
        } | ({"loss": loss} if loss else {})
        started = now() - timedelta(seconds=upto * 0.31 + 20)
        job = self.add(
            Job(
                kind="train",
                lane="train",
                state=state,
                spec=TrainSpec(**asked).model_dump(mode="json"),
                submitted_by="ts_ab12cd34",
                attempt=1 if upto else 0,
                started_at=started if upto else None,
                created_at=started - timedelta(seconds=3),
                step=upto or None,
                steps=STEPS if upto else None,
                fraction=upto / STEPS * 0.95,
                phase="train" if upto else None,
                seconds_per_step=0.31 if upto else None,
                **{
                    "worker": "gpu-1:4711" if state == "running" else None,
                    "eta_s": (STEPS - upto) * 0.31 if state == "running" else None,
                    **columns_,
                },
            )
        )
        self.tell(job, "state", {"state": "queued"}, started)
        if upto:
            self.tell(job, "state", {"state": "running", "worker": "gpu-1:4711"}, started)
            self.tell(
                job,
                "log",
                {"level": "info", "message": "32 training items, 8 validation items, 1 927 841 parameters on cpu"},
                started,
            )
        for step in range(5, upto + 1, 5):
            self.learn(job, step, seed, started)
        if state in ("succeeded", "failed", "cancelled", "interrupted"):
            job.finished_at = started + timedelta(seconds=upto * 0.31 + 12)
            self.tell(job, "state", {"state": state} | (job.error or {}), job.finished_at)
        return job

    def learn(self, job: Job, step: int, seed: int, started: Any) -> None:
        """The events of one step: progress, and now and then a validation or a checkpoint."""
        rng, left = np.random.default_rng([seed, step]), math.exp(-step / 260)
        at = started + timedelta(seconds=step * 0.31)
        terms = {
            "cross_entropy": 0.10 + 0.5 * left + rng.normal(0, 0.012),
            "dice": 0.14 + 0.7 * left + rng.normal(0, 0.02),
        }
        if len(job.spec["loss"]["terms"]) > 2:
            terms["skeleton_hard_pixels"] = 0.05 + 0.3 * left + rng.normal(0, 0.01)
        self.tell(
            job,
            "progress",
            {
                "phase": "train",
                "step": step,
                "steps": STEPS,
                "fraction": step / STEPS * 0.95,
                "loss": sum(terms.values()),
                "terms": terms,
                "eta_s": (STEPS - step) * 0.31,
            },
            at,
        )
        if step % 100 == 0:
            figures = {
                "dice": 0.83 - 0.5 * left,
                "iou": 0.71 - 0.5 * left,
                "cldice": 0.86 - 0.6 * left + rng.normal(0, 0.006),
                "beta0_error": 4 + 40 * left + rng.uniform(0, 2),
                "beta1_error": 3 + 14 * left + rng.uniform(0, 1),
            }
            self.tell(job, "metric", {"step": step, "metrics": figures, "items": 8, "best": step != 500}, at)
        if step % 250 == 0:
            self.tell(job, "checkpoint", {"step": step, "bytes": 7_800_000}, at)

    def tell(self, job: Job, event: str, data: dict[str, Any], at: Any = None) -> None:
        """One line of a job's story."""
        job.events += 1
        self.session.add(
            JobEvent(
                job_id=job.id,
                number=job.events,
                project_id=self.project_id,
                event=event,
                attempt=job.attempt,
                data=data,
                created_at=at or now(),
            )
        )

    def version(self, model: Model, job: Job, data: DatasetVersion, metrics: dict[str, float]) -> ModelVersion:
        """A model version with a network that answers."""
        content = blur(gain=5.0 + model.last_version, offset=-4.0)
        kept = self.put(content)
        model.last_version += 1
        facts = manifest(
            content,
            verification={"items": 8, "max_difference": 3.1e-6, "tolerance": 1e-4, "mask_disagreements": 0},
            spec=job.spec,
        )
        version = self.add(
            ModelVersion(
                model_id=model.id,
                number=model.last_version,
                job_id=job.id,
                dataset_version_id=data.id,
                spec=job.spec,
                manifest=facts,
                metrics=metrics,
                onnx_sha256=kept["sha256"],
                onnx_bytes=kept["bytes"],
                weights_sha256=kept["sha256"],
                weights_bytes=kept["bytes"],
                training_s=322.4,
            )
        )
        job.result = {"model": model.name, "version": version.number, "metrics": metrics}
        job.fraction = 1.0
        return version

    def evaluation(
        self,
        version: ModelVersion,
        ref: str,
        data: DatasetVersion,
        answered: Sequence[tuple[Image, np.ndarray, np.ndarray]],
    ) -> list[Prediction]:
        """An evaluation with a prediction and a measurement for each (image, truth, mask)."""
        spec = {
            "kind": "evaluate",
            "model": ref,
            "dataset": "vessels@1",
            "split": None,
            "threshold": None,
            "model_version_id": str(version.id),
            "dataset_version_id": str(data.id),
        }
        job = self.add(
            Job(
                kind="evaluate",
                lane="quick",
                state="succeeded",
                spec=spec,
                fraction=1.0,
                attempt=1,
                started_at=now() - timedelta(seconds=9),
                finished_at=now(),
                result={"items": len(answered)},
            )
        )
        self.tell(job, "state", {"state": "succeeded"})
        return [self.prediction(version, image, mask, truth, job) for image, truth, mask in answered]

    def prediction(
        self,
        version: ModelVersion,
        image: Image,
        mask: np.ndarray,
        truth: np.ndarray | None = None,
        job: Job | None = None,
    ) -> Prediction:
        """A stored prediction; with a truth also its reference and its measurement."""
        skeleton = answers.skeleton(mask, CLASSES)
        artifacts = {
            "mask": self.put(imaging.encode_png(mask * np.uint8(255))),
            "skeleton": self.put(imaging.encode_png(skeleton * np.uint8(255))),
        }
        row = self.add(
            Prediction(
                model_version_id=version.id,
                image_id=image.id,
                job_id=job.id if job else None,
                threshold=0.5,
                report=answers.topology(mask, CLASSES, image.spacing_mm),
                artifacts=artifacts,
                timings_ms={
                    "decode": 2.2,
                    "normalise": 0.7,
                    "infer": 61.3,
                    "stitch": 0.5,
                    "topology": 5.9,
                    "encode": 1.2,
                },
                reference_sha256=self.put(imaging.encode_png(truth))["sha256"] if truth is not None else None,
            )
        )
        if truth is not None:
            for name, measured in answers.measurements(mask, truth, CLASSES, image.spacing_mm).items():
                self.add(
                    Measurement(
                        job_id=job.id if job else None,
                        model_version_id=version.id,
                        prediction_id=row.id,
                        image_id=image.id,
                        item_name=image.name,
                        class_name=name,
                        metric_spec={
                            "connectivity": "closed",
                            "threshold": 0.5,
                            "padding": "background",
                            "version": "1",
                        },
                        metric_digest="9b3f5c0a1d2e4f60",
                        **{key: value for key, value in measured.items() if key in METRICS},
                    )
                )
        return row


def hang(services: Services, *, pairs: int = 6, side: int = 160) -> Gallery:
    """Fill the installation and say what is where."""
    gallery = Gallery()
    with services.database.write() as session:
        gallery.key = keys.create(session, project="clinic", name="engineer", role="admin")
        gallery.viewer_key = keys.create(session, project="clinic", name="viewer", role="viewer")
        gallery.stranger_key = keys.create(session, project="elsewhere", name="stranger", role="admin")
        gallery.project_id = projects.ensure(session, "clinic").id
        _clinic(Curator(services, session, gallery.project_id), gallery, pairs, side)
        _elsewhere(Curator(services, session, projects.ensure(session, "elsewhere").id), gallery)
        _workers(session, gallery)
    return gallery


SKELETON_LOSS = {
    "terms": [{"name": "cross_entropy"}, {"name": "dice"}, {"name": "skeleton_hard_pixels", "weight": 0.5}]
}


def _clinic(curator: Curator, gallery: Gallery, pairs: int, side: int) -> None:
    drawn = [vessels(seed, side) for seed in range(pairs)]
    names = [f"retina-{index + 1:02d}.png" for index in range(pairs - 1)] + [NASTY]
    stored = [
        curator.image(pixels, name, [0.02, 0.02] if index == 0 else None)
        for index, ((pixels, _), name) in enumerate(zip(drawn, names, strict=True))
    ]
    gallery.images = [image.id for image in stored]
    data = curator.dataset("vessels", [(image, mask) for image, (_, mask) in zip(stored, drawn, strict=True)])
    model = curator.add(Model(name="vessels", last_version=0))
    for number, (loss, spoil) in enumerate(((None, broken), (SKELETON_LOSS, thick)), start=1):
        job = curator.training("succeeded", loss=loss, seed=number)
        gallery.jobs[f"trained-{number}"] = job.id
        predicted = [
            (image, truth, spoil(truth, index))
            for index, (image, (_, truth)) in enumerate(zip(stored, drawn, strict=True))
        ]
        figures = [answers.measurements(mask, truth, CLASSES, None)["vessel"] for _, truth, mask in predicted]
        means = {
            name: float(np.mean([each[name] for each in figures]))
            for name in ("dice", "iou", "cldice", "beta0_error", "beta1_error")
        }
        version = curator.version(model, job, data, means)
        models.move_alias(curator.session, model, "champion", version, who="ts_ab12cd34", gate=None, expected=None)
        made = curator.evaluation(version, f"vessels:{number}", data, predicted)
        gallery.predictions[f"vessels:{number}"] = [row.id for row in made]
    gallery.jobs["running"] = curator.training("running", upto=420, loss=SKELETON_LOSS, seed=3).id
    gallery.jobs["queued"] = curator.training("queued", upto=0).id
    error = {
        "code": "diverged",
        "detail": (
            "The loss became infinite at step 85. Lower the learning rate (0.01 now), or leave skeleton_hard_pixels out"
            " until step 500."
        ),
    }
    gallery.jobs["failed"] = curator.training("failed", upto=85, seed=4, error=error).id
    gallery.jobs["cancelled"] = curator.training("cancelled", upto=40, seed=5).id
    interrupted = curator.training("interrupted", upto=600, seed=6, keep=True)
    curator.add(Checkpoint(job_id=interrupted.id, step=500, sha256="0" * 64, bytes=7_800_000))
    gallery.jobs["interrupted"] = interrupted.id


def _elsewhere(curator: Curator, gallery: Gallery) -> None:
    pixels, mask = vessels(99, 64)
    image = curator.image(pixels, "secret-patient.png")
    data = curator.dataset("hidden", [(image, mask), (curator.image(pixels.T.copy(), "second.png"), mask.T.copy())])
    job = curator.training("succeeded", upto=5)
    version = curator.version(curator.add(Model(name="hidden", last_version=0)), job, data, {"dice": 0.5})
    prediction = curator.prediction(version, image, mask, mask)
    gallery.foreign = {"image": image.id, "job": job.id, "prediction": prediction.id}


def _workers(session: Session, gallery: Gallery) -> None:
    for lane in ("train", "quick"):
        session.add(
            Worker(
                id="gpu-1:4711",
                lane=lane,
                seen_at=clock() - 2,
                job_id=gallery.jobs["running"] if lane == "train" else None,
                device="NVIDIA H200",
            )
        )
    session.add(Worker(id="old-box:90", lane="quick", seen_at=clock() - 600, job_id=None, device="cpu"))
