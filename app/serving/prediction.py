"""Predicts one image, for requests, jobs and other protocols alike.

predict (tiles, threshold) -> examine (repair, count, compare with what was expected) -> make artifacts -> store them.
Callers bring the decoded image and write the row, in a transaction of their own.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from app.imaging import Picture
from app.serving import answers, expectations, repair
from app.serving.answers import Artifact
from app.serving.contract import Manifest
from app.serving.expectations import Expected
from app.serving.matching_grid import OtherSpacing, matched
from app.serving.pipeline import Predictor, Segmentation, Stop, Stopwatch
from app.store.blobs import Blobs
from app.store.tables import ModelVersion

Report = dict[str, dict[str, Any]]
"""What was counted, expected and edited, by class."""


@dataclass(frozen=True)
class Question:
    """What is asked of a network about one image; everything but `topology` alone brings the report along."""

    threshold: float | None = None
    """Probability above which a pixel is foreground; None: the manifest's."""
    probability: bool = False
    """Whether the map is wanted itself, and not only what follows from it."""
    uncertainty: bool = False
    """Whether the uncertainty is wanted, which some networks compute with a threshold of their own."""
    topology: bool = False
    margins: bool = False
    expected: Expected = field(default_factory=dict)
    strict: bool = False
    repair: bool = False
    repair_margin: float | None = None
    by_plane: bool = False
    """Whether a network for images is asked about each plane of a volume, instead of refusing it."""
    other_spacing: OtherSpacing = "resample"
    """What is done with an image whose pixels are of another size than in training."""

    @property
    def needs_report(self) -> bool:
        """Whether anything must be counted."""
        return self.topology or self.margins or self.repair or bool(self.expected)

    @property
    def needs_map(self) -> bool:
        """Whether the probability is needed, and not only the mask."""
        return self.probability or self.uncertainty or self.margins or self.repair or bool(self.expected)


def expected_of(text: str | None, manifest: Manifest) -> Expected:
    """What a text such as `beta0:1` expects of the classes of a network; Invalid where it cannot be."""
    return expectations.read(text, manifest.classes, manifest.dimensions) if text else {}


@dataclass(frozen=True)
class Answer:
    """What was found out about one image."""

    picture: Picture
    """Without its pixels."""
    segmentation: Segmentation
    """Its mask repaired where that was asked for."""
    report: Report | None
    """None when nothing asks for one."""
    persistence_threshold: tuple[float, float] | None
    """What persistence a ridge of this image needs, where uncertainty was asked for and the network says so."""
    phases: Stopwatch

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds by phase, those of the segmentation and those of `phases`."""
        return self.segmentation.timings_ms | self.phases.spent_ms

    def artifact(self, name: str, media_type: str, png_level: int) -> Artifact:
        """One artifact by its name in one form."""
        return answers.artifact(
            name,
            self.segmentation,
            self.picture,
            media_type,
            png_level=png_level,
            persistence_threshold=self.persistence_threshold,
        )


def ask(
    predictor: Predictor,
    picture: Picture,
    question: Question,
    *,
    stop: Stop | None = None,
    phases: Stopwatch | None = None,
) -> Answer:
    """What one network says about one image.

    phases  gets the milliseconds of repairing, counting and encoding; None: a new one
    The image is brought to the orientation and pixel size of training, and the answer back to its grid.
    Raises what `Predictor.predict` and `matched` do, RepairFailed, and ExpectationViolated where `question.strict`.
    """
    phases, stop = phases or Stopwatch(), stop or Stop()
    original = _predicted(predictor, picture, question, stop)
    stop.check()
    segmentation, report = _examined(original, question, picture, phases)
    stop.check()
    persistence = None
    if question.uncertainty:
        with phases("encode"):
            persistence = predictor.persistence_threshold(
                matched(picture, predictor.manifest, question.other_spacing).picture, stop=stop
            )
    return Answer(picture.without_pixels(), segmentation, report, persistence, phases)


def _predicted(predictor: Predictor, picture: Picture, question: Question, stop: Stop) -> Segmentation:
    """What the network says, of a volume plane by plane where that was asked for."""

    def ask(picture: Picture) -> Segmentation:
        seen = matched(picture, predictor.manifest, question.other_spacing)
        wants_map = question.needs_map or seen.resampled
        return seen.back(
            predictor.predict(seen.picture, threshold=question.threshold, probability=wants_map, stop=stop)
        )

    if not (question.by_plane and picture.is_volume and predictor.manifest.dimensions == 2):
        return ask(picture)
    planes = [ask(picture.plane(number)) for number in range(picture.planes)]
    maps = [plane.probability for plane in planes if plane.probability is not None]
    spent = Counter[str]()
    for plane in planes:
        spent.update(plane.timings_ms)
    return replace(
        planes[0],
        labels=np.stack([plane.labels for plane in planes]),
        probability=np.stack(maps, axis=1) if maps else None,
        tiles=sum(plane.tiles for plane in planes),
        timings_ms=dict(spent),
    )


def _examined(
    original: Segmentation, question: Question, picture: Picture, phases: Stopwatch
) -> tuple[Segmentation, Report | None]:
    """The segmentation, repaired where that was asked for, and the topology report by class."""
    segmentation, edits = original, None
    if question.repair:
        with phases("repair"):
            repaired = repair.repaired(original, question.expected, question.repair_margin)
            segmentation, edits = repaired.prediction, repaired.edits
    if not question.needs_report:
        return segmentation, None
    with phases("topology"):
        labels = segmentation.labels
        report = answers.topology(labels, segmentation.classes, picture.spacing_mm)
        answers.judged(report, original, labels, margins=question.margins, expected=question.expected, edits=edits)
        if question.strict:
            expectations.insist(report)
    return segmentation, report


def stored(
    answer: Answer, version: ModelVersion, blobs: Blobs, project_id: uuid.UUID, *, png_level: int
) -> dict[str, Any]:
    """Store every artifact of an answer; the columns of its row, but those that say of which image and job it is."""
    made = answers.artifacts(
        answer.segmentation, answer.picture, png_level=png_level, persistence_threshold=answer.persistence_threshold
    )
    artifacts = {}
    for name, artifact in made.items():
        sha256, size = blobs.put(project_id, artifact.content)
        artifacts[name] = {"sha256": sha256, "bytes": size, "media_type": artifact.media_type}
    threshold = answer.segmentation.threshold
    return {
        "project_id": project_id,
        "model_version_id": version.id,
        # A network that chooses the most probable class has no threshold; its row keeps that of the manifest.
        "threshold": version.manifest["threshold"] if threshold is None else threshold,
        "report": answer.report,
        "artifacts": artifacts,
        "timings_ms": answer.timings_ms,
    }
