"""Deleting what a project has kept for longer than it wants to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.store import deletion
from app.store.session import Database
from app.store.tables import (
    FINISHED,
    AuditLine,
    DatasetItem,
    Image,
    ImageLabel,
    Job,
    Measurement,
    ModelVersion,
    Prediction,
    Project,
    now,
)

WHO = "retention"
"""What the audit log says did it."""
AT_ONCE = 100
"""Objects in one transaction, so that nobody waits long for the database's write lock."""

Rule = tuple[str, type[Any], Callable[[Session, Any], deletion.Deletion], ColumnElement[bool]]
RULES: tuple[Rule, ...] = (
    (
        "jobs_days",
        Job,
        deletion.of_job,
        Job.state.in_(FINISHED) & Job.parent_id.is_(None) & ~exists().where(ModelVersion.job_id == Job.id),
    ),
    ("predictions_days", Prediction, deletion.of_prediction, Prediction.id.is_not(None)),
    (
        "images_days",
        Image,
        deletion.of_image,
        ~exists().where(Prediction.image_id == Image.id)
        & ~exists().where(DatasetItem.image_id == Image.id)
        & ~exists().where(ImageLabel.image_id == Image.id)
        & ~exists().where(Measurement.image_id == Image.id),
    ),
)
"""(name in the project's rules, table, what goes along, which rows may go), ordered so that one frees the next."""


def apply(database: Database) -> int:
    """Delete what is older than the rules of its project allow; how many objects."""
    with database.read() as session:
        projects = [row for row in session.scalars(select(Project)) if any((row.retention or {}).values())]
    return sum(_apply(database, project.id, project.retention or {}, rule) for project in projects for rule in RULES)


def _apply(database: Database, project_id: UUID, days: dict[str, int | None], rule: Rule) -> int:
    name, table, planned, may_go = rule
    kept = days.get(name)
    if kept is None:
        return 0
    old = (table.project_id == project_id) & (table.created_at < now() - timedelta(days=kept)) & may_go
    gone, after = 0, None
    while True:
        more = old if after is None else old & (table.id > after)
        with database.write() as session:
            ids = session.scalars(select(table.id).where(more).order_by(table.id).limit(AT_ONCE)).all()
            gone += sum(_delete(session, session.get_one(table, each), planned) for each in ids)
        if len(ids) < AT_ONCE:
            return gone
        after = ids[-1]


def _delete(session: Session, row: Any, planned: Callable[[Session, Any], deletion.Deletion]) -> bool:
    project_id, going = row.project_id, planned(session, row)
    try:
        gone = deletion.carry_out(session, going, derived=True)
    except Conflict:  # an unfinished job needs it; a later sweep looks again
        return False
    line = deletion.audited(going, gone)[:255]
    session.add(AuditLine(project_id=project_id, who=WHO, what=going.deed, object=line))
    return True
