"""Pages that list what a deletion takes along, and the button that carries it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import Form, Request
from fastapi.responses import Response

from app.admission import deletion
from app.http.callers import Caller, require
from app.http.resources import Read, Write
from app.pages.models import number_of
from app.pages.rendering import Facts, new_router, page, see, uuid_of
from app.store.deletion import Deletion

router = new_router()
PLACES: tuple[tuple[str, str, Callable[..., Deletion]], ...] = (
    ("/images/{image_id}", "images:write", deletion.image),
    ("/predictions/{prediction_id}", "images:write", deletion.prediction),
    ("/jobs/{job_id}", "jobs:write", deletion.job),
    ("/models/{name}/versions/{number}", "models:write", deletion.model_version),
    ("/datasets/{name}/versions/{number}", "datasets:write", deletion.dataset_version),
)
"""(address of the object's page, scope, what finds the object)."""


def _serve(address: str, scope: str, find: Callable[..., Deletion]) -> None:
    listed = "/" + address.split("/")[1]

    @page(router, f"{address}/delete", "delete.html", scope)
    def plan(request: Request, caller: Caller, session: Read) -> Facts:
        planned = find(session, caller, **_read(request.path_params))
        return {"deletion": deletion.describe(session, planned), "back": listed}

    @router.post(f"{address}/delete", dependencies=[require(scope)])
    def delete(request: Request, caller: Caller, session: Write, derived: Annotated[str, Form()] = "") -> Response:
        planned = find(session, caller, **_read(request.path_params))
        deletion.delete(session, caller, planned, derived=derived == "yes")
        return see(listed)


def _read(parts: Mapping[str, str]) -> dict[str, Any]:
    """The parts of an address as ids, numbers and names."""
    return {
        name: uuid_of(text) if name.endswith("_id") else number_of(text) if name == "number" else text
        for name, text in parts.items()
    }


for place in PLACES:
    _serve(*place)
