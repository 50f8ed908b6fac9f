"""The loss that a training with `recipe: auto` was given by its comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.store import children
from app.store.tables import Job
from workers.work import Failed, Work


@dataclass(frozen=True)
class Choice:
    """What the comparison chose, and why.

    loss    of the winner, or of the baseline where none helped
    facts   comparison (its id), chosen, helped, verdict: for the result of the job and the spec of the version
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
    facts = {
        "comparison": str(comparison.id),
        "chosen": name,
        "helped": said["winner"] is not None,
        "verdict": said["verdict"],
    }
    return Choice(loss, facts)
