"""Endpoints for projects. An operator lists and creates them but reads none of their content."""

from __future__ import annotations

from uuid import UUID

from fastapi import Response

from app.admission import projects as admission
from app.errors import Conflict, IdempotencyConflict, IdempotencyInProgress, InvalidCursor, NotFound, may_answer
from app.http.callers import Caller, require
from app.http.endpoints import Id, noun_router
from app.http.idempotency import once
from app.http.paging import Listing, Page
from app.http.resources import Read, Write
from app.schemas.projects import NewProject, Project, Retention
from app.store import audit, projects as store, tables

router = noun_router("projects")


@router.post(
    "/projects",
    status_code=201,
    dependencies=[require("projects:admin"), once],
    responses=may_answer(IdempotencyConflict, Conflict, IdempotencyInProgress),
)
def create_project(new: NewProject, caller: Caller, session: Write, response: Response) -> Project:
    """Make a project. Its first key is made on the host: `toposerve keys create --project NAME`."""
    row = store.create(session, new.name)
    audit.note(session, caller, "project.create", row.id, project_id=row.id)
    response.headers["Location"] = f"/v1/projects/{row.id}"
    return Project.of(row)


@router.get("/projects", responses=may_answer(InvalidCursor))
def list_projects(caller: Caller, session: Read, page: Page) -> Listing[Project]:
    """The caller's project; for an operator every project."""
    return page.listing(session, store.visible(_seen_by(caller)), tables.Project.id, Project.of)


@router.get("/projects/{project_id}", responses=may_answer(NotFound))
def read_project(project_id: Id, caller: Caller, session: Read) -> Project:
    """One project."""
    return Project.of(store.get(session, project_id, _seen_by(caller)))


@router.get("/projects/{project_id}/retention", responses=may_answer(NotFound))
def read_retention(project_id: UUID, caller: Caller, session: Read) -> Retention:
    """How long a project keeps what it stores."""
    return Retention.model_validate(store.get(session, project_id, _seen_by(caller)).retention or {})


@router.put(
    "/projects/{project_id}/retention",
    dependencies=[require("retention:write")],
    responses=may_answer(NotFound),
)
def set_retention(project_id: UUID, rules: Retention, caller: Caller, session: Write) -> Retention:
    """Say how long the caller's project keeps what it stores. What is older goes with the next sweep of a worker."""
    admission.set_retention(session, caller, project_id, rules)
    return rules


def _seen_by(caller: Caller) -> UUID | None:
    return None if caller.may("projects:admin") else caller.project_id
