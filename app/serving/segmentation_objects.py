"""Answers as DICOM segmentations and structured reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from app.imaging.dicom import reports, writing
from app.serving.answers import Artifact, skeleton
from app.serving.contract import Coded, Manifest
from app.serving.pipeline import Segmentation
from app.serving.prediction import Answer

DICOM = writing.MEDIA_TYPE


def author(ref: str, manifest: Manifest, asked: Mapping[str, Any]) -> writing.Author:
    """Who makes a segmentation.

    ref    the version: "vessels:3"
    asked  what else decides the mask, such as a threshold; the same gives the same UIDs
    """
    key = json.dumps([manifest.onnx_sha256, sorted(asked.items())], default=str)
    codes = {name: (_code(each.category), _code(each.type)) for name, each in manifest.codes.items()}
    return writing.Author(ref, ref.partition(":")[2], hashlib.sha256(key.encode()).hexdigest(), codes)


def _code(term: Coded) -> writing.Code:
    return term.value, term.scheme, term.meaning


def artifact(
    name: str, segmentation: Segmentation, source: BinaryIO, by: writing.Author, kind: writing.Kind
) -> Artifact:
    """The mask or its skeleton as a segmentation of the DICOM image in `source`.

    kind  fractional: the probability of each class, which must be in `segmentation`
    """
    labels, classes = segmentation.labels, segmentation.classes
    if name == "skeleton":
        labels = skeleton(labels, classes)
    probability = segmentation.probability
    if probability is not None and len(probability) == len(classes):
        probability = probability[1:]
    content = writing.encode_segmentation(source, labels, classes, by, kind=kind, probability=probability)
    return Artifact(content, DICOM, name)


def report(answer: Answer, source: BinaryIO, by: writing.Author) -> Artifact:
    """What was counted, which must be in `answer`, as a structured report on the DICOM image in `source`."""
    assert answer.report is not None
    content = reports.encode_report(source, answer.report, by, spacing_mm=answer.picture.spacing_mm)
    return Artifact(content, DICOM, "report")
