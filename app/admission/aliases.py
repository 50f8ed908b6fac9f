"""Moving an alias to another version, past a gate of bounds on its metrics."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid, NotFound
from app.roles import Principal
from app.schemas.models import Gate, MoveAlias
from app.store import audit, datasets, measurements, models, tables


def move(
    session: Session, caller: Principal, name: str, alias: str, target: MoveAlias, *, expected: str | None = None
) -> tables.Alias:
    """Point an alias of that model to a version.

    expected  the alias's ETag as the caller read it
    Raises NotFound, Conflict with every bound that is not kept, and PreconditionFailed when the alias has moved since.
    """
    model = models.require(session, caller.project_id, name)
    version = models.require_version(session, model, target.version)
    passed = pass_gate(session, version, target.gate) if target.gate else None
    row = models.move_alias(session, model, alias, version, who=caller.who, gate=passed, expected=expected)
    audit.note(session, caller, "alias.move", f"{name}@{alias} -> {target.version}")
    return row


def pass_gate(session: Session, version: tables.ModelVersion, gate: Gate) -> dict[str, Any]:
    """The figures that decided, for the history; Conflict with every bound that is not kept."""
    figures, source = dict(version.metrics), "its validation figures"
    if gate.dataset is not None:
        figures, source = _evaluated(session, version, gate.dataset)
    failing = measurements.shortfalls(gate.bounds(), figures)
    if failing:
        errors = [{"pointer": "/gate", "detail": sentence} for sentence in failing]
        raise Conflict(
            f"Version {version.number} does not pass the gate by {source}: {'; '.join(failing)}. The alias was not"
            " moved.",
            errors=errors,
        )
    return {"dataset": gate.dataset, "bounds": gate.bounds(), "figures": figures}


def _evaluated(session: Session, version: tables.ModelVersion, ref: str) -> tuple[dict[str, float], str]:
    try:
        dataset, data = datasets.resolve(session, version.project_id, ref)
    except NotFound as unknown:
        raise Invalid(unknown.detail, errors=[{"pointer": "/gate/dataset", "detail": unknown.detail}]) from None
    ref = f"{dataset.name}@{data.number}"
    job = measurements.newest_evaluation(session, version, data.id)
    if job is None:
        raise Conflict(
            f"Version {version.number} was not evaluated on {ref}. Submit an evaluate job for it first, then move the"
            " alias."
        )
    return measurements.means(session, job), f"its newest evaluation on {ref}"
