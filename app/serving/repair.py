"""Change a mask as little as its map allows until its topology is what was asked, and count again before anyone is told
that it is.

The discrete work is `topology.simplify`'s: every feature that is too many goes by the smaller of two changes, every one
that lacks is added where the map nearly has it. Without an expectation, the numbers asked for are those of the features
that hold by a margin. In the plane components and loops are steered, in space components and cavities: tunnels follow
from neither, so an expectation of them is checked, not pursued. Of several classes each is repaired in turn, what one
class gives up going to the next probable; since one class may undo what another gained, it is tried a few times and
then refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from app.errors import RepairFailed
from app.serving import certainty
from app.serving.expectations import Expected
from app.serving.pipeline import Prediction

MARGIN = 0.1
"""By how much a feature must hold to be kept, where nothing else was asked."""
ROUNDS = 4
"""How often every class has its turn."""


@dataclass(frozen=True)
class Repaired:
    """A prediction whose mask was changed, and by which edits, class by class."""

    prediction: Prediction
    edits: dict[str, list[dict[str, Any]]]


def repaired(prediction: Prediction, expected: Expected, margin: float | None = None) -> Repaired:
    """The prediction with a mask that is as expected; without expectations, with only the features that hold by
    `margin` (default 0.1).

    The probability stays what the network said. Raises RepairFailed, with the numbers that were reached, where no edit
    leads there.
    """
    from topology.simplify import firm_numbers

    assert prediction.probability is not None
    scores = prediction.probability.copy()
    labels, ndim = prediction.labels, prediction.labels.ndim
    if expected:
        asked = {
            name: [numbers.get(f"beta{k}") if k in (0, ndim - 1) else None for k in range(ndim)]
            for name, numbers in expected.items()
        }
    else:
        asked = {}
        for position, name in enumerate(prediction.classes[1:], start=1):
            values, threshold = certainty.score(scores, labels, position, prediction.threshold)
            asked[name] = firm_numbers(values, MARGIN if margin is None else margin, threshold=threshold)
    wanted = expected or {
        name: {f"beta{k}": number for k, number in enumerate(numbers) if number is not None}
        for name, numbers in asked.items()
    }
    edits: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
    for _ in range(ROUNDS):
        for name, betti in asked.items():
            labels = _one_class(scores, labels, prediction, name, betti, edits[name], wanted)
        if not (missed := _missed(labels, prediction.classes, wanted)):
            return Repaired(replace(prediction, labels=labels), edits)
        if len(asked) == 1:
            break
    raise RepairFailed(
        f"{missed} No edit of the mask leads there. Expect other numbers, or send no repair.",
        errors=[{"pointer": "/query/expect", "detail": missed}],
    )


def _one_class(
    scores: np.ndarray,
    labels: np.ndarray,
    prediction: Prediction,
    name: str,
    betti: Sequence[int | None],
    edits: list[dict[str, Any]],
    wanted: Expected,
) -> np.ndarray:
    """Edit one class; writes its edits down, keeps the scores in step, and gives the new class positions."""
    from topology.simplify import Unreachable, simplify_to

    position = prediction.classes.index(name)
    values, threshold = certainty.score(scores, labels, position, prediction.threshold)
    try:
        simple = simplify_to(values, betti, threshold=threshold)
    except Unreachable as refused:
        reached = {f"beta{k}": number for k, number in enumerate(refused.reached)}
        far = (
            "is as near as so many edits lead; the mask is too far from"
            if refused.spent
            else "is as near as edits of its map lead to"
        )
        sentence = f"{name}: {_told(reached)} {far} {_told(wanted[name])}."
        raise RepairFailed(
            f"{sentence} Expect other numbers, or send no repair.",
            errors=[{"pointer": "/query/expect", "detail": sentence}],
            members={"reached": {name: reached}},
        ) from None
    edits += [asdict(edit) for edit in simple.edits]
    now = simple.values > np.float32(threshold)
    if prediction.threshold is not None:
        scores[0] = simple.values
        return now.astype(np.uint8)
    others = np.delete(scores, position, axis=0).max(axis=0)
    gained, lost = now & (labels != position), ~now & (labels == position)
    scores[position][gained] = np.nextafter(others[gained], np.float32(np.inf))
    scores[position][lost] = np.nextafter(others[lost], np.float32(-np.inf))
    return scores.argmax(axis=0).astype(np.uint8)


def _missed(labels: np.ndarray, classes: Sequence[str], wanted: Expected) -> str | None:
    """What the mask is not, by an exact count of its own; None when it is as wanted."""
    from topology.components import betti_numbers

    for name, numbers in wanted.items():
        betti = betti_numbers(labels == classes.index(name))
        found = {f"beta{k}": number for k, number in enumerate(betti)} | {
            "euler": sum(number * (-1) ** k for k, number in enumerate(betti))
        }
        if any(found[each] != number for each, number in numbers.items()):
            return f"{name}: {_told({each: found[each] for each in numbers})} was reached, not {_told(numbers)}."
    return None


def _told(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())
