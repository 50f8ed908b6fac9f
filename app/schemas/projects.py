"""Projects as the API takes and shows them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from app.schemas.base import Name, Schema, example


class NewProject(Schema):
    """A project to be made."""

    name: Name

    model_config = {**Schema.model_config, **example({"name": "retina"})}


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
