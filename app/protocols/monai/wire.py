"""What all calls of MONAI Label share: their routers, times and images."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from fastapi import APIRouter

from app.http.endpoints import noun_router
from app.services import Services
from app.store import labels, tables


def new_router() -> APIRouter:
    """A router under `/monai`. Its calls are described by MONAI Label's own document, not by ours."""
    return noun_router("MONAI Label", prefix="/monai", include_in_schema=False)


def written(when: datetime) -> str:
    """A time as MONAI Label writes it, in UTC."""
    return f"{when:%Y-%m-%d %H:%M:%S}"


def image_of(services: Services, project_id: UUID, name: str) -> tables.Image:
    """The stored image of that id or name, or NotFound."""
    with services.database.read() as session:
        return labels.image_named(session, project_id, name)
