"""Signing in and out: a key is exchanged for a cookie that stands for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response

from app.errors import TooManyWrongKeys, Unauthenticated
from app.http.callers import Caller, refuse_other_sites
from app.http.resources import ServicesDep
from app.http.sessions import sign_in, sign_out
from app.http.wrong_keys import network_of
from app.pages.rendering import new_router, render, see

router = new_router()


@router.get("/login")
def login_page(request: Request, services: ServicesDep, next: str = "/") -> Response:
    """The form that takes a key."""
    return form(request, services, next)


@router.post("/login")
async def login(
    request: Request, services: ServicesDep, key: Annotated[str, Form()] = "", next: Annotated[str, Form()] = "/"
) -> Response:
    """Set the session cookie and go where the visitor wanted to go."""
    refuse_other_sites(request)
    answer = see(local(next))
    try:
        async with services.wrong_keys.watched(network_of(request.scope.get("client"))):
            if await run_in_threadpool(sign_in, services, answer, key.strip()):
                return answer
            raise Unauthenticated(
                "This key is not valid: it is misspelt, was revoked, or has expired. A key looks like ts_ab12cd34_ and"
                " 43 more letters and digits."
            )
    except (Unauthenticated, TooManyWrongKeys) as refused:
        shown = form(request, services, next, refused.detail, refused.status)
        shown.headers.update(refused.headers() if refused.status == 429 else {})
        return shown


@router.post("/logout")
def logout(request: Request, services: ServicesDep, _caller: Caller) -> Response:
    """End the session."""
    answer = RedirectResponse("/login", 303)
    sign_out(services, answer, request)
    return answer


def local(address: str) -> str:
    """The address when it is a page of ours, else the home page: a link must not lead through us to another site."""
    return (
        address if address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable() else "/"
    )


def form(request: Request, services: ServicesDep, next: str, wrong: str = "", status: int = 200) -> Response:
    """The page that asks for a key, or leads to the OpenID provider; `wrong` says why the last try failed."""
    settings = services.settings
    provider = settings.oidc_name if services.provider is not None else None
    context = {"next": local(next), "wrong": wrong, "session_s": settings.session_s, "provider": provider}
    return render(request, "login.html", context, visitor=None, status=status)
