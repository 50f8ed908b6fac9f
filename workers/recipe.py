"""The loss that a training with `recipe: auto` was given by its comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.comparison.table import compared
from app.schemas.comparison_answers import Candidate
from app.store import children
from app.store.tables import Job
from workers.work import Failed, Work

SHOWN = ("betti_error", "dice", "cldice", "betti_matching_error")
"""Figures of the table that a version keeps."""


@dataclass(frozen=True)
class Choice:
    """What the comparison chose, and why.

    loss    of the winner, or of the baseline where none helped
    facts   comparison (its id), chosen, helped, verdict, table: for the result of the job and the spec of the version
    """

    loss: dict[str, Any]
    facts: dict[str, Any]


def chosen(work: Work) -> Choice | None:
    """What the second stage trains with; None for a training without such a recipe. Failed when what it waited for has
    failed.
    """
    if "stage" not in work.claim.spec:
        return None
    with work.database.read() as session:
        rows = children.of(session, session.get_one(Job, work.claim.id))
    for row in rows:
        if row.state != "succeeded":
            why = (row.error or {}).get("detail") or f"It was {row.state}."
            what = "comparison of losses" if row.kind == "compare" else "first stage"
            raise Failed("recipe_failed", f"The {what} of this training has not succeeded: {why} Resume this job.")
    (comparison,) = (row for row in rows if row.kind == "compare")
    said = comparison.result or {}
    name = said["winner"] or said["baseline"]
    (loss,) = (each["loss"] for each in comparison.spec["losses"] if each["name"] == name)
    with work.database.read() as session:
        table = compared(session, session.get_one(Job, comparison.id))
    facts = {
        "comparison": str(comparison.id),
        "chosen": name,
        "helped": said["winner"] is not None,
        "verdict": said["verdict"],
        "table": [_line(row) for row in table.candidates],
    }
    return Choice(loss, facts)


def _line(row: Candidate) -> dict[str, Any]:
    """A candidate in the few figures that a model card shows."""
    means = {name: figure.spread.mean for name in SHOWN if (figure := row.figures.get(name)) is not None}
    contrast = None if (betti := row.figures.get("betti_error")) is None else betti.contrast
    apart = {} if contrast is None else contrast.model_dump(include={"mean", "low", "high", "p", "p_holm", "images"})
    return {"name": row.name, "figures": means, "difference": apart or None}
