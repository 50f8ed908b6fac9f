"""Callers whom an OpenID provider vouches for, and the project they have chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import structlog
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from app.errors import Forbidden, ProjectNotChosen, Unauthenticated
from app.http.wrong_keys import network_of
from app.roles import ROLES, Person, Principal, greatest
from app.services import Services
from app.store import members, projects, sign_ins

HEADER = "X-Project"
"""Names the project that a request is for: its name or its id."""


def is_token(text: str) -> bool:
    """True for what may be a signed token, whoever made it; a key is never one."""
    return text.count(".") == 2


async def by_token(request: Request, services: Services, token: str) -> Principal:
    """The caller whom a bearer token is about.

    InvalidToken when it is not accepted, Forbidden when they are no member of the project, ProjectNotChosen when they
    have to say which, Unavailable when the provider does not answer.
    """
    assert services.provider is not None
    wanted = request.headers.get(HEADER)
    name = b"token " + hashlib.sha256(f"{wanted}\0{token}".encode()).digest()
    known = services.key_cache.get(name)
    if known is not None:
        return known
    async with services.wrong_keys.watched(network_of(request.scope.get("client"))):
        person, ends = await services.provider.bearer(token)
    principal = await run_in_threadpool(_look_up, services, person, wanted)
    services.key_cache.put(name, principal, datetime.fromtimestamp(ends + services.settings.oidc_leeway_s, UTC))
    # The audit names people by address where there is one; this line says which subject it was.
    structlog.get_logger().info("person_admitted", who=principal.who, subject=person.subject, role=principal.role)
    return principal


async def check_project(request: Request, services: Services, principal: Principal) -> None:
    """Refuse a request whose header names another project than the one that the caller's key or session is of."""
    wanted = request.headers.get(HEADER)
    if wanted is not None and not await run_in_threadpool(_is_of, services, principal, wanted):
        raise Forbidden(
            f"{HEADER} names another project than the one of this key or session. Leave the header out, or use a key of"
            " that project."
        )


def member(session: Session, person: Person, wanted: str | None) -> Principal:
    """A person as caller in the project that they want, by name or id, or in the only one they have."""
    found = members.projects_of(session, person)
    names = tuple(name for _, name in found)
    if not found:
        named = f"{person.subject}{f' ({person.email})' if person.email else ''}"
        raise Forbidden(
            f"The OpenID provider knows you as {named}, but you are no member of a project. Ask an administrator of one"
            " to make you a member."
        )
    if wanted is None and len(found) > 1:
        raise ProjectNotChosen(
            f"You are a member of several projects: {_listed(names)}. Name one of them in the header {HEADER}.",
            members={"projects": list(names)},
        )
    for (project_id, name), roles in found.items():
        if wanted in (None, name, str(project_id)):
            scopes = frozenset[str]().union(*(ROLES.get(role, frozenset()) for role in roles))
            return Principal(project_id, person.who, greatest(roles), scopes, person=person, projects=names)
    raise Forbidden(f"You are no member of the project that {HEADER} names. Yours: {_listed(names)}.")


def by_session(session: Session, session_id: UUID) -> Principal | None:
    """The person whose session that is, in the project that they have chosen; None when it has ended.

    Unauthenticated when they are no longer a member there.
    """
    found = sign_ins.find(session, session_id)
    if found is None:
        return None
    try:
        return member(session, found[1], str(found[0].project_id))
    except Forbidden:
        raise Unauthenticated("You are no longer a member of the project of this session. Sign in again.") from None


def _look_up(services: Services, person: Person, wanted: str | None) -> Principal:
    with services.database.read() as session:
        return member(session, person, wanted)


def _is_of(services: Services, principal: Principal, wanted: str) -> bool:
    with services.database.read() as session:
        row = projects.get(session, principal.project_id, principal.project_id)
        return wanted in (row.name, str(row.id))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown}, ... ({len(names)} in all)"
