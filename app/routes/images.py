"""Endpoints for images, which are decoded once before they are accepted."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Query, Request, Response
from sqlalchemy.orm import Session

from app import errors, imaging
from app.admission.images import add, columns, known
from app.errors import may_answer
from app.http.callers import Caller, require
from app.http.downloads import download, unchanged
from app.http.endpoints import Id, created, downloads, noun_router, uploads
from app.http.finding import Wanted, finding
from app.http.idempotency import Attempt, Once
from app.http.paging import Listing, Page
from app.http.resources import BlobsDep, Read, ServicesDep, Write
from app.http.uploads import received, warn
from app.imaging.spacing import contradiction, refuse_other_axes
from app.openapi import images as texts
from app.openapi.examples import shown
from app.representations.images import describe
from app.roles import Principal
from app.schemas.base import Label, SpacingQuery
from app.schemas.images import IMAGE, ChangedImage, Image
from app.services import Services
from app.store import audit, images as store, tables
from app.store.finding import IMAGES
from app.upload import Upload, label

router = noun_router("images")


@router.post(
    "/images", status_code=201, **uploads(Image, "images:write", "max_upload_bytes", texts.BODY, texts.UPLOADED)
)
async def upload_image(
    request: Request,
    caller: Caller,
    services: ServicesDep,
    attempt: Once,
    name: Annotated[
        Label | None,
        Query(description="What to call it; default is the file's own name.", examples=["retina-0042.png"]),
    ] = None,
    spacing_mm: Annotated[
        SpacingQuery | None,
        Query(
            description=(
                "Size of a pixel along rows and columns (planes, rows and columns), where the file says nothing or"
                " something wrong."
            ),
        ),
    ] = None,
) -> Response:
    """Store an image. The same bytes give the same image, with 200 instead of 201."""
    async with received(request, services) as upload:
        picture = await run_sync(services.decoders.decode, upload.file, limiter=services.decode_slots)
        warn(request, contradiction(picture, spacing_mm))
        picture = await run_sync(known, services, caller, upload.sha256, picture, spacing_mm)
        return await run_sync(_keep, services, caller, attempt, upload, columns(picture, upload, label(name)))


def _keep(services: Services, caller: Principal, attempt: Attempt, upload: Upload, facts: dict[str, Any]) -> Response:
    """Bytes first, then the row that names them: what was acknowledged is there, what was not is nowhere to be seen."""
    attempt.look(services.database, upload.sha256)
    services.blobs.put_file(caller.project_id, upload.file)

    def deed(session: Session) -> Response:
        row, new = add(session, caller, upload.sha256, facts)
        return created(describe(row), new)

    return attempt.write(services.database, upload.sha256, deed)


@router.get("/images", dependencies=[require("images:read")], responses=may_answer(errors.InvalidCursor))
def list_images(
    caller: Caller, session: Read, page: Page, wanted: Annotated[Wanted, finding(IMAGES)]
) -> Listing[Image]:
    """The images of this project, newest first or in another order, all or those that fit."""
    return page.found(session, store.owned(caller.project_id), wanted, describe)


@router.get("/images/{image_id}", dependencies=[require("images:read")], responses=may_answer(errors.NotFound))
def read_image(image_id: Id, caller: Caller, session: Read) -> Image:
    """What is known about an image."""
    return describe(store.get(session, caller.project_id, image_id))


@router.get("/images/{image_id}/content", **downloads("images:read", answers=texts.CONTENT))
def read_content(image_id: Id, request: Request, caller: Caller, session: Read, blobs: BlobsDep) -> Response:
    """The bytes of an image, whole or one range of them."""
    row = store.get(session, caller.project_id, image_id)
    media_type = imaging.FORMATS[row.format].media_type
    return download(request, blobs, caller.project_id, row.sha256, row.bytes, media_type=media_type, name=row.name)


@router.get("/images/{image_id}/preview.png", **downloads("images:read", answers=texts.PREVIEW))
async def preview_image(
    image_id: Id,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    plane: Annotated[
        int | None, Query(ge=0, lt=2**31, description="Plane of a volume; default is the middle one.")
    ] = None,
) -> Response:
    """An image as a browser can show it:
    8 bits, stretched between its darkest and lightest pixels, at most 1024 wide.
    """
    row = await run_sync(_row, services, caller.project_id, image_id)
    etag = f'"{row.sha256[:32]}-{"m" if plane is None else plane}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=3600"}
    if unchanged(request, etag):
        return Response(status_code=304, headers=headers)
    png = await run_sync(_preview, services, row, plane, limiter=services.decode_slots)
    return Response(png, headers=headers, media_type="image/png")


def _row(services: Services, project_id: UUID, image_id: UUID) -> tables.Image:
    with services.database.read() as session:
        return store.get(session, project_id, image_id)


def _preview(services: Services, row: tables.Image, plane: int | None) -> bytes:
    planes = row.shape[0] if row.dimensions == 3 else 1
    if plane is not None and plane >= planes:
        raise errors.Invalid(
            f"plane is {plane} and the image has {planes}, numbered from 0.",
            errors=[{"pointer": "/query/plane", "detail": f"at most {planes - 1}"}],
        )
    picture = services.decoders.decode(services.blobs.read(row.project_id, row.sha256))
    return imaging.preview_png(picture, plane=plane)


@router.patch(
    "/images/{image_id}",
    dependencies=[require("images:write")],
    responses=shown(200, IMAGE) | may_answer(errors.NotFound),
)
def change_image(image_id: Id, new: ChangedImage, caller: Caller, session: Write) -> Image:
    """Give an image another label, or state the size of its pixels; its id and its bytes stay, and so does what was
    measured on it.
    """
    row = store.get(session, caller.project_id, image_id)
    if new.name is not None:
        audit.note(session, caller, "image.rename", image_id)
        row.name = new.name
    if new.spacing_mm is not None:
        refuse_other_axes(row.shape, new.spacing_mm)
        audit.note(session, caller, "image.spacing", image_id)
        row.spacing_mm = list(new.spacing_mm)
    session.flush()
    return describe(row)
