"""Images that a viewer sends to have them segmented and then forgotten."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import Query, Request, Response
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.http.callers import Caller, require
from app.http.downloads import download
from app.http.limits import body_up_to
from app.http.resources import BlobsDep, ServicesDep, Write
from app.http.uploads import received_form
from app.imaging import FORMATS
from app.protocols.monai.wire import new_router
from app.roles import Principal
from app.services import Services
from app.store import labels, tables
from app.upload import Upload

router = new_router()

LONGEST_S = 24 * 3600
Expiry = Annotated[int, Query(ge=0, le=LONGEST_S, description="Seconds; 0: an hour.")]


@router.put("/session/", dependencies=[require("images:write"), body_up_to("max_upload_bytes")])
async def put_session(
    request: Request, caller: Caller, services: ServicesDep, expiry: Expiry = 0, uncompress: bool = False
) -> dict[str, Any]:
    """Keep an image until nobody has asked for it for `expiry` seconds."""
    if uncompress:
        raise Invalid("Archives are not opened here. Send one image, without uncompress.")
    async with received_form(request, services, files=("files",), fields=()) as form:
        if "files" not in form.files:
            raise Invalid("The form has no file. Send it as the part `files` with a file name.")
        upload = form.files["files"]
        header = await run_sync(services.decoders.read_header, upload.file, limiter=services.decode_slots)
        keep = partial(_keep, services, caller, upload, header.format, expiry or 3600)
        return await run_sync(keep, limiter=services.decode_slots)


def _keep(services: Services, caller: Principal, upload: Upload, format: str, expiry_s: int) -> dict[str, Any]:
    services.blobs.put_file(caller.project_id, upload.file)
    with services.database.write() as session:
        row = labels.open_session(
            session,
            caller.project_id,
            expiry_s=expiry_s,
            sha256=upload.sha256,
            bytes=upload.bytes,
            name=upload.name or f"image{FORMATS[format].suffixes[0]}",
            format=format,
        )
        return {"session_id": str(row.id), "session_info": _described(row)}


def _described(row: tables.ImageSession) -> dict[str, Any]:
    return {
        "name": str(row.id),
        "path": "",
        "image": row.name,
        "meta": {},
        "create_ts": int(row.created_at.timestamp()),
        "last_access_ts": int(row.used_at.timestamp()),
        "expiry": row.expiry_s,
    }


@router.get("/session/{session_id}", dependencies=[require("images:read")], response_model=None)
def get_session(
    session_id: str,
    request: Request,
    caller: Caller,
    session: Write,
    blobs: BlobsDep,
    update_ts: bool = False,
    image: bool = False,
) -> Response | dict[str, Any]:
    """What a session is, or its image; `update_ts` lets it last for its whole time again."""
    row = _require(session, caller, session_id)
    if update_ts:
        labels.touch(row)
    if not image:
        return _described(row)
    media_type = FORMATS[row.format].media_type
    return download(request, blobs, caller.project_id, row.sha256, row.bytes, media_type=media_type, name=row.name)


@router.delete("/session/{session_id}", dependencies=[require("images:write")])
def delete_session(session_id: str, caller: Caller, session: Write) -> dict[str, str]:
    """Forget an image now."""
    session.delete(_require(session, caller, session_id))
    return {}


def _require(session: Session, caller: Principal, session_id: str) -> tables.ImageSession:
    return labels.require_session(session, caller.project_id, session_id)
