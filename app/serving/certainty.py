"""Margins of the topology of a prediction, for each class, as JSON and sentences.

A sigmoid network's map is its probability, cut at the threshold of the request. A softmax network's map of a class is
its probability minus the largest of the others, cut at 0: what this class wins or loses a pixel by.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from app.serving.pipeline import Segmentation

if TYPE_CHECKING:
    from topology.margins import Margins

LISTED = 100
"""Features in an answer, the least certain first."""
SENTENCES = {
    (0, True, True): "The component at {place} holds by {margin}: a threshold higher by that erases it.",
    (0, True, False): "The gap at {place} holds by {margin}: a threshold lower by that joins two components.",
    (
        0,
        False,
        True,
    ): "The bridge at {place} holds by {margin}: a threshold higher by that makes two components of one.",
    (0, False, False): "A component at {place} is missed by {margin}: a threshold lower by that shows it.",
    (1, True, True): "The bridge at {place} holds by {margin}: a threshold higher by that opens a loop.",
    (1, True, False): "The hole at {place} holds by {margin}: a threshold lower by that fills it.",
    (1, False, True): "The filling at {place} holds by {margin}: a threshold higher by that shows a hole.",
    (1, False, False): "The gap at {place} is open by {margin}: a threshold lower by that closes a loop.",
    (2, True, True): "The wall at {place} holds by {margin}: a threshold higher by that opens a cavity.",
    (2, True, False): "The cavity at {place} holds by {margin}: a threshold lower by that fills it.",
    (2, False, True): "The filling at {place} holds by {margin}: a threshold higher by that shows a cavity.",
    (2, False, False): "The opening at {place} is open by {margin}: a threshold lower by that closes a cavity.",
}
"""By dimension, whether the mask has the feature, and whether a rising threshold changes it."""


def score(
    probability: np.ndarray, labels: np.ndarray, position: int, threshold: float | None
) -> tuple[np.ndarray, float]:
    """The map of one class, (...) float32, and the threshold above which it is that class in `labels`.

    probability  (K, ...) float32: the foreground, or every class
    threshold    None: the most probable class
    """
    if threshold is not None:
        return probability[0], threshold
    others = np.delete(probability, position, axis=0).max(axis=0)
    won = probability[position] - others
    # A draw goes to the earlier class; the map says so by the smallest number there is.
    won[(labels == position) & (won <= 0)] = np.finfo(np.float32).tiny
    return won, 0.0


def features(prediction: Segmentation, position: int) -> Margins:
    """Every feature of a class's map, those that the mask has and those that it has not, the nearest to the threshold
    first.
    """
    from topology.margins import margins

    assert prediction.probability is not None
    return margins(*score(prediction.probability, prediction.labels, position, prediction.threshold), near=math.inf)


def margins(found: Margins, threshold: float | None) -> dict[str, Any]:
    """The features around the threshold as plain values: the least certain, and how many there are."""
    from topology.margins import NEAR

    told = found[found.present | (found.margins <= NEAR)]
    level = 0.0 if threshold is None else threshold
    return {
        "threshold": level,
        "features": [describe(told, k, level) for k in range(min(len(told), LISTED))],
        "present": int(told.present.sum()),
        "near": int((~told.present).sum()),
    }


def describe(found: Margins, k: int, threshold: float) -> dict[str, Any]:
    """One feature as plain values, with its sentence."""
    bars, death, margin = found.bars, float(found.bars.death_values[k]), float(found.margins[k])
    dimension, present, rising, place = (
        int(bars.dimension[k]),
        bool(found.present[k]),
        bool(found.rising[k]),
        found.places[k].tolist(),
    )
    ends = math.isfinite(death)
    return {
        "dimension": dimension,
        "present": present,
        "margin": margin,
        "changes_at": threshold + (margin if rising else -margin),
        "position": place,
        "birth": float(bars.birth_values[k]),
        "born_at": bars.births[k].tolist(),
        "death": death if ends else None,
        "dies_at": bars.deaths[k].tolist() if ends else None,
        "sentence": SENTENCES[dimension, present, rising].format(place=tuple(place), margin=f"{margin:.2g}"),
    }
