"""Making, changing and deleting rules that make jobs of new series of a PACS."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from app.admission import jobs
from app.roles import Principal
from app.schemas.dicomweb_rules import DicomwebRuleChange, NewDicomwebRule
from app.schemas.jobs import DicomwebSpec
from app.settings import Settings
from app.store import audit, dicomweb_rules as store
from app.store.tables import DicomwebRule, now

OPTIONS = ("segmentation", "report", "threshold")
"""What a rule says of its jobs beside PACS and model."""


def create(session: Session, caller: Principal, new: NewDicomwebRule, settings: Settings) -> DicomwebRule:
    """A rule of the caller's project; Invalid when its jobs could not be run, Conflict for a name that is taken."""
    options = new.model_dump(include=set(OPTIONS))
    _check(session, caller, settings, pacs=new.pacs, model=new.model, **options)
    match = new.match.model_dump(mode="json")
    # The PACS may be a time zone behind, where the day is yesterday's still.
    match["newer_than"] = match["newer_than"] or (now() - timedelta(days=1)).date().isoformat()
    columns = new.model_dump(include={"name", "pacs", "model", "poll_s", "enabled"})
    row = store.add(session, project_id=caller.project_id, match=match, options=options, **columns)
    audit.note(session, caller, "dicomweb_rule.create", _told(row))
    return row


def change(
    session: Session, caller: Principal, rule_id: UUID, wanted: DicomwebRuleChange, settings: Settings
) -> DicomwebRule:
    """Change a rule, which is then polled at once if it is enabled; Invalid when its jobs could not be run."""
    row = store.get(session, caller.project_id, rule_id)
    changes = wanted.model_dump(exclude_none=True)
    if "model" in changes or changes.get("enabled"):
        model = changes.get("model", row.model)
        _check(session, caller, settings, pacs=row.pacs, model=model, **row.options)
    for name, value in changes.items():
        setattr(row, name, value)
    if changes:
        store.poll_soon(session, row)
        said = wanted.model_dump_json(exclude_none=True)
        audit.note(session, caller, "dicomweb_rule.change", f"{_told(row)} {said}")
    return row


def delete(session: Session, caller: Principal, rule_id: UUID) -> None:
    """Delete a rule with what it remembers of series; its jobs and what they stored stay."""
    row = store.get(session, caller.project_id, rule_id)
    audit.note(session, caller, "dicomweb_rule.delete", _told(row))
    session.delete(row)


def _check(session: Session, caller: Principal, settings: Settings, **job: Any) -> None:
    """Refuse what the jobs of the rule would be refused for; they are told of the same fields."""
    spec = DicomwebSpec.model_validate({"kind": "dicomweb", "study": "0", **job})
    jobs.admit(session, caller.project_id, spec, settings)


def _told(row: DicomwebRule) -> str:
    return f"{row.id} {row.name}"
