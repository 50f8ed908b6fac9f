"""What a plan for training on a dataset version answers."""

from __future__ import annotations

from typing import Any

from app.schemas.base import Schema


class Reason(Schema):
    """Why a field of a plan is as it is."""

    field: str
    value: Any
    reason: str


class PlannedMemory(Schema):
    """What the training is estimated to need, and what there is."""

    estimated_bytes: int
    """Of the whole process; measured ones were between half and twice as much."""
    limit_bytes: int
    limit_from: str
    """Where the limit comes from."""


class Plan(Schema):
    """A training that suits a dataset version, with the reason for every field."""

    dataset: str
    training: dict[str, Any]
    """To be sent to `POST /v1/jobs` as it is, or changed."""
    reasons: list[Reason]
    memory: PlannedMemory
    notes: list[str]
    """What to look at before it is sent."""
