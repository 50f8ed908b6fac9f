"""Datasets: labelled images as immutable numbered versions, counted when they come in."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Depends, Query, Request, Response
from sqlalchemy import false
from sqlalchemy.orm import Session

from app.admission import deletion
from app.admission.datasets import Source, add, draft, from_archive, from_images, reading, shown_pairing
from app.admission.plans import plan
from app.errors import Conflict, Invalid, InvalidCursor, NotFound, may_answer
from app.http.callers import Caller, require
from app.http.endpoints import VersionNumber, created, noun_router, uploads, validated
from app.http.finding import Wanted as Found, finding
from app.http.idempotency import Attempt, Once
from app.http.paging import Listing, Page
from app.http.resources import Read, ServicesDep, Write
from app.http.uploads import ANY, received, received_or_json
from app.imaging.statistics import WARNINGS
from app.openapi import datasets as texts
from app.openapi.datasets import DatasetName
from app.openapi.examples import DATASET, DATASET_ITEM, DATASET_VERSION, PLAN, listed, shown
from app.representations.datasets import describe, describe_item, describe_version
from app.roles import Principal
from app.schemas.base import Name, SpacingQuery
from app.schemas.datasets import (
    Dataset,
    DatasetItem,
    DatasetVersion,
    FileReading,
    LabelMap,
    NewDataset,
    NewVersion,
    PairingShown,
)
from app.schemas.deletion import NewName
from app.schemas.plans import Plan
from app.services import Services
from app.store import datasets as store, tables
from app.store.finding import DATASETS, Filter, items_of
from app.strict_json import parse

router = noun_router("datasets")
_ANY = items_of(
    tables.DatasetVersion(
        dimensions=3, classes=["background"], warnings=[{"code": code, "item": "any"} for code in WARNINGS]
    ),
    "foreground",
)
ITEMS = replace(_ANY, filters={"item" if name == "name" else name: each for name, each in _ANY.filters.items()})
"""What may be asked of the items of any version; `_of_version` refuses what one has not. `name` is the dataset's."""
NONE = Filter("", "", lambda _: false())
"""A warning that no item of a version has."""


Wanted = TypeVar("Wanted", bound=NewVersion)
LabelMapText = Annotated[
    str | None,
    Query(
        max_length=8192,
        description="JSON: class name to the mask value or values that mean it.",
        examples=['{"membrane": 0}'],
    ),
]


def _mask_reading(
    mask_threshold: Annotated[
        float | None,
        Query(
            description=(
                "Mask values above it are foreground, for masks that compression or resampling blurred; default: values"
                " are labels."
            ),
            examples=[127],
        ),
    ] = None,
    resample: Annotated[
        bool,
        Query(
            description=(
                "Bring masks on another grid to that of their image by the nearest voxels, instead of refusing them."
            )
        ),
    ] = False,
    spacing_mm: Annotated[
        SpacingQuery | None,
        Query(
            description=(
                "Size of a pixel along rows and columns (planes, rows and columns), the same in all images, where the"
                " files say nothing or something wrong."
            ),
        ),
    ] = None,
    pairing: Annotated[
        Literal["exact", "proposed"],
        Query(
            description=(
                "Of an archive without `images/` and `masks/` or nnU-Net's folders: refuse it, or take the pairs that"
                " POST /v1/datasets/pairing shows."
            )
        ),
    ] = "exact",
) -> FileReading:
    sent = {"mask_threshold": mask_threshold, "resample": resample, "spacing_mm": spacing_mm, "pairing": pairing}
    return validated(FileReading, sent, "query")


Masks = Annotated[FileReading, Depends(_mask_reading)]
takes_pairs = partial(uploads, DatasetVersion, "datasets:write", "max_dataset_bytes", texts.BODY)


@router.post("/datasets", status_code=201, **takes_pairs(texts.CREATED))
async def create_dataset(
    request: Request,
    caller: Caller,
    services: ServicesDep,
    attempt: Once,
    masks: Masks,
    name: Annotated[
        Name | None, Query(description="What to call it, when the body is an archive.", examples=["isbi12"])
    ] = None,
    label_map: LabelMapText = None,
) -> Response:
    """Store labelled images as version 1 of a new dataset. The same content again is the same version, with 200."""
    async with _source(request, services, caller, NewDataset, name, label_map, masks) as (named, source):
        if named is None:
            raise Invalid(
                "The dataset has no name. Add it as `?name=` or as field `name`.",
                errors=[{"pointer": "/name", "detail": "required"}],
            )
        return await run_sync(_keep, services, caller, attempt, named, source, True, limiter=services.dataset_slots)


@router.post(
    "/datasets/pairing", **uploads(PairingShown, "datasets:write", "max_dataset_bytes", texts.ARCHIVE, texts.PAIRED)
)
async def show_pairing(request: Request, caller: Caller, services: ServicesDep) -> PairingShown:
    """Say which file of an archive would be the mask of which, and which would not be read, without storing it."""
    async with received(request, services, images=False) as upload:
        return await run_sync(shown_pairing, upload, services, limiter=services.dataset_slots)


@router.post("/datasets/{name}/versions", status_code=201, **takes_pairs(texts.ADDED))
async def add_version(
    name: DatasetName,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    attempt: Once,
    masks: Masks,
    label_map: LabelMapText = None,
) -> Response:
    """Store labelled images as the next version of a dataset.

    Content that a version has already is that version, with 200.
    """
    await run_sync(_require, services, caller, name)
    async with _source(request, services, caller, NewVersion, name, label_map, masks) as (_, source):
        return await run_sync(_keep, services, caller, attempt, name, source, False, limiter=services.dataset_slots)


@router.get("/datasets", dependencies=[require("datasets:read")], responses=listed(DATASET) | may_answer(InvalidCursor))
def list_datasets(
    caller: Caller, session: Read, page: Page, wanted: Annotated[Found, finding(DATASETS)]
) -> Listing[Dataset]:
    """The datasets of this project, newest first or in another order, all or those that fit."""
    return page.found(session, store.all_of(caller.project_id), wanted, lambda row: describe(session, row))


@router.get(
    "/datasets/{name}", dependencies=[require("datasets:read")], responses=shown(200, DATASET) | may_answer(NotFound)
)
def get_dataset(name: DatasetName, caller: Caller, session: Read) -> Dataset:
    """A dataset and its newest version."""
    return describe(session, store.require(session, caller.project_id, name))


@router.get(
    "/datasets/{name}/versions",
    dependencies=[require("datasets:read")],
    responses=listed(DATASET_VERSION) | may_answer(NotFound, InvalidCursor),
)
def list_versions(name: DatasetName, caller: Caller, session: Read, page: Page) -> Listing[DatasetVersion]:
    """The versions of a dataset, newest first."""
    dataset = store.require(session, caller.project_id, name)
    return page.listing(
        session, store.versions_of(dataset), tables.DatasetVersion.id, lambda row: describe_version(session, row)
    )


@router.get(
    "/datasets/{name}/versions/{number}",
    dependencies=[require("datasets:read")],
    responses=shown(200, DATASET_VERSION) | may_answer(NotFound),
)
def get_version(name: DatasetName, number: VersionNumber, caller: Caller, session: Read) -> DatasetVersion:
    """A version: its classes, its statistics, and warnings about labels that look wrong."""
    return describe_version(session, _version(session, caller, name, number))


@router.get(
    "/datasets/{name}/versions/{number}/plan",
    dependencies=[require("datasets:read")],
    responses=shown(200, PLAN) | may_answer(NotFound, Conflict),
)
def plan_training(
    name: DatasetName,
    number: VersionNumber,
    caller: Caller,
    session: Read,
    services: ServicesDep,
    memory_mib: Annotated[
        int | None,
        Query(ge=256, le=2**22, description="Memory of the device in MiB; default is the limit of trainings, or 8192."),
    ] = None,
) -> Plan:
    """A training that suits the version: patch, levels, batch, scaling, steps, with reasons and estimated memory."""
    version = _version(session, caller, name, number)
    if not version.statistics.get("pairs"):
        raise Conflict(f"{name}@{number} has no pair, so there is nothing to plan. Label some images first.")
    return plan(session, version, services.settings, None if memory_mib is None else memory_mib * 2**20)


@router.get(
    "/datasets/{name}/versions/{number}/items",
    dependencies=[require("datasets:read")],
    responses=listed(DATASET_ITEM) | may_answer(NotFound, InvalidCursor),
)
def list_items(
    name: DatasetName,
    number: VersionNumber,
    caller: Caller,
    session: Read,
    page: Page,
    found: Annotated[Found, finding(ITEMS)],
) -> Listing[DatasetItem]:
    """The pairs of a version in their order, each with its own statistics; or those of them that fit a query. Betti
    numbers and pixels are those of the class that is named, else of the first.
    """
    version = _version(session, caller, name, number)
    wanted = _of_version(version, found)
    return page.found(session, store.items_of(version), wanted, lambda row: describe_item(session, row))


def _of_version(version: tables.DatasetVersion, found: Found) -> Found:
    """What is wanted of the items of this version; Invalid for a class, a dimension or an order that it has not."""
    values = {"name" if name == "item" else name: value for name, value in found.values.items()}
    class_name = values.get("class_name", version.classes[1])
    if class_name not in version.classes[1:]:
        raise Invalid(f"The classes of this version are {', '.join(version.classes[1:])}. Name one of them.")
    finder = items_of(version, class_name)
    lacking = sorted(set(values) - set(finder.filters) - {"warning"})
    if lacking or found.sort.lstrip("-") not in finder.orders:
        named = (lacking or [found.sort])[0]
        raise Invalid(f"Images of {version.dimensions} dimensions have no {named}. Leave it out.")
    if "warning" in values and values["warning"] not in finder.filters.get("warning", NONE).choices:
        finder = replace(finder, filters={**finder.filters, "warning": NONE})
    return Found(finder, values, found.sort)


@router.patch(
    "/datasets/{name}",
    dependencies=[require("datasets:write")],
    responses=shown(200, DATASET) | may_answer(NotFound, Conflict),
)
def rename_dataset(name: DatasetName, new: NewName, caller: Caller, session: Write) -> Dataset:
    """Give a dataset another name; its versions keep their numbers, and jobs find the versions they were sent for."""
    row = store.require(session, caller.project_id, name)
    deletion.rename(session, caller, row, new.name)
    return describe(session, row)


@asynccontextmanager
async def _source(
    request: Request,
    services: Services,
    caller: Principal,
    wanted: type[Wanted],
    name: str | None,
    label_map: str | None,
    masks: FileReading,
) -> AsyncIterator[tuple[str | None, Source]]:
    """The dataset's name and where its pairs come from, by the kind of body."""
    async with received_or_json(
        request, services, fields=("name", "label_map", *FileReading.model_fields), images=False
    ) as body:
        if isinstance(body, bytes):
            new = validated(wanted, parse(body))
            digest = hashlib.sha256(body).hexdigest()
            yield getattr(new, "name", name), await run_sync(_named_images, services, caller.project_id, new, digest)
            return
        sent = body[ANY].fields
        name = validated(Name, sent["name"], "name") if "name" in sent else name
        label_map = sent.get("label_map", label_map)
        written = {field: reading(field, sent[field]) for field in FileReading.model_fields if field in sent}
        masks = validated(FileReading, masks.model_dump() | written)
        yield name, from_archive(body[ANY], None if label_map is None else _label_map(label_map), masks, services)


def _label_map(text: str) -> dict[str, Any]:
    """The label map out of a query or a form, where it travels as JSON text."""
    return validated(LabelMap, parse(text.encode("utf-8", "surrogatepass")), "label_map")


def _named_images(services: Services, project_id: UUID, new: NewVersion, digest: str) -> Source:
    with services.database.read() as session:
        return from_images(session, project_id, new, digest, services)


def _require(services: Services, caller: Principal, name: str) -> None:
    with services.database.read() as session:
        store.require(session, caller.project_id, name)


def _keep(
    services: Services, caller: Principal, attempt: Attempt, name: str, source: Source, must_be_new: bool
) -> Response:
    """Read, count and store, then write every row in one transaction."""
    attempt.look(services.database, source.digest)
    ready = draft(services, caller.project_id, name, source, must_be_new=must_be_new)

    def deed(session: Session) -> Response:
        version, new = add(session, caller, name, ready, must_be_new=must_be_new)
        return created(describe_version(session, version), new)

    return attempt.write(services.database, source.digest, deed)


def _version(session: Session, caller: Principal, name: str, number: int) -> tables.DatasetVersion:
    return store.require_version(session, store.require(session, caller.project_id, name), number)
