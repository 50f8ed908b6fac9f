"""Repairs a mask to the topology that was expected, and verifies the result.

The discrete work is `topology.simplify`'s: features that are too many go at the least total change, ones that lack are
added where the map nearly has them; loops of a volume are taken away, never added. Without an expectation, exactly
those features stay that hold by a margin. Of several classes each is repaired in turn, what one class gives up going to
the next probable; since one class may undo what another gained, it is tried a few times and then refused.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    missed: str | None
    """What was not reached, where the part that was is wanted; None: everything was."""


@dataclass(frozen=True)
class Effort:
    """How a repair is sought."""

    time_limit_s: float = 30.0
    """Seconds after which it is given up."""
    partial: bool = False
    """Whether the mask that comes nearest is an answer where the numbers are not reached."""
    check: Callable[[], object] | None = None
    """Called some times a second; what it raises ends the search."""


USUAL = Effort()


def repaired(
    prediction: Segmentation, expected: Expected, margin: float | None = None, effort: Effort = USUAL
) -> Repaired:
    """The prediction with a mask that is as expected; without expectations, with only the features that hold by
    `margin` (default 0.1).

    The probability stays what the network said. Raises RepairFailed, with the numbers that were reached, where no edit
    leads there and no part of it is wanted.
    """
    assert prediction.probability is not None
    ends = time.monotonic() + effort.time_limit_s
    task = _Task(prediction, prediction.probability.copy(), prediction.labels, margin or MARGIN, effort, ends)
    for name, numbers in expected.items():
        task.asked[name] = tuple(numbers.get(f"beta{k}") for k in range(prediction.labels.ndim))
    names = list(expected) or list(prediction.classes[1:])
    missed: str | None = None
    for _ in range(ROUNDS if len(names) > 1 else 1):
        for name in names:
            task.repair(name)
        wanted = expected or {name: _named(numbers) for name, numbers in task.asked.items()}
        missed = _missed(task.labels, prediction.classes, wanted)
        if missed is None or time.monotonic() > ends:
            break
    if missed is not None and not effort.partial:
        raise _failed(f"{missed} No edit of the mask leads there.")
    return Repaired(replace(prediction, labels=task.labels), {name: task.edits[name] for name in names}, missed)


@dataclass
class _Task:
    """A mask between the repairs of its classes."""

    prediction: Segmentation
    scores: np.ndarray
    """The probabilities, kept in step with the mask."""
    labels: np.ndarray
    margin: float
    effort: Effort
    ends: float
    asked: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Numbers of each class, once they are known."""
    edits: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    def repair(self, name: str) -> None:
        """Edit one class, and write the edits down."""
        from topology.simplify import Unreachable, simplify_firm, simplify_to

        position = self.prediction.classes.index(name)
        values, threshold = certainty.score(self.scores, self.labels, position, self.prediction.threshold)
        left_s = max(self.ends - time.monotonic(), 0.0)
        try:
            if name in self.asked:
                simple = simplify_to(
                    values,
                    self.asked[name],
                    threshold=threshold,
                    time_limit_s=left_s,
                    check=self.effort.check,
                    partial=self.effort.partial,
                )
            else:
                simple = simplify_firm(
                    values,
                    self.margin,
                    threshold=threshold,
                    time_limit_s=left_s,
                    check=self.effort.check,
                    partial=self.effort.partial,
                )
        except Unreachable as refused:
            far = "is as near as the time allowed to" if refused.spent else "is as near as edits of its map lead to"
            reached = _named(refused.reached)
            raise _failed(f"{name}: {_told(reached)} {far} {_told(_named(refused.asked))}.", {name: reached}) from None
        self.asked[name] = simple.certificate["asked"]
        self.edits[name] += [asdict(edit) for edit in simple.edits]
        self._take(position, simple.values, simple.values > np.float32(threshold))

    def _take(self, position: int, values: np.ndarray, now: np.ndarray) -> None:
        """Keep the mask of one class, and the scores in step: what it gives up goes to the next probable class."""
        if self.prediction.threshold is not None:
            self.scores[0], self.labels = values, now.astype(np.uint8)
            return
        others = np.delete(self.scores, position, axis=0).max(axis=0)
        gained, lost = now & (self.labels != position), ~now & (self.labels == position)
        self.scores[position][gained] = np.nextafter(others[gained], np.float32(np.inf))
        self.scores[position][lost] = np.nextafter(others[lost], np.float32(-np.inf))
        self.labels = self.scores.argmax(axis=0).astype(np.uint8)


def _failed(sentence: str, reached: dict[str, dict[str, int]] | None = None) -> RepairFailed:
    return RepairFailed(
        f"{sentence} Expect other numbers, send repair_partial=true for the mask that comes nearest, or no repair.",
        errors=[{"pointer": "/query/expect", "detail": sentence}],
        members={"reached": reached} if reached else {},
    )


def _named(numbers: Iterable[int | None]) -> dict[str, int]:
    return {f"beta{k}": number for k, number in enumerate(numbers) if number is not None}


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
