"""Images in: any accepted format, known by its bytes, fully decoded once before it is accepted."""

from __future__ import annotations

import uuid
from typing import Annotated, Any
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Path, Query, Request, Response

from app import errors, imaging
from app.errors import may_answer
from app.http.callers import Caller, require
from app.http.downloads import download, unchanged
from app.http.endpoints import noun_router
from app.http.idempotency import Attempt, Once
from app.http.limits import body_up_to
from app.http.paging import Listing, Page
from app.http.resources import BlobsDep, Read, ServicesDep, Write
from app.http.uploads import Upload, label, received
from app.schemas.base import Label
from app.schemas.images import Image
from app.services import Services
from app.store import audit, images as store, tables

router = noun_router("images")

PROBLEMS = (
    errors.InvalidRequest,
    errors.IncompleteBody,
    errors.UnsupportedMediaType,
    errors.UnsupportedImage,
    errors.TooLarge,
    errors.TooManyPixels,
    errors.ExpandsTooLarge,
    errors.SlowRequest,
    errors.CorruptImage,
    errors.EmptyImage,
    errors.UnsupportedDepth,
    errors.UnsupportedDtype,
    errors.UnsupportedColor,
    errors.NonFinite,
    errors.ManyFrames,
    errors.ChecksumMismatch,
    errors.BadAffine,
    errors.Invalid,
    errors.IdempotencyConflict,
    errors.IdempotencyInProgress,
    errors.StorageFull,
)
"""What an upload of an image may be answered."""
REFUSALS = may_answer(*PROBLEMS)
FILE = {"type": "string", "format": "binary"}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "One image: PNG, JPEG, TIFF or NIfTI. Its bytes decide which; a Content-Type that says otherwise is"
            " answered with the header `Toposerve-Warning`."
        ),
        "content": {
            **{
                media: {"schema": FILE}
                for media in ("application/octet-stream", "image/png", "image/jpeg", "image/tiff", "application/gzip")
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": FILE, "name": {"type": "string"}},
                    "additionalProperties": False,
                }
            },
        },
    }
}
ImageId = Annotated[UUID, Path(examples=["01936f5e-7c00-7000-8000-000000000001"])]


@router.post(
    "/images",
    status_code=201,
    response_model=Image,
    openapi_extra=BODY,
    dependencies=[require("images:write"), body_up_to("max_upload_bytes")],
    responses={
        200: {"model": Image, "description": "These bytes were stored before; this is the same image."},
        **REFUSALS,
    },
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
) -> Response:
    """Store an image. The same bytes give the same image, with 200 instead of 201."""
    async with received(request, services) as upload:
        picture = await run_sync(decoded, upload, services, limiter=services.decode_slots)
        facts = facts_of(picture, upload, label(name) or upload.name)
        return await run_sync(keep, services, caller, attempt, upload, facts)


def decoded(upload: Upload, services: Services) -> Any:
    """The picture of an upload; refused as `app.imaging.decode` does."""
    return services.decoders.decode(upload.file)


def facts_of(picture: Any, upload: Upload, name: str | None) -> dict[str, Any]:
    """The columns of the row of an uploaded image."""
    return {
        "bytes": upload.bytes,
        "name": name or f"image{picture.format.extension}",
        "format": str(picture.format),
        "dimensions": len(picture.shape),
        "channels": picture.channels,
        "shape": list(picture.shape),
        "dtype": str(picture.pixels.dtype),
        "spacing_mm": list(picture.spacing_mm) if picture.spacing_mm else None,
    }


def keep(services: Services, caller: Caller, attempt: Attempt, upload: Upload, facts: dict[str, Any]) -> Response:
    """Bytes first, then the row that names them: what was acknowledged is there, what was not is nowhere to be seen."""
    with services.database.read() as session:
        attempt.look(session, upload.sha256)
    upload.file.seek(0)
    services.blobs.put(caller.project_id, iter(lambda: upload.file.read(1 << 20), b""))
    with services.database.write() as session:
        attempt.claim(session, upload.sha256)
        row, new = store.add(session, caller.project_id, upload.sha256, **facts)
        if new:
            audit.note(session, project_id=caller.project_id, who=caller.who, what="image.upload", object=row.id)
        shown = show(row)
        response = Response(
            shown.model_dump_json(), 201 if new else 200, {"Location": shown.links["self"]}, "application/json"
        )
        attempt.remember(response)
    return response


@router.get("/images", dependencies=[require("images:read")], responses=may_answer(errors.InvalidCursor))
def list_images(caller: Caller, session: Read, page: Page) -> Listing[Image]:
    """The images of this project, newest first."""
    return page.listing(session, store.owned(caller.project_id), tables.Image.id, show)


@router.get("/images/{image_id}", dependencies=[require("images:read")], responses=may_answer(errors.NotFound))
def read_image(image_id: ImageId, caller: Caller, session: Read) -> Image:
    """What is known about an image."""
    return show(store.get(session, caller.project_id, image_id))


BYTES = {
    "content": {str(media): {"schema": FILE} for media in dict.fromkeys(each.media_type for each in imaging.Format)}
}


@router.get(
    "/images/{image_id}/content",
    dependencies=[require("images:read")],
    response_class=Response,
    responses={
        200: {**BYTES, "description": "The bytes as they were uploaded."},
        206: {**BYTES, "description": "The range that was asked for."},
        304: {"description": "The caller has these bytes."},
        **may_answer(errors.NotFound, errors.Gone, errors.RangeNotSatisfiable, errors.BlobCorrupt),
    },
)
def read_content(image_id: ImageId, request: Request, caller: Caller, session: Read, blobs: BlobsDep) -> Response:
    """The bytes of an image, whole or one range of them."""
    row = store.get(session, caller.project_id, image_id)
    media_type = imaging.Format(row.format).media_type
    return download(request, blobs, caller.project_id, row.sha256, row.bytes, media_type=media_type, name=row.name)


@router.get(
    "/images/{image_id}/preview.png",
    dependencies=[require("images:read")],
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": FILE}}, "description": "The plane as a browser shows it."},
        304: {"description": "The caller has this preview."},
        **may_answer(errors.NotFound, errors.Gone, errors.BlobCorrupt, errors.Invalid),
    },
)
async def preview_image(
    image_id: ImageId,
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


def _row(services: Services, project_id: uuid.UUID, image_id: uuid.UUID) -> tables.Image:
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


@router.delete(
    "/images/{image_id}",
    status_code=204,
    dependencies=[require("images:write")],
    responses=may_answer(errors.NotFound, errors.Conflict),
)
def delete_image(image_id: ImageId, caller: Caller, session: Write) -> None:
    """Delete an image that nothing was learnt or measured from."""
    store.delete(session, store.get(session, caller.project_id, image_id))
    audit.note(session, project_id=caller.project_id, who=caller.who, what="image.delete", object=image_id)


def show(row: tables.Image) -> Image:
    """An image row as the API shows it."""
    here = f"/v1/images/{row.id}"
    return Image(
        id=row.id,
        sha256=row.sha256,
        bytes=row.bytes,
        name=row.name,
        format=row.format,
        dimensions=row.dimensions,
        channels=row.channels,
        shape=row.shape,
        dtype=row.dtype,
        spacing_mm=row.spacing_mm,
        created_at=row.created_at,
        links={"self": here, "content": f"{here}/content", "preview": f"{here}/preview.png"},
    )
