"""Projects as the API takes and shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from app.schemas.base import Name, Schema, example


class NewProject(Schema):
    """A project to be made."""

    name: Name

    model_config = {**Schema.model_config, **example({"name": "retina"})}


Days = Annotated[int, Field(strict=True, ge=1, le=36_500)]


class Retention(Schema):
    """How long a project keeps what it stores, counted from the day it was made; null: for ever."""

    predictions_days: Days | None = None
    """Stored predictions, with their edits and measurements."""
    images_days: Days | None = None
    """Images that no dataset, no prediction, no measurement and no unfinished job needs."""
    jobs_days: Days | None = None
    """Finished jobs that made no model, with their events and predictions."""

    model_config = {
        **Schema.model_config,
        **example({"predictions_days": 90, "images_days": 30, "jobs_days": None}),
    }


class Project(Schema):
    """A project: what belongs to it does not exist for any other."""

    id: UUID
    name: str
    created_at: datetime

    model_config = {
        **Schema.model_config,
        **example(
            {"id": "01936f5e-7c00-7000-8000-000000000003", "name": "retina", "created_at": "2025-03-01T09:30:00Z"}
        ),
    }
