"""What the administrator of a project decides about it."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from app.roles import Principal
from app.schemas.projects import Retention
from app.store import audit, projects as store


def set_retention(session: Session, caller: Principal, project_id: UUID, rules: Retention) -> None:
    """Say how long the caller's own project keeps what it stores; NotFound for any other."""
    store.get(session, project_id, caller.project_id).retention = rules.model_dump()
    audit.note(session, caller, "project.retention", rules.model_dump_json())
