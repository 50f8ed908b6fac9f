"""What a prediction is sent and kept as: mask, probability, skeleton, and the topology report of every class.

A mask of two classes is 0 and 255, so that it can be looked at; of more classes it is the position in `classes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app import imaging
from app.imaging import Picture
from app.serving.pipeline import Prediction

PNG, TIFF, NIFTI_GZ = "image/png", "image/tiff", "application/gzip"
EXTENSIONS = {PNG: ".png", TIFF: ".tiff", NIFTI_GZ: ".nii.gz"}
MOST_COMPONENTS = 1000
"""Components listed in a report, largest first; `beta0` counts all."""
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = (255, 255, 255), (213, 94, 0), (86, 180, 233)
"""Colours of a difference picture; told apart by every kind of colour-blind eye."""


@dataclass(frozen=True)
class Artifact:
    """Something made of a prediction, as bytes."""

    content: bytes
    media_type: str


def mask(labels: np.ndarray, classes: Sequence[str], picture: Picture, media_type: str, *, png_level: int = 1) -> Artifact:
    """Class positions (...) uint8 as PNG, or as NIfTI on the grid of the picture."""
    shown = labels * np.uint8(255) if len(classes) == 2 else labels
    if media_type == PNG:
        return Artifact(imaging.encode_png(shown, png_level), PNG)
    return Artifact(imaging.encode_nifti_gz(shown, picture.affine), NIFTI_GZ)


def positions(shown: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Class positions of a mask that `mask` made."""
    return (shown > 0).astype(np.uint8) if len(classes) == 2 else shown.astype(np.uint8)


def probability(prediction: Prediction, picture: Picture) -> Artifact:
    """float32 probabilities as TIFF, one page per class where there are several; of a volume as NIfTI."""
    assert prediction.probability is not None
    if picture.is_volume:
        return Artifact(imaging.encode_nifti_gz(prediction.probability if len(prediction.probability) > 1 else prediction.probability[0], picture.affine), NIFTI_GZ)
    return Artifact(imaging.encode_tiff(prediction.probability), TIFF)


def skeleton(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Class positions (...) uint8, thinned class by class to curves of the same topology."""
    from topology.skeleton import skeletonize

    thin = np.zeros_like(labels)
    for position in range(1, len(classes)):
        thin[skeletonize(labels == position).astype(bool)] = position
    return thin


def artifacts(prediction: Prediction, picture: Picture, *, png_level: int = 1) -> dict[str, Artifact]:
    """Everything that is kept of a prediction: mask, probability (when it was asked for) and skeleton."""
    form = NIFTI_GZ if picture.is_volume else PNG
    classes = prediction.classes
    made = {
        "mask": mask(prediction.labels, classes, picture, form, png_level=png_level),
        "skeleton": mask(skeleton(prediction.labels, classes), classes, picture, form, png_level=png_level),
    }
    return made | ({"probability": probability(prediction, picture)} if prediction.probability is not None else {})


def topology(labels: np.ndarray, classes: Sequence[str], spacing_mm: Sequence[float] | None) -> dict[str, dict[str, Any]]:
    """The topology report of every class but the background, by name.

    `skeleton_length` is in `length_unit`: mm where the spacing is known, else px; `skeleton_length_px` is always in pixels.
    """
    return {name: _class_topology(labels == position, spacing_mm) for position, name in enumerate(classes) if position}


def _class_topology(mask: np.ndarray, spacing_mm: Sequence[float] | None) -> dict[str, Any]:
    from topology.metrics import report

    return report(mask, spacing=spacing_mm, most_components=MOST_COMPONENTS) | {"length_unit": "mm" if spacing_mm else "px"}


def measurements(labels: np.ndarray, reference: np.ndarray, classes: Sequence[str], spacing_mm: Sequence[float] | None) -> dict[str, dict[str, Any]]:
    """Every metric of every class but the background, by name; pixels whose reference is `imaging.IGNORE` count for nothing."""
    from topology.metrics import measure

    ignore = reference == imaging.IGNORE if len(classes) <= imaging.IGNORE else None
    return {
        name: measure(labels == position, reference == position, spacing=spacing_mm, ignore=ignore)
        for position, name in enumerate(classes)
        if position
    }


def difference(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(3, H, W) uint8: white where both agree on a foreground class, orange where only the prediction has it, blue where only the
    reference has it, black elsewhere and where nothing was labelled. Foreground of different classes is orange."""
    wrong = (labels != reference) & (reference != imaging.IGNORE)
    picture = np.zeros((3, *labels.shape), np.uint8)
    for where, colour in (
        ((labels == reference) & (labels > 0), TRUE_POSITIVE),
        (wrong & (labels > 0), FALSE_POSITIVE),
        (wrong & (labels == 0), FALSE_NEGATIVE),
    ):
        picture[:, where] = np.array(colour, np.uint8)[:, None]
    return picture
