"""The pages of datasets: the list, and one version with statistics and every pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Annotated
from urllib.parse import quote, urlencode

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.admission import amendments
from app.admission.amendments import Changes
from app.errors import Invalid, NotFound
from app.http.callers import Caller, require
from app.http.finding import Wanted, asked, finding
from app.http.paging import Page
from app.http.resources import Read, ServicesDep
from app.imaging import IGNORE, LabelMap
from app.imaging.masks import class_indexes
from app.pages import layers, pictures
from app.pages.models import number_of
from app.pages.rendering import Facts, new_router, next_page, page, see
from app.representations import datasets as shapes, models
from app.roles import Principal
from app.services import Services
from app.store import datasets as store
from app.store.finding import DATASETS, items_of
from app.store.tables import DatasetItem, DatasetVersion, Image, ModelVersion

router = new_router()
Found = tuple[DatasetItem, Image, DatasetVersion]
PARTS: dict[str, str | None] = {"train": "train", "val": "val", "test": "test", "job": None}
"""What a form may put an item into; job: a job chooses."""
OUT = "out"
"""What a form says of items that the next version leaves out."""


@page(router, "/datasets", "datasets.html", "datasets:read")
def datasets(
    request: Request,
    caller: Caller,
    session: Read,
    services: ServicesDep,
    listed: Page,
    wanted: Annotated[Wanted, finding(DATASETS, form=True)],
) -> Facts:
    """The datasets of the project, newest first or as wanted, each with its newest version."""
    listing = listed.found(session, store.all_of(caller.project_id), wanted, lambda row: shapes.describe(session, row))
    return {
        "datasets": listing.items,
        "max_dataset_bytes": services.settings.max_dataset_bytes,
        "found": wanted.form(),
        "page": {"next": next_page(request, listing.next_cursor)},
    }


@router.get("/datasets/{name}", dependencies=[require("datasets:read")])
def newest(name: str, caller: Caller, session: Read) -> Response:
    """The name of a dataset alone: its newest version."""
    version = store.newest(session, store.require(session, caller.project_id, name))
    if version is None:
        raise NotFound(f"Dataset {name} has no version yet.")
    return see(f"/datasets/{quote(name)}/versions/{version.number}")


@page(router, "/datasets/{name}/versions/{number}", "dataset.html", "datasets:read", "images:read")
def dataset(request: Request, name: str, number: str, caller: Caller, session: Read, listed: Page) -> Facts:
    """One version: statistics, warnings about suspicious labels, and its pairs page by page."""
    row = store.require(session, caller.project_id, name)
    version = store.require_version(session, row, number_of(number))
    shown = shapes.describe_version(session, version)
    wanted = _wanted(version, request.query_params)
    items = store.items_of(version)
    listing = pictures.few(listed).found(session, items, wanted, lambda item: shapes.describe_item(session, item))
    trained = session.scalars(
        select(ModelVersion)
        .where(ModelVersion.dataset_version_id == version.id)
        .order_by(ModelVersion.id.desc())
        .limit(10)
    )
    versions = list(
        session.scalars(
            select(DatasetVersion.number).where(DatasetVersion.dataset_id == row.id).order_by(DatasetVersion.number)
        )
    )
    return {
        "version": shown,
        "versions": versions,
        "items": listing.items,
        "positions": {item.name: item.position for item in listing.items},
        "suspicious": Counter(warning["item"] for warning in version.warnings if warning.get("item")),
        "models": [models.describe_version(session, each) for each in trained],
        "found": wanted.form(),
        "fitting": session.scalar(select(func.count()).select_from(wanted.narrowed(items).subquery())) or 0,
        "class_name": wanted.values.get("class_name", version.classes[1]),
        "next_number": row.last_version + 1 if version.number == versions[-1] else None,
        "query": urlencode([pair for pair in request.query_params.multi_items() if pair[0] != "cursor"]),
        "page": {"next": next_page(request, listing.next_cursor)},
    }


def _wanted(version: DatasetVersion, sent: Mapping[str, str]) -> Wanted:
    """The items that are asked for; Betti numbers are those of the class that is asked for, else of the first."""
    class_name = sent.get("class_name", "")
    return asked(items_of(version, class_name if class_name in version.classes else version.classes[1]), sent)


@router.post("/datasets/{name}/versions/{number}/items", dependencies=[require("datasets:write")])
async def change_items(name: str, number: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that puts chosen items into another part, or leaves them out, in the next version."""
    async with request.form() as form:
        chosen = None if form.get("all") == "yes" else [str(each) for each in form.getlist("item")]
        part = str(form.get("part") or "")
    work = partial(_changed, services, caller, name, number_of(number), part, chosen, request.query_params)
    return see(await run_sync(work, limiter=services.dataset_slots))


def _changed(
    services: Services,
    caller: Principal,
    name: str,
    number: int,
    part: str,
    chosen: list[str] | None,
    sent: Mapping[str, str],
) -> str:
    """The address of the new version; `chosen` None: all items that fit the query."""
    if part not in (*PARTS, OUT):
        raise Invalid(f"The part is {part[:16]!r}; it can be {', '.join(PARTS)} or {OUT}.")
    if chosen is None:
        with services.database.read() as session:
            version = store.require_version(session, store.require(session, caller.project_id, name), number)
            fitting = _wanted(version, sent).narrowed(store.items_of(version))
            chosen = list(session.scalars(fitting.with_only_columns(DatasetItem.name)))
    if not chosen:
        raise Invalid("No item is chosen. Tick some, or all that fit, and send the form again.")
    splits = {} if part == OUT else dict.fromkeys(chosen, PARTS[part])
    rows = amendments.amend(
        services, caller, name, number, Changes(splits=splits, excluded=chosen if part == OUT else ())
    )
    with services.database.write() as session:
        return f"/datasets/{quote(name)}/versions/{rows(session).number}"


@router.get(
    "/datasets/{name}/versions/{number}/items/{position}.webp", dependencies=[require("datasets:read", "images:read")]
)
async def item_picture(name: str, number: str, position: str, caller: Caller, services: ServicesDep) -> Response:
    """One item as a thumbnail: the mask, where there is one, laid over its image."""

    def find(session: Session) -> Found:
        version = store.require_version(session, store.require(session, caller.project_id, name), number_of(number))
        item = session.scalar(store.items_of(version).where(DatasetItem.position == number_of(position)))
        if item is None:
            raise NotFound(f"{name}@{number} has no item {position[:16]}.")
        return item, session.get_one(Image, item.image_id), version

    return await pictures.listed(services, find, lambda found: _thumbnail(services, *found))


def _thumbnail(services: Services, item: DatasetItem, image: Image, version: DatasetVersion) -> bytes:
    if item.mask_sha256 is None:
        index = np.zeros(image.shape[-2:], np.uint8)
    else:
        read = partial(services.blobs.read, item.project_id)
        header = services.decoders.read_header(read(image.sha256))
        whole = class_indexes(services.decoders, read(item.mask_sha256), LabelMap.parse(version.label_map), header)
        index = pictures.plane(whole)
        index[index == IGNORE] = 0
    return layers.blend(pictures.shown(services, image, pictures.THUMBNAIL), index)
