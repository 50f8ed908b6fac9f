"""A sign-in under way: what an OpenID provider is told and must send back.

All of it follows from one random word in a signed cookie, so nothing is stored before somebody comes back. The cookie
is Lax where that of a session is Strict, because the browser comes back from another site.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from app.http.sessions import mac
from app.services import Services

COOKIE = "toposerve_sign_in"
PATH = "/login/openid"
LASTS_S = 600


@dataclass(frozen=True)
class Attempt:
    """A sign-in that is under way."""

    state: str
    """Comes back with the browser, so that nobody is signed in by a link of somebody else."""
    nonce: str
    """Comes back in the ID token, so that it was made for this sign-in."""
    verifier: str
    """Goes to the provider with the code, so that a stolen code is worth nothing (PKCE)."""
    until: int
    """Its end in seconds since 1970."""
    next: str
    """Where the visitor wanted to go."""

    @property
    def challenge(self) -> str:
        """What the provider is told of the verifier beforehand."""
        return base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()


def begin(services: Services, next: str) -> tuple[Attempt, str]:
    """A new attempt and its cookie."""
    place = base64.urlsafe_b64encode(next.encode()).decode()
    text = f"{secrets.token_urlsafe(24)}.{int(time.time()) + LASTS_S}.{place}"
    return _read(services, text), f"{text}.{mac(services.secret, 'attempt', text)}"


def come_back(services: Services, request: Request, state: str) -> Attempt | None:
    """The attempt of this browser, if it is the one with that state and not too old."""
    text, _, signature = request.cookies.get(COOKIE, "").rpartition(".")
    if not hmac.compare_digest(mac(services.secret, "attempt", text).encode(), signature.encode()):
        return None
    attempt = _read(services, text)
    same = hmac.compare_digest(attempt.state.encode(), state.encode("utf-8", "surrogatepass"))
    return attempt if same and time.time() < attempt.until else None


def keep(services: Services, response: Response, cookie: str) -> None:
    """Give the browser the cookie of its attempt."""
    path, secure = services.settings.root_path + PATH, services.settings.secure_cookies
    response.set_cookie(COOKIE, cookie, max_age=LASTS_S, httponly=True, samesite="lax", secure=secure, path=path)


def forget(services: Services, response: Response) -> None:
    """Take the cookie back."""
    path, secure = services.settings.root_path + PATH, services.settings.secure_cookies
    response.delete_cookie(COOKIE, httponly=True, samesite="lax", secure=secure, path=path)


def _read(services: Services, text: str) -> Attempt:
    word, until, place = text.split(".")
    parts = {name: mac(services.secret, name, word) for name in ("state", "nonce", "verifier", "rest of verifier")}
    return Attempt(
        state=parts["state"],
        nonce=parts["nonce"],
        verifier=parts["verifier"] + parts["rest of verifier"],
        until=int(until),
        next=base64.urlsafe_b64decode(place).decode(),
    )
