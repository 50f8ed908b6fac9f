"""Endpoints for models: their versions, files and aliases."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from app.admission import aliases, deletion, networks
from app.errors import Conflict, InvalidCursor, NotFound, PreconditionFailed, may_answer
from app.http.callers import Caller, require
from app.http.downloads import disposition, download
from app.http.endpoints import VersionNumber, created, downloads, noun_router, uploads
from app.http.finding import Wanted, finding
from app.http.idempotency import Attempt, Once
from app.http.paging import Listing, Page
from app.http.resources import BlobsDep, Read, ServicesDep, Write
from app.http.uploads import received
from app.openapi import models as texts
from app.openapi.examples import ALIAS, MODEL, MODEL_VERSION, MOVE, listed, shown
from app.openapi.models import ModelName
from app.representations.bundles import bundle
from app.representations.models import card, describe, describe_alias, describe_move, describe_version
from app.roles import Principal
from app.schemas.base import Name
from app.schemas.deletion import NewName
from app.schemas.models import Alias, AliasMove, Model, ModelVersion, MoveAlias
from app.services import Services
from app.serving.registry import file_of, read_manifest
from app.store import audit, models as store, tables
from app.store.finding import MODEL_VERSIONS, MODELS
from app.upload import Upload

router = noun_router("models")

AliasName = Annotated[Name, Path(description="The alias.", examples=["champion"])]
IfMatch = Annotated[
    str | None, Header(max_length=255, description="The alias's `etag` as you read it; 412 when it has moved since.")
]


@router.get("/models", dependencies=[require("models:read")], responses=listed(MODEL) | may_answer(InvalidCursor))
def list_models(
    caller: Caller, session: Read, page: Page, wanted: Annotated[Wanted, finding(MODELS)]
) -> Listing[Model]:
    """The models of this project, newest first or in another order, all or those that fit."""
    return page.found(session, store.all_of(caller.project_id), wanted, lambda model: describe(session, model))


@router.get("/models/{name}", dependencies=[require("models:read")], responses=shown(200, MODEL) | may_answer(NotFound))
def get_model(name: ModelName, caller: Caller, session: Read) -> Model:
    """A model: its newest version and its aliases."""
    return describe(session, store.require(session, caller.project_id, name))


@router.get(
    "/models/{name}/versions",
    dependencies=[require("models:read")],
    responses=listed(MODEL_VERSION) | may_answer(NotFound, InvalidCursor),
)
def list_versions(
    name: ModelName,
    caller: Caller,
    session: Read,
    page: Page,
    wanted: Annotated[Wanted, finding(MODEL_VERSIONS.without("name"))],
) -> Listing[ModelVersion]:
    """The versions of a model, newest first or in another order, all or those that fit."""
    model = store.require(session, caller.project_id, name)
    return page.found(session, store.versions_of(model), wanted, lambda version: describe_version(session, version))


@router.post(
    "/models/{name}/versions",
    status_code=201,
    **uploads(ModelVersion, "models:write", "max_model_bytes", texts.ARCHIVE, texts.IMPORTED),
)
async def import_version(
    name: ModelName, request: Request, caller: Caller, services: ServicesDep, attempt: Once
) -> Response:
    """Import a network that was trained elsewhere as the next version of a model, which is made when it does not exist.

    The network is walked and tried in a limited process first. The same network with the same manifest again is the
    same version, with 200.
    """
    async with received(request, services, fields=(), images=False) as upload:
        return await run_sync(_import, services, caller, attempt, name, upload, limiter=services.dataset_slots)


@router.get(
    "/models/{name}/versions/{number}",
    dependencies=[require("models:read")],
    responses=shown(200, MODEL_VERSION) | may_answer(NotFound),
)
def get_version(
    name: ModelName, number: VersionNumber, caller: Caller, session: Read, services: ServicesDep
) -> ModelVersion:
    """The card of a version: how it was made, what it scored, what is needed to run it, and what runs it now."""
    return card(session, _version(session, caller, name, number), services.registry)


@router.get(
    "/models/{name}/versions/{number}/manifest.json",
    dependencies=[require("models:read")],
    responses=shown(200, MODEL_VERSION["manifest"]) | may_answer(NotFound),
)
def get_manifest(name: ModelName, number: VersionNumber, caller: Caller, session: Read) -> dict[str, Any]:
    """The manifest alone, as it was exported: every fact needed to serve the ONNX file elsewhere."""
    return _version(session, caller, name, number).manifest


@router.get("/models/{name}/versions/{number}/onnx", **downloads("models:read", answers=texts.FILES))
def download_onnx(
    name: ModelName,
    number: VersionNumber,
    request: Request,
    caller: Caller,
    session: Read,
    blobs: BlobsDep,
    variant: Annotated[
        Literal["fp16", "int8"] | None, Query(description="A smaller form instead of the full network.")
    ] = None,
) -> Response:
    """The network as ONNX: input `image`, output `probability`; scale the image as the manifest says."""
    version = _version(session, caller, name, number)
    sha256, size = version.onnx_sha256, version.onnx_bytes
    if variant is not None:
        sha256, size = file_of(read_manifest(version), variant)
    return download(
        request,
        blobs,
        caller.project_id,
        sha256,
        size,
        media_type=texts.OCTETS,
        name=f"{name}-{number}{f'-{variant}' if variant else ''}.onnx",
    )


@router.get("/models/{name}/versions/{number}/bundle.zip", **downloads("models:read", answers=texts.BUNDLE))
def download_bundle(
    name: ModelName, number: VersionNumber, caller: Caller, session: Read, blobs: BlobsDep
) -> StreamingResponse:
    """The network as a MONAI bundle: ONNX, metadata and a configuration that MONAI runs; it can be imported again."""
    version = _version(session, caller, name, number)
    blobs.verify(caller.project_id, version.onnx_sha256)
    pieces = partial(blobs.chunks, caller.project_id, version.onnx_sha256)
    content = bundle(f"{name}-{number}", read_manifest(version), version.onnx_bytes, pieces)
    headers = {"Content-Disposition": disposition(f"{name}-{number}.zip"), "Cache-Control": "private, no-cache"}
    return StreamingResponse(content, media_type="application/zip", headers=headers)


@router.get("/models/{name}/versions/{number}/safetensors", **downloads("models:read", answers=texts.FILES))
def download_weights(
    name: ModelName, number: VersionNumber, request: Request, caller: Caller, session: Read, blobs: BlobsDep
) -> Response:
    """The weights as safetensors, for training on."""
    version = _version(session, caller, name, number)
    if version.weights_sha256 is None or version.weights_bytes is None:
        raise NotFound(f"{name}:{number} has no weights beside its ONNX file.")
    return download(
        request,
        blobs,
        caller.project_id,
        version.weights_sha256,
        version.weights_bytes,
        media_type=texts.OCTETS,
        name=f"{name}-{number}.safetensors",
    )


@router.get(
    "/models/{name}/aliases",
    dependencies=[require("models:read")],
    responses=shown(200, [ALIAS]) | may_answer(NotFound),
)
def list_aliases(name: ModelName, caller: Caller, session: Read) -> list[Alias]:
    """Every alias of a model and the version it points to."""
    return [describe_alias(alias) for alias in store.aliases(session, store.require(session, caller.project_id, name))]


@router.get(
    "/models/{name}/aliases/{alias}",
    dependencies=[require("models:read")],
    responses=shown(200, ALIAS) | may_answer(NotFound),
)
def get_alias(name: ModelName, alias: AliasName, caller: Caller, session: Read, response: Response) -> Alias:
    """One alias; its ETag changes whenever it moves."""
    row = store.require_alias(session, store.require(session, caller.project_id, name), alias)
    response.headers["ETag"] = store.etag(row)
    return describe_alias(row)


@router.put(
    "/models/{name}/aliases/{alias}",
    dependencies=[require("models:promote")],
    responses=shown(200, ALIAS) | may_answer(NotFound, Conflict, PreconditionFailed),
)
def move_alias(
    name: ModelName,
    alias: AliasName,
    target: MoveAlias,
    caller: Caller,
    session: Write,
    response: Response,
    if_match: IfMatch = None,
) -> Alias:
    """Point an alias to a version, past a gate of bounds that its figures must keep.

    Doing it twice changes nothing more.
    """
    row = aliases.move(session, caller, name, alias, target, expected=if_match)
    response.headers["ETag"] = store.etag(row)
    return describe_alias(row)


@router.delete(
    "/models/{name}/aliases/{alias}",
    status_code=204,
    dependencies=[require("models:promote")],
    responses=may_answer(NotFound, PreconditionFailed),
)
def remove_alias(name: ModelName, alias: AliasName, caller: Caller, session: Write, if_match: IfMatch = None) -> None:
    """Take an alias away; the version and the alias's history stay."""
    store.remove_alias(
        session, store.require(session, caller.project_id, name), alias, who=caller.who, expected=if_match
    )
    audit.note(session, caller, "alias.remove", f"{name}@{alias}")


@router.get(
    "/models/{name}/aliases/{alias}/history",
    dependencies=[require("models:read")],
    responses=listed(MOVE) | may_answer(NotFound, InvalidCursor),
)
def alias_history(name: ModelName, alias: AliasName, caller: Caller, session: Read, page: Page) -> Listing[AliasMove]:
    """Every move of an alias, newest first; also of one that was removed."""
    model = store.require(session, caller.project_id, name)
    if session.scalar(store.moves_of(model, alias).limit(1)) is None:
        store.require_alias(session, model, alias)
    return page.listing(session, store.moves_of(model, alias), tables.AliasMove.id, describe_move)


@router.patch(
    "/models/{name}",
    dependencies=[require("models:promote")],
    responses=shown(200, MODEL) | may_answer(NotFound, Conflict),
)
def rename_model(name: ModelName, new: NewName, caller: Caller, session: Write) -> Model:
    """Give a model another name. Its versions and aliases stay; whoever asks for the old name is told it is unknown."""
    row = store.require(session, caller.project_id, name)
    deletion.rename(session, caller, row, new.name)
    return describe(session, row)


def _import(services: Services, caller: Principal, attempt: Attempt, name: str, upload: Upload) -> Response:
    """Try, store, then write every row in one transaction.

    What the manifest claims of figures is kept there and passes no gate.
    """
    attempt.look(services.database, upload.sha256)
    with networks.admitted(upload.file, services.settings) as network:
        onnx = services.blobs.put_file(caller.project_id, network.file)

    def deed(session: Session) -> Response:
        version, new = networks.register(session, caller, name, network.manifest, onnx)
        return created(describe_version(session, version), new)

    return attempt.write(services.database, upload.sha256, deed)


def _version(session: Session, caller: Caller, name: str, number: int) -> tables.ModelVersion:
    return store.require_version(session, store.require(session, caller.project_id, name), number)
