"""The page of a project: its keys, members, retention rules and audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request
from fastapi.responses import Response
from sqlalchemy import select

from app.admission import keys as admission, members as member_admission, projects
from app.http.callers import Caller, require
from app.http.endpoints import validated
from app.http.paging import Page
from app.http.resources import Read, ServicesDep, Write
from app.pages.rendering import Facts, new_router, next_page, page, render, see, uuid_of, visitor_of
from app.representations.keys import describe
from app.roles import ROLES
from app.schemas.keys import NewKey
from app.schemas.members import Member, NewMember, NewRole
from app.schemas.projects import Retention
from app.store import keys, members, projects as store, tables
from app.store.tables import ApiKey, AuditLine

router = new_router()
MOST_KEYS = 200
RULES = {"predictions_days": "Stored predictions", "images_days": "Images nothing was made from", "jobs_days": "Jobs"}


@page(router, "/project", "project.html", "keys:admin")
def project(request: Request, caller: Caller, session: Read, services: ServicesDep, listed: Page) -> Facts:
    """The keys and members of the project, its retention rules, and who did what, newest first."""
    row = store.get(session, caller.project_id, caller.project_id)
    lines = listed.listing(
        session, select(AuditLine).where(AuditLine.project_id == caller.project_id), AuditLine.id, _line
    )
    found = session.scalars(keys.owned(caller.project_id).order_by(ApiKey.id.desc()).limit(MOST_KEYS))
    return {
        "name": row.name,
        "keys": [describe(each) for each in found],
        "members": [
            Member.of(each)
            for each in session.scalars(
                members.owned(caller.project_id).order_by(tables.Member.id.desc()).limit(MOST_KEYS)
            )
        ],
        "provider": services.settings.oidc_name if services.provider is not None else None,
        "kinds": {"email": "Verified address", "subject": "Subject", "group": "Group"},
        "roles": [role for role, scopes in ROLES.items() if scopes <= caller.scopes],
        "rules": {name: (label, (row.retention or {}).get(name)) for name, label in RULES.items()},
        "audit": lines.items,
        "page": {"next": next_page(request, lines.next_cursor)},
    }


@router.post("/project/keys", dependencies=[require("keys:admin")])
def create_key(
    request: Request, caller: Caller, session: Write, name: Annotated[str, Form()], role: Annotated[str, Form()]
) -> Response:
    """The form that makes a key; the secret is shown on this one page and nowhere else."""
    row, secret = admission.create(session, caller, validated(NewKey, {"name": name.strip(), "role": role}))
    answer = render(
        request,
        "key.html",
        {"key": describe(row), "secret": secret},
        visitor=visitor_of(request, caller, session),
        place="/project",
    )
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.post("/project/keys/{key_id}/revoke", dependencies=[require("keys:admin")])
def revoke_key(key_id: str, caller: Caller, session: Write, services: ServicesDep) -> Response:
    """The button that ends a key."""
    admission.revoke(session, caller, uuid_of(key_id))
    services.key_cache.forget()
    return see("/project")


@router.post("/project/members", dependencies=[require("keys:admin")])
def add_member(
    caller: Caller,
    session: Write,
    services: ServicesDep,
    kind: Annotated[str, Form()],
    value: Annotated[str, Form()],
    role: Annotated[str, Form()],
) -> Response:
    """The form that lets somebody of the OpenID provider in."""
    sent = {"kind": kind, "value": value.strip(), "role": role}
    member_admission.create(session, caller, validated(NewMember, sent))
    services.key_cache.forget()
    return see("/project")


@router.post("/project/members/{member_id}/role", dependencies=[require("keys:admin")])
def change_member(
    member_id: str, caller: Caller, session: Write, services: ServicesDep, role: Annotated[str, Form()]
) -> Response:
    """The form that gives a member another role."""
    member_admission.change(session, caller, uuid_of(member_id), validated(NewRole, {"role": role}).role)
    services.key_cache.forget()
    return see("/project")


@router.post("/project/members/{member_id}/remove", dependencies=[require("keys:admin")])
def remove_member(member_id: str, caller: Caller, session: Write, services: ServicesDep) -> Response:
    """The button that ends a membership."""
    member_admission.remove(session, caller, uuid_of(member_id))
    services.key_cache.forget()
    return see("/project")


@router.post("/project/retention", dependencies=[require("retention:write")])
def set_retention(
    caller: Caller,
    session: Write,
    predictions_days: Annotated[str, Form()] = "",
    images_days: Annotated[str, Form()] = "",
    jobs_days: Annotated[str, Form()] = "",
) -> Response:
    """The form that says for how many days the project keeps what it stores; empty means for ever."""
    sent = {"predictions_days": predictions_days, "images_days": images_days, "jobs_days": jobs_days}
    days = {name: int(text) if text.isascii() and text.isdigit() else (text or None) for name, text in sent.items()}
    projects.set_retention(session, caller, caller.project_id, validated(Retention, days))
    return see("/project")


def _line(row: AuditLine) -> dict[str, object]:
    return {"at": row.created_at, "who": row.who, "what": row.what, "object": row.object, "request_id": row.request_id}
