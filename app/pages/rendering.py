"""Renders facts as HTML, or as JSON at the same address with `.json`.

`page` registers both from one function, so they cannot part. Templates escape everything they print.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.errors import NotFound, Problem
from app.http.callers import Caller, require
from app.http.endpoints import noun_router
from app.http.resources import Read
from app.http.sessions import COOKIE, forget, form_token, read_session
from app.imaging.formats import NAMES, SUFFIXES
from app.imaging.statistics import WARNINGS
from app.job_kinds import KINDS
from app.metric_table import METRICS
from app.pages import words
from app.pages.layers import SHAPES
from app.roles import Principal
from app.schemas.base import ROOT_PATH
from app.store.tables import ApiKey, Project

STATIC = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "static").iterdir())}
BUNDLES = {path.name: path for path in (Path(__file__).parent / "vendor").glob("*.js")}
"""Scripts of others that `web/fetch` put there at set-up, served like ours; none where no registry was in reach."""
DIGESTS = {
    name: hashlib.sha256(content).hexdigest()[:12]
    for name, content in [*STATIC.items(), *((name, path.read_bytes()) for name, path in BUNDLES.items())]
}
MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

ADDRESS = re.compile(r"/(v1/)?(compare|datasets|images|jobs|models|predictions)([/?]|$)")

Facts = dict[str, Any]
Finds = TypeVar("Finds", bound=Callable[..., Facts | Awaitable[Facts]])


def new_router() -> APIRouter:
    """A router for pages: read as strictly as the API, and left out of its document."""
    return noun_router("pages", prefix="", include_in_schema=False)


@dataclass(frozen=True)
class Visitor:
    """Who looks at a page, as far as a template needs to know."""

    caller: Principal
    project: str
    signed_in: bool
    csrf_token: str
    key: str = ""

    def may(self, scope: str) -> bool:
        """True when a form that needs the scope is worth showing."""
        return self.caller.may(scope)


def visitor_of(request: Request, caller: Caller, session: Read) -> Visitor:
    """The visitor of this request."""
    project = session.get_one(Project, caller.project_id)
    key = session.get(ApiKey, caller.key_id) if caller.key_id else None
    shown = key.name if key else caller.who if caller.person else ""
    return Visitor(caller, project.name, COOKIE in request.cookies, form_token(request), shown)


def page(
    router: APIRouter, address: str, template: str, *scopes: str, dressed: Callable[[Facts], Facts] = lambda facts: {}
) -> Callable[[Finds], Finds]:
    """Serve what a function finds out as a page at `address` and as JSON at `address` + `.json` (`/index.json` for
    `/`).

    scopes   what the caller must be allowed to do
    dressed  what only the drawing needs, computed from the facts: charts
    """

    def register(facts_of: Finds) -> Finds:
        def as_json(facts: Facts = Depends(facts_of, scope="function")) -> Response:
            return JSONResponse(_addressed(_plain(facts)), headers={"Cache-Control": "private, no-cache"})

        def as_page(
            request: Request,
            facts: Facts = Depends(facts_of, scope="function"),
            visitor: Visitor = Depends(visitor_of, scope="function"),
        ) -> Response:
            facts = _plain(facts)
            return render(
                request,
                template,
                facts | dressed(facts),
                visitor=visitor,
                place=_place(address),
                address=_json_address(request),
            )

        allowed = [require(*scopes)]
        for path, answer in ((json_path(address), as_json), (address, as_page)):
            router.add_api_route(
                path, answer, methods=["GET"], name=facts_of.__name__, dependencies=allowed, response_model=None
            )
        return facts_of

    return register


def render(
    request: Request,
    template: str,
    context: Mapping[str, Any],
    *,
    visitor: Visitor | None,
    place: str = "",
    address: str = "",
    status: int = 200,
    menu: bool = False,
) -> HTMLResponse:
    """A page; `place` is the entry of the menu it belongs to, `address` where its facts are as JSON.

    menu  shown to nobody in particular as well
    """
    text = TEMPLATES.get_template(template).render(
        context,
        visitor=visitor,
        place=place,
        address=address,
        menu=menu,
        base=str(request.base_url).rstrip("/") + ROOT_PATH.get(),
    )
    return HTMLResponse(text, status, {"Cache-Control": "private, no-cache", "Vary": "Cookie"})


def problem_page(request: Request, problem: Problem, headers: Mapping[str, str]) -> Response:
    """What went wrong, for a person; who has to sign in is taken there and brought back afterwards."""
    open_to_all = request.app.state.services.settings.open
    if problem.status == 401 and request.method == "GET" and (COOKIE in request.cookies or not open_to_all):
        here = _here(request)
        answer: Response = RedirectResponse(here if open_to_all else f"/login?{urlencode({'next': here})}", 303)
        # A session that has ended would only be refused again.
        forget(request.app.state.services, answer)
        return answer
    if (
        problem.status == 404
        and request.method == "GET"
        and len(request.url.path) > 1
        and request.url.path.endswith("/")
    ):
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/{request.url.path.strip('/')}{query}", 303)
    caller = getattr(request.state, "caller", None)
    visitor = Visitor(caller, "", COOKIE in request.cookies, form_token(request)) if caller else None
    back = request.headers.get("referer", "")
    context = {
        "problem": problem.body(request_id=request.scope.get("request_id")),
        "back": back if back.startswith(str(request.base_url)) else "",
    }
    known = open_to_all or read_session(request.app.state.services, request.cookies.get(COOKIE, "")) is not None
    answer = render(request, "problem.html", context, visitor=visitor, status=problem.status, menu=known)
    answer.headers.update(headers)
    return answer


def see(address: str) -> RedirectResponse:
    """After a form: look at the page of what was done, so that reloading it does not send the form again."""
    return RedirectResponse(address, 303)


def uuid_of(text: str) -> uuid.UUID:
    """The id in an address; one that is no id is as unknown as any other."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise NotFound from None


def next_page(request: Request, cursor: str | None) -> str | None:
    """The address of the page after this one."""
    if cursor is None:
        return None
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return f"{request.url.path}?{urlencode([*query, ('cursor', cursor)])}"


def _addressed(facts: Any) -> Any:
    """The facts with the prefix of a proxy before the addresses of pages and of the API."""
    if not ROOT_PATH.get():
        return facts
    if isinstance(facts, dict):
        return {name: _addressed(value) for name, value in facts.items()}
    if isinstance(facts, list):
        return [_addressed(value) for value in facts]
    return ROOT_PATH.get() + facts if isinstance(facts, str) and ADDRESS.match(facts) else facts


def json_path(address: str) -> str:
    """Where the facts of a page are."""
    return "/index.json" if address == "/" else f"{address}.json"


def static_file(request: Request, name: str) -> Response:
    """A file of ours, or a bundle; one whose address carries its digest may be kept for ever."""
    if name not in STATIC and name not in BUNDLES:
        raise NotFound
    kept = "public, max-age=31536000, immutable" if request.query_params.get("v") == DIGESTS[name] else "no-cache"
    headers = {"ETag": f'"{DIGESTS[name]}"', "Cache-Control": kept}
    if request.headers.get("if-none-match", "").removeprefix("W/") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    content = STATIC[name] if name in STATIC else BUNDLES[name].read_bytes()
    return Response(content, media_type=MEDIA_TYPES[Path(name).suffix], headers=headers)


def _plain(facts: Facts) -> Facts:
    return jsonable_encoder(facts, custom_encoder={datetime: lambda moment: moment.isoformat().replace("+00:00", "Z")})


def _place(address: str) -> str:
    return "/" + address.split("/")[1]


def _here(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _json_address(request: Request) -> str:
    query = f"?{request.url.query}" if request.url.query else ""
    return quote(json_path(request.url.path)) + query


def _static_address(name: str) -> str:
    return f"/static/{name}?v={DIGESTS[name]}"


def _bundle_address(name: str) -> str:
    """The address of a bundle; empty where it was not fetched."""
    return _static_address(name) if name in BUNDLES else ""


def _job_title(job: Mapping[str, Any]) -> str:
    return str(job["title"])


def _best_figure(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figure that a job is told by: the metric it chose its best weights by, or Dice."""
    result = job["result"] or {}
    figures = result.get("metrics") or result.get("means") or {}
    for name in (job["spec"].get("best_metric"), "dice", *figures):
        if name in METRICS and figures.get(name) is not None:
            return {"name": name, "value": figures[name]}
    return None


def _took(job: Mapping[str, Any]) -> float | None:
    if not (job["started_at"] and job["finished_at"]):
        return None
    return (words.moment(job["finished_at"]) - words.moment(job["started_at"])).total_seconds()


def _betti_line(betti: Mapping[str, list[int]]) -> str:
    """The Betti numbers of the first class, for a card."""
    return next(
        (", ".join(f"β{k} {words.number(count)}" for k, count in enumerate(counts)) for counts in betti.values()), ""
    )


def _dataset_page(ref: str) -> str:
    name, _, number = ref.partition("@")
    return f"/datasets/{quote(name)}/versions/{quote(number)}" if number else "/datasets"


def _templates() -> Environment:
    env = Environment(
        loader=PackageLoader("app.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "ago": words.ago,
        "exact": words.exact,
        "duration": words.duration,
        "size": words.size,
        "number": words.number,
        "signed": words.signed,
        "metric": words.metric_number,
        "by_size": words.by_size,
        "loss": words.loss_sentence,
        "job_title": _job_title,
        "took": _took,
        "best_figure": _best_figure,
        "betti_line": _betti_line,
        "lane": lambda job: KINDS[job["kind"]].lane,
        "significant": words.significant,
        "better": words.better,
        "dataset_page": _dataset_page,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "pretty_line": lambda value: json.dumps(value, ensure_ascii=False),
    }
    env.globals |= {
        "static": _static_address,
        "bundle": _bundle_address,
        "metrics": METRICS,
        "headline": words.HEADLINE,
        "formats": NAMES,
        "accept": ",".join(
            dict.fromkeys(part for suffix in SUFFIXES for part in (suffix, suffix[suffix.rfind(".") :]))
        ),
        "warned": WARNINGS,
        "marks": {"mark-lost": SHAPES["break"], "mark-made": SHAPES["merge"], "mark-hole": SHAPES["hole"]},
    }
    return env


TEMPLATES = _templates()
