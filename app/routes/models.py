"""Trained networks:
their versions with every fact about them, their files, and the aliases that point to one version.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import Header, Path, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import errors
from app.admission import networks
from app.errors import (
    BlobCorrupt,
    Conflict,
    Gone,
    Invalid,
    InvalidCursor,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    may_answer,
)
from app.http.callers import Caller, require
from app.http.downloads import download
from app.http.endpoints import noun_router
from app.http.idempotency import Attempt, Once
from app.http.limits import body_up_to
from app.http.paging import Listing, Page
from app.http.resources import BlobsDep, Read, ServicesDep, Write
from app.http.uploads import Upload, received
from app.roles import Principal
from app.routes import images
from app.schemas.base import Name
from app.schemas.examples import ALIAS, MODEL, MODEL_VERSION, MOVE, listed, shown
from app.schemas.models import Alias, AliasMove, File, Gate, Model, ModelVersion, MoveAlias
from app.services import Services
from app.serving.registry import file_of, read_manifest
from app.store import audit, datasets, measurements, models as store, tables, versions

router = noun_router("models")

ModelName = Annotated[Name, Path(description="The model's name.", examples=["membranes"])]
AliasName = Annotated[Name, Path(description="The alias.", examples=["champion"])]
VersionNumber = Annotated[int, Path(ge=1, le=2**31 - 1, description="The version's number.", examples=[3])]
OCTETS = "application/octet-stream"
BYTES = {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}, "example": "(bytes)"}}}
FILES = {
    200: {**BYTES, "description": "The file; its ETag is its SHA-256."},
    206: {**BYTES, "description": "The range that was asked for."},
    304: {"description": "The caller has this file."},
    **may_answer(NotFound, Invalid, Gone, RangeNotSatisfiable, BlobCorrupt),
}
ARCHIVE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "A zip archive: `model.onnx` with `manifest.json`, or a MONAI bundle with `models/model.onnx` and"
            " `configs/metadata.json`."
        ),
        "content": {
            "application/zip": {"schema": images.FILE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": images.FILE},
                    "additionalProperties": False,
                }
            },
        },
    }
}
IMPORTED = shown(
    201,
    MODEL_VERSION
    | {
        "source": "imported",
        "job": None,
        "dataset": None,
        "training_s": None,
        "metrics": {},
        "spec": {},
        "safetensors": None,
    },
)
SAME = {
    200: {
        "model": ModelVersion,
        "content": IMPORTED[201]["content"],
        "description": "This network was imported before under this name; this is the same version.",
    }
}
REFUSALS = may_answer(
    errors.InvalidRequest,
    errors.InvalidJson,
    errors.IncompleteBody,
    errors.UnsupportedMediaType,
    errors.UnsupportedModelFormat,
    errors.TooLarge,
    errors.ExpandsTooLarge,
    errors.SlowRequest,
    errors.BadArchive,
    errors.ChecksumMismatch,
    errors.ExternalDataRefused,
    errors.ModelRejected,
    errors.ModelSignature,
    Invalid,
    errors.IdempotencyConflict,
    errors.IdempotencyInProgress,
    errors.StorageFull,
)
IfMatch = Annotated[
    str | None, Header(max_length=255, description="The alias's `etag` as you read it; 412 when it has moved since.")
]


@router.get("/models", dependencies=[require("models:read")], responses=listed(MODEL) | may_answer(InvalidCursor))
def list_models(caller: Caller, session: Read, page: Page) -> Listing[Model]:
    """The models of this project, newest first."""
    return page.listing(
        session, store.all_of(caller.project_id), tables.Model.id, lambda model: describe(session, model)
    )


@router.get(
    "/models/{name}", dependencies=[require("models:read")], responses=shown(200, MODEL) | may_answer(NotFound, Invalid)
)
def get_model(name: ModelName, caller: Caller, session: Read) -> Model:
    """A model: its newest version and its aliases."""
    return describe(session, store.require(session, caller.project_id, name))


@router.get(
    "/models/{name}/versions",
    dependencies=[require("models:read")],
    responses=listed(MODEL_VERSION) | may_answer(NotFound, Invalid, InvalidCursor),
)
def list_versions(name: ModelName, caller: Caller, session: Read, page: Page) -> Listing[ModelVersion]:
    """The versions of a model, newest first."""
    model = store.require(session, caller.project_id, name)
    return page.listing(
        session, store.versions_of(model), tables.ModelVersion.id, lambda version: describe_version(session, version)
    )


@router.post(
    "/models/{name}/versions",
    status_code=201,
    response_model=ModelVersion,
    openapi_extra=ARCHIVE,
    dependencies=[require("models:write"), body_up_to("max_model_bytes")],
    responses=IMPORTED | SAME | REFUSALS,
)
async def import_version(
    name: ModelName, request: Request, caller: Caller, services: ServicesDep, attempt: Once
) -> Response:
    """Import a network that was trained elsewhere as the next version of a model, which is made when it does not exist.

    The network is walked and tried in a limited process first. The same network with the same manifest again is the
    same version, with 200.
    """
    async with received(request, services, fields=()) as upload:
        return await run_sync(_import, services, caller, attempt, name, upload, limiter=services.dataset_slots)


@router.get(
    "/models/{name}/versions/{number}",
    dependencies=[require("models:read")],
    responses=shown(200, MODEL_VERSION) | may_answer(NotFound, Invalid),
)
def get_version(
    name: ModelName, number: VersionNumber, caller: Caller, session: Read, services: ServicesDep
) -> ModelVersion:
    """The card of a version: how it was made, what it scored, what is needed to run it, and what runs it now."""
    return card(session, _version(session, caller, name, number), services)


@router.get(
    "/models/{name}/versions/{number}/manifest.json",
    dependencies=[require("models:read")],
    responses=shown(200, MODEL_VERSION["manifest"]) | may_answer(NotFound, Invalid),
)
def get_manifest(name: ModelName, number: VersionNumber, caller: Caller, session: Read) -> dict[str, Any]:
    """The manifest alone, as it was exported: every fact needed to serve the ONNX file elsewhere."""
    return _version(session, caller, name, number).manifest


@router.get(
    "/models/{name}/versions/{number}/onnx",
    dependencies=[require("models:read")],
    response_class=Response,
    responses=FILES,
)
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
        media_type=OCTETS,
        name=f"{name}-{number}{f'-{variant}' if variant else ''}.onnx",
    )


@router.get(
    "/models/{name}/versions/{number}/safetensors",
    dependencies=[require("models:read")],
    response_class=Response,
    responses=FILES,
)
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
        media_type=OCTETS,
        name=f"{name}-{number}.safetensors",
    )


@router.get(
    "/models/{name}/aliases",
    dependencies=[require("models:read")],
    responses=shown(200, [ALIAS]) | may_answer(NotFound, Invalid),
)
def list_aliases(name: ModelName, caller: Caller, session: Read) -> list[Alias]:
    """Every alias of a model and the version it points to."""
    return [describe_alias(alias) for alias in store.aliases(session, store.require(session, caller.project_id, name))]


@router.get(
    "/models/{name}/aliases/{alias}",
    dependencies=[require("models:read")],
    responses=shown(200, ALIAS) | may_answer(NotFound, Invalid),
)
def get_alias(name: ModelName, alias: AliasName, caller: Caller, session: Read, response: Response) -> Alias:
    """One alias; its ETag changes whenever it moves."""
    row = store.require_alias(session, store.require(session, caller.project_id, name), alias)
    response.headers["ETag"] = store.etag(row)
    return describe_alias(row)


@router.put(
    "/models/{name}/aliases/{alias}",
    dependencies=[require("models:promote")],
    responses=shown(200, ALIAS) | may_answer(NotFound, Conflict, PreconditionFailed, Invalid),
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
    model = store.require(session, caller.project_id, name)
    version = store.require_version(session, model, target.version)
    passed = pass_gate(session, version, target.gate) if target.gate else None
    row = store.move_alias(session, model, alias, version, who=caller.who, gate=passed, expected=if_match)
    audit.note(
        session,
        project_id=caller.project_id,
        who=caller.who,
        what="alias.move",
        object=f"{name}@{alias} -> {target.version}",
    )
    response.headers["ETag"] = store.etag(row)
    return describe_alias(row)


@router.delete(
    "/models/{name}/aliases/{alias}",
    status_code=204,
    dependencies=[require("models:promote")],
    responses=may_answer(NotFound, PreconditionFailed, Invalid),
)
def remove_alias(name: ModelName, alias: AliasName, caller: Caller, session: Write, if_match: IfMatch = None) -> None:
    """Take an alias away; the version and the alias's history stay."""
    store.remove_alias(
        session, store.require(session, caller.project_id, name), alias, who=caller.who, expected=if_match
    )
    audit.note(session, project_id=caller.project_id, who=caller.who, what="alias.remove", object=f"{name}@{alias}")


@router.get(
    "/models/{name}/aliases/{alias}/history",
    dependencies=[require("models:read")],
    responses=listed(MOVE) | may_answer(NotFound, Invalid, InvalidCursor),
)
def alias_history(name: ModelName, alias: AliasName, caller: Caller, session: Read, page: Page) -> Listing[AliasMove]:
    """Every move of an alias, newest first; also of one that was removed."""
    model = store.require(session, caller.project_id, name)
    if session.scalar(store.moves_of(model, alias).limit(1)) is None:
        store.require_alias(session, model, alias)
    return page.listing(session, store.moves_of(model, alias), tables.AliasMove.id, describe_move)


def _import(services: Services, caller: Principal, attempt: Attempt, name: str, upload: Upload) -> Response:
    """Try, store, then write every row in one transaction.

    What the manifest claims of figures is kept there and passes no gate.
    """
    with services.database.read() as session:
        attempt.look(session, upload.sha256)
    with networks.admitted(upload.file, services.settings) as network:
        onnx = services.blobs.put(caller.project_id, iter(lambda: network.file.read(1 << 20), b""))
    with services.database.write() as session:
        attempt.claim(session, upload.sha256)
        version, new = versions.register_import(
            session, project_id=caller.project_id, model=name, manifest=network.manifest, onnx=onnx
        )
        if new:
            audit.note(
                session,
                project_id=caller.project_id,
                who=caller.who,
                what="model.import",
                object=f"{name}:{version.number}",
            )
        card = describe_version(session, version)
        response = Response(
            card.model_dump_json(), 201 if new else 200, {"Location": card.links["self"]}, "application/json"
        )
        attempt.remember(response)
    return response


def pass_gate(session: Session, version: tables.ModelVersion, gate: Gate) -> dict[str, Any]:
    """The figures that decided, for the history; Conflict with every bound that is not kept."""
    figures, source = dict(version.metrics), "its validation figures"
    if gate.dataset is not None:
        figures, source = _evaluated(session, version, gate.dataset)
    failing = measurements.shortfalls(gate.bounds(), figures)
    if failing:
        errors = [{"pointer": "/gate", "detail": sentence} for sentence in failing]
        raise Conflict(
            f"Version {version.number} does not pass the gate by {source}: {'; '.join(failing)}. The alias was not"
            " moved.",
            errors=errors,
        )
    return {"dataset": gate.dataset, "bounds": gate.bounds(), "figures": figures}


def _evaluated(session: Session, version: tables.ModelVersion, ref: str) -> tuple[dict[str, float], str]:
    try:
        dataset, data = datasets.resolve(session, version.project_id, ref)
    except NotFound as unknown:
        raise Invalid(unknown.detail, errors=[{"pointer": "/gate/dataset", "detail": unknown.detail}]) from None
    ref = f"{dataset.name}@{data.number}"
    job = measurements.newest_evaluation(session, version, data.id)
    if job is None:
        raise Conflict(
            f"Version {version.number} was not evaluated on {ref}. Submit an evaluate job for it first, then move the"
            " alias."
        )
    return measurements.means(session, job), f"its newest evaluation on {ref}"


def _version(session: Session, caller: Caller, name: str, number: int) -> tables.ModelVersion:
    return store.require_version(session, store.require(session, caller.project_id, name), number)


def describe(session: Session, model: tables.Model) -> Model:
    """The model as the API and the pages show it."""
    latest, here = store.newest(session, model), f"/v1/models/{model.name}"
    return Model(
        id=model.id,
        name=model.name,
        created_at=model.created_at,
        latest=latest.number if latest else None,
        aliases=[describe_alias(alias) for alias in store.aliases(session, model)],
        links={"self": here, "versions": f"{here}/versions", "aliases": f"{here}/aliases"},
    )


def describe_version(session: Session, version: tables.ModelVersion) -> ModelVersion:
    """The card of a version as the API and the pages show it."""
    model = session.get_one(tables.Model, version.model_id)
    here = f"/v1/models/{model.name}/versions/{version.number}"
    pointing = (
        select(tables.Alias.alias)
        .where(tables.Alias.model_id == model.id, tables.Alias.number == version.number)
        .order_by(tables.Alias.alias)
    )
    weights = (
        File(sha256=version.weights_sha256, bytes=version.weights_bytes or 0, href=f"{here}/safetensors")
        if version.weights_sha256
        else None
    )
    return ModelVersion(
        id=version.id,
        model=model.name,
        version=version.number,
        ref=f"{model.name}:{version.number}",
        created_at=version.created_at,
        source="trained" if version.job_id else "imported",
        aliases=list(session.scalars(pointing)),
        dataset=datasets.ref_of(session, version.dataset_version_id) if version.dataset_version_id else None,
        job=version.job_id,
        training_s=version.training_s,
        spec=version.spec,
        metrics=version.metrics,
        manifest=version.manifest,
        software=version.manifest.get("software") or {},
        onnx=File(sha256=version.onnx_sha256, bytes=version.onnx_bytes, href=f"{here}/onnx"),
        safetensors=weights,
        links={"self": here, "model": f"/v1/models/{model.name}", "manifest": f"{here}/manifest.json"}
        | ({"job": f"/v1/jobs/{version.job_id}"} if version.job_id else {}),
    )


def card(session: Session, version: tables.ModelVersion, services: Services) -> ModelVersion:
    """A version with what runs it in this process."""
    network = services.registry.network(version.id)
    now = {"provider": network.place, "threads": network.threads, "batch": network.batch} if network else {}
    return describe_version(session, version).model_copy(update=now)


def describe_alias(alias: tables.Alias) -> Alias:
    """An alias as the API and the pages show it."""
    return Alias(alias=alias.alias, version=alias.number, moved_at=alias.moved_at, etag=store.etag(alias))


def describe_move(move: tables.AliasMove) -> AliasMove:
    """A line of an alias's history as the API and the pages show it."""
    return AliasMove(
        alias=move.alias,
        from_version=move.from_number,
        to_version=move.to_number,
        moved_at=move.created_at,
        moved_by=move.moved_by,
        gate=move.gate,
    )
