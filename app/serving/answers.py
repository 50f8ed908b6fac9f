"""The artifacts of a prediction: masks, skeleton, simple points, maps, and topology reports.

A mask of two classes is 0 and 255, so that it can be looked at; of more classes it is the position in `classes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from app import imaging
from app.imaging import FORMATS, Picture
from app.serving import certainty, expectations
from app.serving.pipeline import Segmentation

PNG, TIFF, NIFTI_GZ, NRRD = (FORMATS[name].media_type for name in ("png", "tiff", "nifti_gz", "nrrd"))
EXTENSIONS = {each.media_type: each.suffixes[0] for each in FORMATS.values() if each.writer}
"""Forms of an answer, and how its file ends."""
PLACED: dict[str, Callable[..., bytes]] = {NIFTI_GZ: imaging.encode_nifti_gz, NRRD: imaging.encode_nrrd}
"""Writers of the forms that state where a volume lies."""
MIXED = "multipart/mixed"
"""A report as JSON and an artifact as a file, in one answer."""
REAL = ("probability", "uncertainty", "probability_skeleton")
"""Artifacts that are made of the probability, not of the mask."""
MOST_COMPONENTS = 1000
"""Components listed in a report, largest first; `beta0` counts all."""
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = (255, 255, 255), (213, 94, 0), (86, 180, 233)
"""Colours of a difference picture; told apart by every kind of colour-blind eye."""


@dataclass(frozen=True)
class Artifact:
    """Something made of a prediction, as bytes."""

    content: bytes
    media_type: str
    name: str = "mask"


def positions(shown: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Class positions of a mask that `artifact` made."""
    return (shown > 0).astype(np.uint8) if len(classes) == 2 else shown.astype(np.uint8)


def real(name: str, values: np.ndarray, picture: Picture, media_type: str, png_level: int) -> Artifact:
    """(K, ...) float32 in [0, 1] as float32 in TIFF (a page for each) or NIfTI, or, where K = 1, as PNG of 0 to 255."""
    if media_type == TIFF:
        return Artifact(imaging.encode_tiff(values), TIFF, name)
    if media_type in PLACED:
        content = PLACED[media_type](values if len(values) > 1 else values[0], picture.affine, forms=picture.forms)
        return Artifact(content, media_type, name)
    return Artifact(imaging.encode_png(np.rint(values[0] * np.float32(255)).astype(np.uint8), png_level), PNG, name)


def uncertainty(prediction: Segmentation, persistence_threshold: tuple[float, float] | None = None) -> np.ndarray:
    """(1, ...) float32 in [0, 1]: entropy of the classes of each pixel, in units of its largest value, log2 of their
    number (bits).

    persistence_threshold  mean and deviation of what a ridge needs to be a structure, from a network that says so: then
                           the entropy of whether each
                           ridge is there as a whole (`topology.morse.structure_uncertainty`), and 0 off the ridges
    """
    assert prediction.probability is not None
    if persistence_threshold is not None and prediction.threshold is not None:
        from topology.morse import structure_uncertainty

        return structure_uncertainty(prediction.probability[0], *persistence_threshold)[None]
    shares = (
        prediction.probability
        if len(prediction.probability) > 1
        else np.stack([prediction.probability[0], 1 - prediction.probability[0]])
    )
    entropy = np.zeros(shares.shape[1:], np.float32)
    for share in shares:
        entropy -= share * np.log2(share, out=np.zeros_like(share), where=share > 0)
    return np.clip(entropy / np.float32(np.log2(len(shares))), 0, 1)[None]


def skeleton(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Class positions (...) uint8, thinned class by class to curves of the same topology."""
    from topology.skeleton import skeletonize

    thin = np.zeros_like(labels)
    for position in range(1, len(classes)):
        thin[skeletonize(labels == position).astype(bool)] = position
    return thin


def probability_skeleton(prediction: Segmentation) -> np.ndarray:
    """(K, ...) float32 in [0, 1]: the grayscale skeleton of each foreground class, which serves every threshold:
    {skeleton >= t} has the Betti numbers of {probability >= t}. The skeleton of the mask is protected in it.
    """
    from topology.grayscale_thinning import grayscale_thinning
    from topology.skeleton import skeletonize

    assert prediction.probability is not None
    maps = prediction.probability if len(prediction.probability) == 1 else prediction.probability[1:]
    masks = [prediction.labels == position for position in range(1, len(maps) + 1)]
    return np.stack(
        [grayscale_thinning(values, protect=skeletonize(mask)).values for values, mask in zip(maps, masks, strict=True)]
    )


POINT_LEVELS = np.array([0, 60, 120, 180, 255], np.uint8)
"""Grey of background, interior, simple, isolated and critical points (`topology.simple.point_kinds`)."""


def simple_points(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(...) uint8 of `POINT_LEVELS`: what would become of its class's topology if a pixel were lost."""
    from topology.simple import point_kinds

    shown = np.zeros_like(labels)
    for position in range(1, len(classes)):
        inside = labels == position
        shown[inside] = POINT_LEVELS[point_kinds(inside)[inside]]
    return shown


def artifact(
    name: str,
    prediction: Segmentation,
    picture: Picture,
    media_type: str,
    *,
    png_level: int = 1,
    persistence_threshold: tuple[float, float] | None = None,
) -> Artifact:
    """One artifact by its name in one form."""
    if name in REAL:
        assert prediction.probability is not None
        values = {
            "probability": lambda: prediction.probability,
            "uncertainty": lambda: uncertainty(prediction, persistence_threshold),
            "probability_skeleton": lambda: probability_skeleton(prediction),
        }[name]()
        return real(name, values, picture, media_type, png_level)
    labels, classes = prediction.labels, prediction.classes
    two = np.uint8(255 if len(classes) == 2 else 1)
    pixels = (
        simple_points(labels, classes)
        if name == "simple_points"
        else two * (skeleton(labels, classes) if name == "skeleton" else labels)
    )
    content = (
        imaging.encode_png(pixels, png_level)
        if media_type == PNG
        else PLACED[media_type](pixels, picture.affine, forms=picture.forms)
    )
    return Artifact(content, media_type, name)


def artifacts(
    prediction: Segmentation,
    picture: Picture,
    *,
    png_level: int = 1,
    persistence_threshold: tuple[float, float] | None = None,
) -> dict[str, Artifact]:
    """Everything that is kept of a prediction: mask, skeleton, simple points, and when its probability was asked for
    that and its uncertainty.
    """
    form = NIFTI_GZ if picture.is_volume else PNG
    names = ["mask", "skeleton", "simple_points"] + (
        ["probability", "uncertainty"] if prediction.probability is not None else []
    )
    forms = {name: TIFF if name == "probability" and form == PNG else form for name in names}
    return {
        name: artifact(
            name, prediction, picture, each, png_level=png_level, persistence_threshold=persistence_threshold
        )
        for name, each in forms.items()
    }


def topology(
    labels: np.ndarray, classes: Sequence[str], spacing_mm: Sequence[float] | None
) -> dict[str, dict[str, Any]]:
    """The topology report of every class but the background, by name.

    `skeleton_length` is in `length_unit`: mm where the spacing is known, else px; `skeleton_length_px` is always in
    pixels.
    """
    return {name: _class_topology(labels == position, spacing_mm) for position, name in enumerate(classes) if position}


def _class_topology(mask: np.ndarray, spacing_mm: Sequence[float] | None) -> dict[str, Any]:
    from topology.metrics import report

    return report(mask, spacing=spacing_mm, most_components=MOST_COMPONENTS) | {
        "length_unit": "mm" if spacing_mm else "px"
    }


JUDGED = ("expected", "violations", "edits", "edit_count")
"""What `judged` keeps beside the report of a class; the answer gathers it from all classes."""
MOST_EDITS = 1000


def judged(
    report: dict[str, dict[str, Any]],
    original: Segmentation,
    labels: np.ndarray,
    *,
    margins: bool,
    expected: expectations.Expected,
    edits: Mapping[str, list[dict[str, Any]]] | None,
) -> None:
    """Add to a topology report what holds by how much, what is not as expected, and what was repaired.

    original  as the network answered, with its probability; labels: the mask that was reported, which may be a repaired
              one
    edits     of every class that was to be repaired; None: none was
    """
    for position, (name, facts) in enumerate(report.items(), start=1):
        found = cache(partial(certainty.features, original, position))
        if margins:
            facts["margins"] = certainty.margins(found(), original.threshold)
        if name in expected:
            facts["expected"] = expected[name]
            facts["violations"] = expectations.violations(
                facts, expected[name], labels == position, found, original.threshold or 0.0
            )
        if edits is not None:
            made = edits.get(name, [])
            facts |= {"edits": made[:MOST_EDITS], "edit_count": len(made)}


def measurements(
    labels: np.ndarray,
    reference: np.ndarray,
    classes: Sequence[str],
    spacing_mm: Sequence[float] | None,
    rules: Sequence[Mapping[str, Any]] = (),
) -> dict[str, dict[str, Any]]:
    """Every metric of every class but the background, by name; pixels whose reference is `imaging.IGNORE` count for
    nothing.

    rules  between classes, as a job states them (`app.schemas.rules.Rule`); their subjects have `rule_violations` and
           `broken_rules` as well
    """
    from topology.containment import Rule, broken_rules
    from topology.metrics import measure

    ignore = reference == imaging.IGNORE if len(classes) <= imaging.IGNORE else None
    figures = {
        name: measure(labels == position, reference == position, spacing=spacing_mm, ignore=ignore)
        for position, name in enumerate(classes)
        if position
    }
    numbers = {name: position for position, name in enumerate(classes)}
    asked = [
        Rule(
            each["rule"],
            numbers.get(each["subject"], each["subject"]),
            tuple(numbers.get(other, other) for other in each["others"]),
            each["contact"],
            each["border"],
        )
        for each in rules
    ]
    for subject, found in broken_rules(labels, reference, asked, ignore=ignore).items():
        count = sum(each["count"] for each in found)
        figures[classes[subject]] |= {"rule_violations": count, "broken_rules": found}
    return figures


def difference(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(3, H, W) uint8: white where both agree on a foreground class, orange where only the prediction has it, blue
    where only the
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
