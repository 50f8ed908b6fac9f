"""Rules for new series of a PACS on the form of a dicomweb job."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Form
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.admission import dicomweb_rules as admission
from app.http.callers import Caller, require
from app.http.endpoints import validated
from app.http.resources import SettingsDep, Write
from app.pages.rendering import new_router, see, uuid_of
from app.representations.dicomweb_rules import describe_all
from app.schemas.dicomweb_rules import DicomwebRule, DicomwebRuleChange
from app.store import dicomweb_rules as store, tables

router = new_router()


def shown(session: Session, project_id: UUID) -> list[DicomwebRule]:
    """The rules of a project, newest first."""
    query = store.owned(project_id).order_by(tables.DicomwebRule.id.desc()).limit(store.MOST)
    return describe_all(session, session.scalars(query).all())


@router.post("/jobs/rules/{rule_id}", dependencies=[require("jobs:write")])
def change_rule(
    rule_id: str, caller: Caller, session: Write, settings: SettingsDep, enabled: Annotated[str, Form()]
) -> Response:
    """The button that enables or disables a rule."""
    change = validated(DicomwebRuleChange, {"enabled": {"true": True, "false": False}.get(enabled, enabled)})
    admission.change(session, caller, uuid_of(rule_id), change, settings)
    return see("/jobs/new?kind=dicomweb")
