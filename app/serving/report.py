"""What becomes of a prediction before it is answered or stored: repaired where that was asked for, counted, and held to
what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.serving import answers, expectations, repair
from app.serving.expectations import Expected
from app.serving.pipeline import Prediction, Stopwatch


@dataclass(frozen=True)
class Asked:
    """What is asked about the topology of a prediction; everything but `topology` alone brings the report along."""

    topology: bool = False
    margins: bool = False
    expected: Expected = field(default_factory=dict)
    strict: bool = False
    repair: bool = False
    repair_margin: float | None = None

    @property
    def needs_report(self) -> bool:
        return self.topology or self.needs_map

    @property
    def needs_map(self) -> bool:
        """Whether the probability of the prediction is needed, and not only its mask."""
        return self.margins or self.repair or bool(self.expected)


def examined(
    original: Prediction, asked: Asked, spacing_mm: Sequence[float] | None, phases: Stopwatch
) -> tuple[Prediction, dict[str, dict[str, Any]] | None]:
    """The prediction, its mask repaired where that was asked for, and the topology report by class; None when nothing
    asks for one.

    original  as the network answered, with its probability where `asked.needs_map`
    Raises RepairFailed, and ExpectationViolated where `asked.strict`.
    """
    answer, edits = original, None
    if asked.repair:
        with phases("repair"):
            repaired = repair.repaired(original, asked.expected, asked.repair_margin)
            answer, edits = repaired.prediction, repaired.edits
    if not asked.needs_report:
        return answer, None
    with phases("topology"):
        report = answers.topology(answer.labels, answer.classes, spacing_mm)
        answers.judged(report, original, answer.labels, margins=asked.margins, expected=asked.expected, edits=edits)
        if asked.strict:
            expectations.insist(report)
    return answer, report
