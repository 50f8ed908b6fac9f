"""Signing in and out: a key is exchanged for a cookie that stands for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request
from fastapi.responses import RedirectResponse, Response

from app.http.callers import Caller, refuse_other_sites
from app.http.resources import ServicesDep
from app.http.sessions import sign_in, sign_out
from app.pages.rendering import new_router, render, see

router = new_router()


@router.get("/login")
def login_page(request: Request, services: ServicesDep, next: str = "/") -> Response:
    """The form that takes a key."""
    return _form(request, services, next)


@router.post("/login")
def login(
    request: Request, services: ServicesDep, key: Annotated[str, Form()] = "", next: Annotated[str, Form()] = "/"
) -> Response:
    """Set the session cookie and go where the visitor wanted to go."""
    refuse_other_sites(request)
    answer = see(local(next))
    if sign_in(services, answer, key.strip()):
        return answer
    return _form(
        request,
        services,
        next,
        "This key is not valid: it is misspelt, was revoked, or has expired. A key looks like ts_ab12cd34_ and 43 more"
        " letters and digits.",
        401,
    )


@router.post("/logout")
def logout(services: ServicesDep, caller: Caller) -> Response:
    """Take the cookie back."""
    answer = RedirectResponse("/login", 303)
    sign_out(services, answer)
    return answer


def local(address: str) -> str:
    """The address when it is a page of ours, else the home page: a link must not lead through us to another site."""
    return (
        address if address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable() else "/"
    )


def _form(request: Request, services: ServicesDep, next: str, wrong: str = "", status: int = 200) -> Response:
    context = {"next": local(next), "wrong": wrong, "session_s": services.settings.session_s}
    return render(request, "login.html", context, visitor=None, status=status)
