"""Browser sessions: a signed cookie for a key or a person, and the CSRF token."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from datetime import UTC, datetime
from uuid import UUID

from fastapi import Request
from fastapi.responses import Response

from app.services import Services
from app.store import keys, sessions, sign_ins

COOKIE = "toposerve_session"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
LONG = 33
"""Characters of the name of a person's session."""
TOKEN = re.compile(r"ts_[A-Za-z0-9]{8}_[A-Za-z0-9]{43}")


def sign_in(services: Services, response: Response, token: str) -> bool:
    """Set the session cookie that stands for a key; False when the key is not valid."""
    with services.database.read() as session:
        row = keys.verify(session, token) if TOKEN.fullmatch(token) else None
    if row is None:
        return False
    set_session(services, response, row.prefix, time.time() + int(services.settings.session_s))
    return True


def set_session(services: Services, response: Response, name: str, until: float) -> None:
    """Give the browser the cookie of a session.

    name   first part of a key, or `person_session` of somebody's sign-in
    until  its end in seconds since 1970
    """
    response.set_cookie(
        COOKIE,
        sign_session(services, name, until),
        max_age=max(0, round(until - time.time())),
        httponly=True,
        samesite="strict",
        secure=services.settings.secure_cookies,
        path=services.settings.root_path or "/",
    )


def person_session(session_id: UUID) -> str:
    """The name of a person's session in its cookie; longer than the first part of any key."""
    return f"p{session_id.hex}"


def session_id_of(name: str) -> UUID | None:
    """The person's session that a cookie names; None where it names a key."""
    return UUID(name[1:]) if len(name) == LONG else None


def sign_out(services: Services, response: Response, request: Request) -> None:
    """End the session of a request that was let in by its cookie, here at once and in other processes when their cache
    of keys has ended, and take the cookie back.
    """
    end_session(services, request)
    forget(services, response)


def end_session(services: Services, request: Request) -> None:
    """End the session whose cookie let a request in."""
    cookie, caller = request.cookies.get(COOKIE, ""), request.state.caller
    name = read_session(services, cookie)
    if name is None:
        return
    with services.database.write() as session:
        session_id = session_id_of(name)
        if session_id is not None:
            sign_ins.end(session, session_id)
        else:
            sessions.end(session, caller.project_id, cookie, datetime.fromtimestamp(_until(cookie), UTC))
    services.key_cache.drop(cached_session(cookie))


def forget(services: Services, response: Response) -> None:
    """Take the cookie back, whether its session is good or not."""
    settings = services.settings
    path = settings.root_path or "/"
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=settings.secure_cookies, path=path)


def sign_session(services: Services, name: str, until: float) -> str:
    """The cookie of a session: the key's first part or `person_session`, its end and a word of its own, signed."""
    text = f"{name}.{int(until)}.{secrets.token_urlsafe(9)}"
    return f"{text}.{mac(services.secret, 'session', text)}"


def read_session(services: Services, cookie: str) -> str | None:
    """The first part of the session's key, or `person_session`; None for a cookie that is forged or has ended."""
    text, _, signature = cookie.rpartition(".")
    if not hmac.compare_digest(mac(services.secret, "session", text).encode(), signature.encode()):
        return None
    return text.split(".")[0] if time.time() < _until(text) else None


def cached_session(cookie: str) -> bytes:
    """The name under which the caller of a session is cached."""
    return b"session " + hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).digest()


def _until(cookie: str) -> int:
    return int(cookie.split(".")[1])


def csrf_token(services: Services, cookie: str) -> str:
    """What a form of this session must carry, as field `csrf_token` or header `X-CSRF-Token`."""
    return mac(services.secret, "csrf", cookie)


def form_token(request: Request) -> str:
    """The CSRF token for the forms of the page that is being drawn; empty where there is no session."""
    cookie = request.cookies.get(COOKIE)
    return csrf_token(request.app.state.services, cookie) if cookie else ""


def mac(secret: bytes, purpose: str, text: str) -> str:
    """A signature of 128 bits that means nothing for any other purpose."""
    code = hmac.digest(secret, f"{purpose}\0{text}".encode("utf-8", "surrogatepass"), "sha256")
    return base64.urlsafe_b64encode(code[:16]).rstrip(b"=").decode()
