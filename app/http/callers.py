"""Who is asking, and what they may see.

A program sends `Authorization: Bearer ts_...`, or a token of the OpenID provider in place of the key; a browser has a
session cookie that was made from a key; with `open` set everybody is an administrator of the project `default`. A
bearer wins over a cookie. Callers that a browser brings along by itself (cookie, open) may change things only from our
own pages: same origin, and for a cookie with its CSRF token. Other projects do not exist for a caller: their ids answer
404 like any unknown one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.models import Dependant
from fastapi.params import Depends as DependsParam
from sqlalchemy.exc import OperationalError, TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.errors import CrossSite, Forbidden, Unauthenticated
from app.http import people
from app.http.sessions import (
    COOKIE,
    CSRF_FIELD,
    CSRF_HEADER,
    TOKEN,
    cached_session,
    csrf_token,
    read_session,
    session_id_of,
)
from app.http.wrong_keys import network_of
from app.roles import ROLES, Principal, granted
from app.services import Services
from app.store import keys, projects, sessions
from app.store.tables import ApiKey, now

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
"""What the forms of our pages send; those of the second kind carry a file, which the API under /v1 reads as a stream
itself.
"""
SESSION_ENDED = "The session has ended. Sign in again."
BY_PASSWORD = "/label-studio/"
"""Where a key may be the password of Basic authentication, because that program can send nothing else."""
SAFE = {"GET", "HEAD", "OPTIONS"}
TOKEN_IN_URL = re.compile(rb"ts_[A-Za-z0-9]{8}(_|%5f)[A-Za-z0-9]{16}", re.IGNORECASE)


async def identify(request: Request) -> Principal:
    """The caller of this request, or `Unauthenticated`.

    It asks for nothing but the request: FastAPI goes through what a dependency depends on at each place that names it,
    also when the answer is known.
    """
    services: Services = request.app.state.services
    if TOKEN_IN_URL.search(request.scope.get("query_string", b"")):
        raise Unauthenticated(
            "A key must not stand in an address, where logs and histories keep it. Revoke this key and send its"
            " successor as `Authorization: Bearer ts_...`."
        )
    presented = request.headers.getlist("authorization")
    if request.url.path.startswith(BY_PASSWORD):
        presented = [_as_bearer(each) for each in presented]
    if presented:
        principal = await _by_bearer(request, services, presented)
    elif COOKIE in request.cookies:
        principal = await _by_cookie(request, services)
    elif services.settings.open:
        refuse_other_sites(request)
        principal = await run_in_threadpool(_open_caller, services)
    else:
        raise Unauthenticated
    if people.HEADER in request.headers and not (presented and principal.person):  # a token's has been heard
        await people.check_project(request, services, principal)
    request.state.caller = principal
    structlog.contextvars.bind_contextvars(caller=principal.who)
    return principal


Caller = Annotated[Principal, Depends(identify)]

SCHEMES = {
    "HTTPBearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "ts_...",
        "description": "An API key; `POST /v1/keys` makes more. Or a token of the OpenID provider, if there is one.",
    },
    "APIKeyCookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "A browser session, made at /login.",
    },
}
"""How a caller may say who is asking, for the OpenAPI document."""


def asks_who(dependant: Dependant) -> bool:
    """True for an endpoint that only callers may use."""
    return dependant.call is identify or any(map(asks_who, dependant.dependencies))


def require(*scopes: str) -> DependsParam:
    """A dependency that lets only callers with these scopes in: `dependencies=[require("images:read")]`."""

    async def check(caller: Caller) -> None:
        missing = [scope for scope in scopes if not caller.may(scope)]
        if missing:
            having = [role for role, granted_to in ROLES.items() if granted_to.issuperset(missing)]
            whose = "your role" if caller.person else "the key of role"
            raise Forbidden(
                f"This needs the scope {' and '.join(missing)}, which {whose} {caller.role} does not have."
                f" Roles that have it: {', '.join(having)}."
            )

    return Depends(check)


def _as_bearer(authorization: str) -> str:
    """Basic authentication (RFC 7617) with a key as password, as if the key had been sent as a bearer."""
    scheme, _, packed = authorization.partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        return f"Bearer {base64.b64decode(packed, validate=True).decode('latin-1').partition(':')[2]}"
    except binascii.Error:
        return authorization


async def by_key(request: Request, services: Services, token: str) -> Principal:
    """The caller whose key this is, or Unauthenticated; wrong ones are counted as in `identify`."""
    return await _by_bearer(request, services, [f"Bearer {token}"])


async def _by_bearer(request: Request, services: Services, presented: list[str]) -> Principal:
    scheme, _, token = presented[0].partition(" ")
    well = len(presented) == 1 and scheme.lower() == "bearer"
    if services.provider is not None and well and people.is_token(token):
        return await people.by_token(request, services, token)
    name = hashlib.sha256(token.encode()).digest() if well else b""
    known = services.key_cache.get(name)
    if known is not None:
        return known
    async with services.wrong_keys.watched(network_of(request.scope.get("client"))):
        if not name or not TOKEN.fullmatch(token):
            raise Unauthenticated
        return await _known(services, name, lambda session: keys.verify(session, token))


Find = Callable[[Session], ApiKey | Principal | None]


async def _known(services: Services, name: bytes, find: Find, refusal: str | None = None) -> Principal:
    """The caller that the cache has under this name, else the one who is found in the database."""
    known = services.key_cache.get(name)
    return known if known is not None else await run_in_threadpool(_look_up, services, name, find, refusal)


def _look_up(services: Services, name: bytes, find: Find, refusal: str | None) -> Principal:
    with services.database.read() as session:
        row = find(session)
    if row is None:
        raise Unauthenticated(refusal)
    if isinstance(row, Principal):
        services.key_cache.put(name, row, None)  # a cookie that has ended is refused before it is looked up
        return row
    return _cached(services, name, row)


def _cached(services: Services, name: bytes, row: ApiKey) -> Principal:
    principal = Principal(row.project_id, f"ts_{row.prefix}", row.role, granted(row.role, row.scopes), row.id)
    services.key_cache.put(name, principal, row.expires_at)
    stale = row.last_used_at is None or now() - row.last_used_at > keys.USED_EVERY
    if stale and services.key_cache.may_note_use:
        try:
            with services.database.write() as session:
                keys.touch(session, row.id)
        except (OperationalError, PoolTimeout):
            services.key_cache.could_not_note_use()
            # A caller is not turned away because the note about them could not be written.
            structlog.get_logger().warning("last_used_not_written")
    return principal


def _open_caller(services: Services) -> Principal:
    found = services.key_cache.get(b"open")
    if found is not None:
        return found
    with services.database.read() as session:
        project = projects.find(session, projects.DEFAULT)
    if project is None:
        with services.database.write() as session:
            project = projects.ensure(session, projects.DEFAULT)
    principal = Principal(project.id, "open", "admin", ROLES["admin"])
    services.key_cache.put(b"open", principal, None)
    return principal


async def _by_cookie(request: Request, services: Services) -> Principal:
    cookie = request.cookies[COOKIE]
    named = read_session(services, cookie)
    if named is None:
        raise Unauthenticated(SESSION_ENDED)
    if request.method not in SAFE:
        refuse_other_sites(request)
        if not hmac.compare_digest(csrf_token(services, cookie).encode(), (await _sent_csrf(request)).encode()):
            await request.close()  # what a refused form has brought along
            raise CrossSite
    session_id = session_id_of(named)
    refusal = SESSION_ENDED if session_id else "The key of this session is no longer valid. Sign in with another."
    name = cached_session(cookie)

    def find(session: Session) -> ApiKey | Principal | None:
        if sessions.has_ended(session, cookie):
            raise Unauthenticated(SESSION_ENDED)
        if session_id is None:
            return keys.live(session, named)
        return people.by_session(session, session_id) if services.provider is not None else None

    return await _known(services, name, find, refusal)


async def _sent_csrf(request: Request) -> str:
    sent: object = request.headers.get(CSRF_HEADER)
    if sent is None and request.headers.get("content-type", "").startswith(
        FORMS if not request.url.path.startswith("/v1/") else FORMS[:1]
    ):
        sent = (await request.form()).get(CSRF_FIELD)
    return sent if isinstance(sent, str) else ""


def refuse_other_sites(request: Request) -> None:
    """A page of another site may not act through a browser that can reach us."""
    if request.method in SAFE:
        return
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    settings = request.app.state.services.settings
    if settings.open and origin in settings.cors_origins:
        return  # the origins that the preflight lets in; nobody is signed in whose name they could use
    foreign = site not in (None, "same-origin", "none")
    if foreign or (origin is not None and urlsplit(origin).netloc != request.headers.get("host")):
        raise CrossSite("This request comes from a page of another site. Use the pages of this service, or a key.")
