"""Signing in by the OpenID provider, and choosing among one's projects."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Depends, Form, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.errors import Forbidden, InvalidToken, NotFound, Problem, Unauthenticated
from app.http import attempts
from app.http.callers import SESSION_ENDED, Caller
from app.http.people import member
from app.http.resources import Read, ServicesDep
from app.http.sessions import COOKIE, end_session, person_session, read_session, session_id_of, set_session
from app.pages.rendering import new_router, render, see, visitor_of
from app.pages.sessions import form, local
from app.roles import Person, Principal
from app.services import Services
from app.store import audit, members, sign_ins

router = new_router()
CHOOSE = "/session/project"


@router.get(attempts.PATH)
async def begin(request: Request, services: ServicesDep, next: str = "/") -> Response:
    """Send the browser to the provider."""
    if services.provider is None:
        raise NotFound
    attempt, cookie = attempts.begin(services, local(next))
    try:
        address = await services.provider.address(_own(request), attempt.state, attempt.nonce, attempt.challenge)
    except Problem as problem:
        return _refused(request, services, problem)
    answer = RedirectResponse(address, 303, {"Cache-Control": "no-store"})
    attempts.keep(services, answer, cookie)
    return answer


@router.get(f"{attempts.PATH}/callback")
async def come_back(
    request: Request, services: ServicesDep, code: str = "", state: str = "", iss: str = "", error: str = ""
) -> Response:
    """Where the provider sends the browser back: whoever its code is about is signed in, once."""
    if services.provider is None:
        raise NotFound
    try:
        attempt = attempts.come_back(services, request, state)
        if attempt is None or not await run_in_threadpool(_first_time, services, attempt):
            raise InvalidToken("This sign-in was not begun in this browser, is over, or took too long. Sign in again.")
        if error:
            raise Forbidden(f"The provider did not sign you in: {re.sub(r'[^a-z_]', '', error)[:60]}.")
        if iss not in ("", services.provider.issuer):  # RFC 9207
            raise InvalidToken("The answer came from another provider than the one that was asked. Sign in again.")
        person = await services.provider.exchange(code, _own(request), attempt.verifier, attempt.nonce)
        name, projects = await run_in_threadpool(_signed_in, services, person)
    except Problem as problem:
        return _refused(request, services, problem)
    # Not a redirect: to the browser that would still be part of the way from the provider's site, on which it keeps
    # the session's cookie back.
    goes_to = attempt.next if projects == 1 else f"{CHOOSE}?{urlencode({'next': attempt.next})}"
    # The prefix of a proxy is put before addresses in attributes that hold nothing else.
    context = {"next": goes_to, "refresh": services.settings.root_path + goes_to}
    answer = render(request, "signed_in.html", context, visitor=None)
    answer.headers.update({"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
    set_session(services, answer, name, time.time() + int(services.settings.session_s))
    attempts.forget(services, answer)
    return answer


@router.get(CHOOSE)
def choices(request: Request, caller: Caller, session: Read, next: str = "/") -> Response:
    """The form that asks which project a person wants to see."""
    return render(
        request,
        "choose.html",
        {"projects": caller.projects, "next": local(next)},
        visitor=visitor_of(request, caller, session),
    )


async def _own_session(request: Request, services: ServicesDep, caller: Caller) -> UUID:
    """The session of a person that has let the request in; Forbidden for keys and bearer tokens."""
    session_id = session_id_of(read_session(services, request.cookies.get(COOKIE, "")) or "")
    if session_id is None or "authorization" in request.headers:
        raise Forbidden(
            "Only somebody whom the OpenID provider has signed in here may change the project. A key is of one project;"
            " a bearer token names it in the header X-Project."
        )
    return session_id


@router.post(CHOOSE)
def choose(
    request: Request,
    services: ServicesDep,
    session_id: Annotated[UUID, Depends(_own_session)],
    project: Annotated[str, Form()],
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Go on in another project, with another session that ends with the first: a form of the old one that is still
    open is refused.
    """
    answer = see(local(next))
    with services.database.write() as session:
        found = sign_ins.find(session, session_id)
        if found is None:
            raise Unauthenticated(SESSION_ENDED)
        old, person = found
        name = _begun(session, member(session, person, project), old.until)
        set_session(services, answer, name, old.until.timestamp())
    end_session(services, request)
    return answer


def _first_time(services: Services, attempt: attempts.Attempt) -> bool:
    with services.database.write() as session:
        return sign_ins.use(session, attempt.state, datetime.fromtimestamp(attempt.until, UTC))


def _signed_in(services: Services, person: Person) -> tuple[str, int]:
    """The name of a new session in the first of a person's projects, and how many they have; Forbidden for none."""
    with services.database.write() as session:
        first = next((str(project_id) for project_id, _ in members.projects_of(session, person)), None)
        principal = member(session, person, first)
        until = datetime.now(UTC) + timedelta(seconds=services.settings.session_s)
        return _begun(session, principal, until), len(principal.projects)


def _begun(session: Session, principal: Principal, until: datetime) -> str:
    """The name of a new session, which the audit tells of with the person's subject."""
    assert principal.person is not None
    audit.note(session, principal, "session.begin", principal.person.subject)
    return person_session(sign_ins.begin(session, principal.project_id, principal.person, until).id)


def _own(request: Request) -> str:
    """Where the provider sends browsers back to, as this browser names the service."""
    settings = request.app.state.services.settings
    scheme = "https" if settings.secure_cookies else request.url.scheme
    return f"{scheme}://{request.url.netloc}{settings.root_path}{attempts.PATH}/callback"


def _refused(request: Request, services: Services, problem: Problem) -> Response:
    answer = form(request, services, "/", problem.detail, problem.status)
    answer.headers.update(problem.headers())
    attempts.forget(services, answer)
    return answer
