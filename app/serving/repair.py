"""Change a mask as little as its map allows until its topology is what was asked, and count again before anyone is told
that it is.

The discrete work is `topology.simplify`'s: features that are too many go at the least total change, ones that lack are
added where the map nearly has them; loops of a volume are taken away, never added. Without an expectation, exactly
those features stay that hold by a margin. Of several classes each is repaired in turn, what one class gives up going to
the next probable; since one class may undo what another gained, it is tried a few times and then refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from app.errors import RepairFailed
from app.serving import certainty
from app.serving.expectations import Expected
from app.serving.pipeline import Segmentation

MARGIN = 0.1
"""By how much a feature must hold to be kept, where nothing else was asked."""
ROUNDS = 4
"""How often every class has its turn."""


@dataclass(frozen=True)
class Repaired:
    """A prediction whose mask was changed, and by which edits, class by class."""

    prediction: Segmentation
    edits: dict[str, list[dict[str, Any]]]


def repaired(prediction: Segmentation, expected: Expected, margin: float | None = None) -> Repaired:
    """The prediction with a mask that is as expected; without expectations, with only the features that hold by
    `margin` (default 0.1).

    The probability stays what the network said. Raises RepairFailed, with the numbers that were reached, where no edit
    leads there.
    """
    assert prediction.probability is not None
    scores, labels, ndim = prediction.probability.copy(), prediction.labels, prediction.labels.ndim
    names = prediction.classes[1:]
    asked: dict[str, Sequence[int | None] | None] = dict.fromkeys(names) if not expected else {}
    for name, numbers in expected.items():
        asked[name] = [numbers.get(f"beta{k}") for k in range(ndim)]
    wanted = dict(expected)
    edits: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
    for _ in range(ROUNDS):
        for name, betti in asked.items():
            holds = None if betti is not None else MARGIN if margin is None else margin
            labels, numbers = _one_class(scores, labels, prediction, name, betti, holds, edits[name])
            if betti is None:
                asked[name] = numbers
                wanted[name] = {f"beta{k}": number for k, number in enumerate(numbers) if number is not None}
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
    prediction: Segmentation,
    name: str,
    betti: Sequence[int | None] | None,
    margin: float | None,
    edits: list[dict[str, Any]],
) -> tuple[np.ndarray, Sequence[int | None]]:
    """Edit one class; writes its edits down, keeps the scores in step, and gives the new class positions and the
    numbers that were asked for.

    betti  what the numbers shall be; None: only features that hold by `margin` stay
    """
    from topology.simplify import Unreachable, simplify_firm, simplify_to

    position = prediction.classes.index(name)
    values, threshold = certainty.score(scores, labels, position, prediction.threshold)
    try:
        if betti is None:
            simple = simplify_firm(values, margin, threshold=threshold)
        else:
            simple = simplify_to(values, betti, threshold=threshold)
    except Unreachable as refused:
        reached = {f"beta{k}": number for k, number in enumerate(refused.reached)}
        numbers = {f"beta{k}": number for k, number in enumerate(refused.asked) if number is not None}
        far = "is as near as the time allowed to" if refused.spent else "is as near as edits of its map lead to"
        sentence = f"{name}: {_told(reached)} {far} {_told(numbers)}."
        raise RepairFailed(
            f"{sentence} Expect other numbers, or send no repair.",
            errors=[{"pointer": "/query/expect", "detail": sentence}],
            members={"reached": {name: reached}},
        ) from None
    edits += [asdict(edit) for edit in simple.edits]
    now = simple.values > np.float32(threshold)
    asked = simple.certificate["asked"]
    if prediction.threshold is not None:
        scores[0] = simple.values
        return now.astype(np.uint8), asked
    others = np.delete(scores, position, axis=0).max(axis=0)
    gained, lost = now & (labels != position), ~now & (labels == position)
    scores[position][gained] = np.nextafter(others[gained], np.float32(np.inf))
    scores[position][lost] = np.nextafter(others[lost], np.float32(-np.inf))
    return scores.argmax(axis=0).astype(np.uint8), asked


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
