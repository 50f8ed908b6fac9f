"""Forms that upload a file: store an image, or predict with a model.

They go the way of the API from there on.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from app.admission import images, predictions
from app.errors import Invalid
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.limits import body_up_to
from app.http.resources import ServicesDep
from app.http.sessions import CSRF_FIELD
from app.pages.models import number_of
from app.pages.rendering import new_router, see
from app.roles import Principal
from app.schemas.predictions import PredictOptions
from app.services import Services
from app.serving.pipeline import Stop
from app.upload import Upload, label

router = new_router()


@router.post("/images", dependencies=[body_up_to("max_upload_bytes"), require("images:write")])
async def upload(request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that stores an image."""
    async with _sent(request) as file:
        picture = await run_sync(services.decoders.decode, file.file, limiter=services.decode_slots)
        image_id = await run_sync(_keep, services, caller, file, images.columns(picture, file))
    return see(f"/images/{image_id}")


def _keep(services: Services, caller: Principal, file: Upload, facts: dict[str, Any]) -> UUID:
    services.blobs.put_file(caller.project_id, file.file)
    with services.database.write() as session:
        return images.add(session, caller, file.sha256, facts)[0].id


@router.post(
    "/models/{name}/versions/{number}/try",
    dependencies=[body_up_to("max_upload_bytes"), require("predict", "images:write")],
)
async def try_it(name: str, number: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that asks a model version about an image and stores the answer."""
    async with _sent(request) as file:
        options = PredictOptions(threshold=_threshold(file.fields.get("threshold")), topology=True, store=True)
        work = partial(_predict, services, caller, f"{name}:{number_of(number)}", options, file)
        return await while_connected(request, services, work)


def _predict(
    services: Services, caller: Principal, ref: str, options: PredictOptions, file: Upload, stop: Stop
) -> Response:
    _, version = services.names.resolve(caller.project_id, ref)
    with predictions.predicted(services, caller, version, options, file, stop) as (answer, _):
        pass  # nothing is encoded for this answer: its page shows what is stored
    rows = predictions.keep(services, caller, version, file, answer)
    with services.database.write() as session:
        return see(f"/predictions/{rows(session).id}")


@asynccontextmanager
async def _sent(request: Request) -> AsyncIterator[Upload]:
    """The file of the form and its other fields; the caller's token has been looked at by now."""
    async with request.form() as form:
        file = form.get("file")
        if not isinstance(file, UploadFile) or not file.size:
            raise Invalid("The form has no file. Choose one, then send it again.")
        # typeshed's BinaryIO lacks the `readinto` that every binary file has.
        digest = await run_sync(hashlib.file_digest, file.file, "sha256")  # type: ignore[arg-type]
        await file.seek(0)
        fields = {name: value for name, value in form.items() if isinstance(value, str) and name != CSRF_FIELD}
        yield Upload(file.file, digest.hexdigest(), file.size, label(file.filename), fields)


def _threshold(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return PredictOptions(threshold=text).threshold  # a form sends text
    except ValidationError:
        raise Invalid(
            f"The threshold is {text[:32]!r}; it must be a number between 0 and 1. Write it like 0.5."
        ) from None
