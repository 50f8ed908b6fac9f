"""The pages of images: the list, one image, and its picture."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.http.callers import Caller, require
from app.http.finding import Wanted, finding
from app.http.paging import Page
from app.http.resources import Read, ServicesDep
from app.pages import pictures, predictions, space
from app.pages.rendering import Facts, new_router, next_page, page, uuid_of
from app.representations.images import describe
from app.serving.contract import CONVERSIONS
from app.store import images as store, models
from app.store.finding import IMAGES
from app.store.tables import Dataset, DatasetItem, DatasetVersion, Image, Prediction

router = new_router()
MOST_MODELS = 200
"""Versions that the form of an image page is made from."""


@page(router, "/images", "images.html", "images:read")
def images(
    request: Request,
    caller: Caller,
    session: Read,
    services: ServicesDep,
    listed: Page,
    wanted: Annotated[Wanted, finding(IMAGES, form=True)],
) -> Facts:
    """The images of the project, newest first or as wanted."""
    listing = pictures.few(listed).found(session, store.owned(caller.project_id), wanted, describe)
    return {
        "images": listing.items,
        "max_upload_bytes": services.settings.max_upload_bytes,
        "found": wanted.form(),
        "page": {"next": next_page(request, listing.next_cursor)},
    }


@page(router, "/images/{image_id}", "image.html", "images:read")
def image(image_id: str, caller: Caller, session: Read, axis: pictures.Axis = 0, plane: pictures.Plane = None) -> Facts:
    """One image: what is known of it and what was predicted on it."""
    row = require_image(session, caller, image_id)
    cut = pictures.cut_of(row, axis, plane)
    rows, columns = pictures.displayed(row, cut) if cut else row.shape
    return {
        "image": describe(row),
        "viewer": {
            "id": "image",
            "group": "",
            "title": row.name,
            "rows": rows,
            "columns": columns,
            "grid": pictures.sides_of(row, cut),
            "image": f"/images/{row.id}/picture.png" + (f"?axis={cut.axis}&plane={cut.index}" if cut else ""),
            "layers": [],
            "places": "",
            "one_class": False,
            "key": [],
            "caption": pictures.caption(cut, row),
            "slices": pictures.slices(row, cut, f"/images/{row.id}"),
        },
        "space": space.offered(row),
        "datasets": _datasets(session, row),
        "predictions": predictions.cards(session, caller.project_id, Prediction.image_id == row.id, limit=12),
        "models": _models_that_fit(session, row),
    }


@router.get("/images/{image_id}/picture.png", dependencies=[require("images:read")])
async def picture(
    image_id: str,
    caller: Caller,
    services: ServicesDep,
    side: Annotated[int, Query(ge=16, le=pictures.FULL)] = pictures.FULL,
    axis: pictures.Axis = 0,
    plane: pictures.Plane = None,
) -> Response:
    """The image as a browser can show it, of a volume one plane."""
    return await pictures.drawn(
        services,
        lambda session: require_image(session, caller, image_id),
        lambda row: pictures.shown(services, row, side, pictures.cut_of(row, axis, plane)),
    )


@router.get("/images/{image_id}/thumbnail.webp", dependencies=[require("images:read")])
async def thumbnail(image_id: str, caller: Caller, services: ServicesDep) -> Response:
    """The image as a list shows it, of a volume the middle plane."""
    return await pictures.listed(
        services,
        lambda session: require_image(session, caller, image_id),
        lambda row: pictures.shown(services, row, pictures.THUMBNAIL),
    )


@router.get("/images/{image_id}/volume.nii.gz", dependencies=[require("images:read")])
async def volume(image_id: str, caller: Caller, services: ServicesDep) -> Response:
    """The first channel of a volume as NIfTI, whatever it was sent as."""

    def find(session: Session) -> Image:
        row = require_image(session, caller, image_id)
        space.require_fit(row)
        return row

    return await pictures.drawn(services, find, lambda row: space.image_file(services, row), space.MEDIA_TYPE)


@router.get("/images/{image_id}/axes.json", dependencies=[require("images:read")])
async def axes(image_id: str, caller: Caller, services: ServicesDep) -> Response:
    """Where the axes of a volume lead in the body: for planes, rows and columns the letters of both ends, such as
    ["I", "S"]; null where the file does not say it.
    """
    ends = await pictures.made(
        services,
        lambda session: require_image(session, caller, image_id),
        lambda row: _ends(services.decoders.read_header(services.blobs.read(row.project_id, row.sha256)).affine),
    )
    return JSONResponse({"ends": ends})


def _ends(affine: np.ndarray | None) -> list[list[str]] | None:
    """The letters of the ends of each array axis; `affine` leads from (column, row, plane) to right, front and up."""
    if affine is None:
        return None
    found = []
    for column in (2, 1, 0):
        steps = np.asarray(affine)[:3, column]
        main = int(np.abs(steps).argmax())
        low, high = ("LR", "PA", "IS")[main]
        found.append([low, high] if steps[main] > 0 else [high, low])
    return found


def require_image(session: Session, caller: Caller, image_id: str) -> Image:
    """The image of that id in the caller's project."""
    return store.get(session, caller.project_id, uuid_of(image_id))


def _models_that_fit(session: Session, image: Image) -> list[dict[str, Any]]:
    """The newest versions of models for images of these dimensions and channels, or of channels that these become."""
    return [
        {
            "ref": f"{name}:{version.number}",
            "classes": version.manifest["classes"],
            "threshold": version.manifest.get("threshold"),
        }
        for name, version in models.newest_of_project(session, image.project_id, MOST_MODELS)
        if version.manifest["dimensions"] == image.dimensions and _channels_fit(image, version.manifest)
    ]


def _channels_fit(image: Image, manifest: dict[str, Any]) -> bool:
    return manifest["channels"] == image.channels or (image.channels, manifest["channels"]) in CONVERSIONS


def _datasets(session: Session, image: Image) -> list[dict[str, Any]]:
    query = (
        select(Dataset.name, DatasetVersion.number, DatasetItem.name)
        .join(DatasetVersion, DatasetVersion.dataset_id == Dataset.id)
        .join(DatasetItem, DatasetItem.version_id == DatasetVersion.id)
        .where(DatasetItem.image_id == image.id, Dataset.project_id == image.project_id)
        .order_by(DatasetVersion.id.desc())
        .limit(20)
    )
    return [
        {"dataset": name, "version": number, "ref": f"{name}@{number}", "item": item}
        for name, number, item in session.execute(query)
    ]
