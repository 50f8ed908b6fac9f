"""The Open Inference Protocol v2 (KServe, Triton) over the same pipeline as `/v1/models/{ref}/predict`.

A model is `name` or `name@alias`, a version its number. The input `image` is (N, channels, rows, columns), planes
before rows in volumes, with pixels as they are in the file: the service scales them as in training, cuts and stitches.
Outputs are `probability` (N, K, ...) FP32 and `mask` (N, ...) UINT8; asked for by name or by the parameter `topology`
also `betti` (N, classes - 1, 2 or 3) and `euler` (N, classes - 1), both INT64. The parameters `threshold`, `expect`,
`strict` and `repair` are those of predict; with `expect` the answer has the parameter `expectation`, satisfied when
every image is, with `repair` the parameter `edits`, their number over all images. Where we differ from Triton: a
version that is not loaded is loaded by its first request, so it is *ready* although the repository index says
UNAVAILABLE; a body without JSON header is refused, because rows and columns of our inputs are both free; and
classification, shared memory and a configuration given while loading are refused, not passed over. Loading, unloading
and statistics are of one process.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Path, Request, Response
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import errors
from app.errors import InvalidRequest, NonFinite, NotFound, TooManyPixels, WrongInput, may_answer
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.endpoints import noun_router
from app.http.limits import body_up_to
from app.http.resources import Read, ServicesDep
from app.imaging import Picture
from app.openapi import inference as texts
from app.openapi.examples import shown
from app.protocols import tensors
from app.roles import Principal
from app.schemas.base import ModelRef
from app.services import Services
from app.serving import expectations, prediction
from app.serving.contract import Manifest
from app.serving.pipeline import Predictor, Stop, Stopwatch
from app.serving.prediction import Question, expected_of
from app.serving.registry import Registry, read_manifest
from app.serving.statistics import VersionStatistics
from app.store import models, tables
from app.strict_json import parse
from app.version import VERSION

router = noun_router("open inference protocol", prefix="/v2")

SERVER = {
    "name": "toposerve",
    "version": VERSION,
    "extensions": ["binary_tensor_data", "model_repository", "model_configuration", "statistics"],
}
PLATFORM = "onnx_onnxv1"
PIXELS = {
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "INT16": np.int16,
    "FP16": np.float32,
    "FP32": np.float32,
    "FP64": np.float32,
}
"""Datatypes accepted for `image`, and what they are predicted as."""
ON_REQUEST = ("betti", "euler")
MOST_IMAGES = 1024
"""Images of one request: each costs a run, however few pixels it has."""
MOST_EXPECTED = 2048
"""Characters of an expectation, as in predict."""
Threshold = TypeAdapter(Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)])

Name = Annotated[ModelRef, Path(description="`name` or `name@alias`.", examples=["vessels"])]


def seen(example: Any) -> dict[str, Any]:
    """What every question about models has in common, and what its answer looks like."""
    return {"dependencies": [require("models:read")], "responses": shown(200, example) | may_answer(errors.NotFound)}


INFER: dict[str, Any] = {
    "dependencies": [require("predict"), body_up_to("max_upload_bytes")],
    "response_class": Response,
    "responses": texts.INFERRED,
    "openapi_extra": texts.INFER_BODY,
}


async def _number(request: Request) -> int | None:
    """The version in the address, None where there is none."""
    text = request.path_params.get("number")
    if text is not None and not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise NotFound(f"There is no version {text[:16]}; versions are numbered from 1.")
    return None if text is None else int(text)


Number = Annotated[int | None, Depends(_number)]


async def _given(request: Request) -> dict[str, Any]:
    """The `parameters` of a request to the repository, whose body may be empty."""
    body = await request.body()
    given = _object(body).get("parameters", {}) if body else {}
    if not isinstance(given, dict):
        raise InvalidRequest("parameters must be a JSON object.")
    return given


Given = Annotated[dict[str, Any], Depends(_given)]


def both(method: str, path: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Answer for a model, whose version its name decides, and for one version of it."""

    def register(endpoint: Callable[..., Any]) -> Callable[..., Any]:
        router.add_api_route(f"/models/{{name}}{path}", endpoint, methods=[method], **options)
        extra = options.get("openapi_extra", {}) | {"parameters": [texts.NUMBER]}
        router.add_api_route(
            f"/models/{{name}}/versions/{{number}}{path}",
            endpoint,
            methods=[method],
            **options | {"openapi_extra": extra},
        )
        return endpoint

    return register


# The server ---------------------------------------------------------------------------------------------------------


@router.get("", responses=shown(200, texts.SERVER))
async def server() -> dict[str, Any]:
    """What this server is and which extensions it speaks."""
    return SERVER


@router.get("/health/live", responses=shown(200, {"live": True}))
async def live() -> dict[str, bool]:
    """The process answers."""
    return {"live": True}


@router.get("/health/ready", responses=shown(200, {"live": True, "ready": True}))
async def ready(services: ServicesDep) -> dict[str, bool]:
    """Whether requests should be sent here: not while the process is ending."""
    if services.draining.is_set():
        raise errors.Unavailable("This process is ending. Send requests to another.")
    return {"live": True, "ready": True}


@router.get("/models", **seen({"models": ["vessels"]}))
def list_models(caller: Caller, session: Read) -> dict[str, list[str]]:
    """The names of the models of this project (an addition of KServe's)."""
    return {
        "models": sorted(
            model.name for model in session.scalars(models.all_of(caller.project_id)) if models.newest(session, model)
        )
    }


@router.get("/models/stats", **seen(texts.STATISTICS))
def all_statistics(caller: Caller, session: Read, services: ServicesDep) -> dict[str, Any]:
    """What every version of this project has done in this process."""
    return {"model_stats": [_statistics(services.registry, model, version) for model, version in _all(session, caller)]}


@router.post("/repository/index", **seen([texts.STATE]))
async def index(request: Request, caller: Caller, session: Read, services: ServicesDep) -> list[dict[str, str]]:
    """Every version, and whether it is loaded. `{"ready": true}` names only those that are."""
    body = await request.body()
    only = bool(_object(body).get("ready", False)) if body else False
    listed = [_state(services.registry, model, version) for model, version in _all(session, caller)]
    return [each for each in listed if not only or each["state"] == "READY"]


@router.post(
    "/repository/models/{name}/load",
    dependencies=[require("models:promote"), body_up_to("max_json_bytes")],
    responses=shown(200, {}) | may_answer(errors.NotFound, errors.ModelSignature, errors.BlobCorrupt, errors.Gone),
)
def load(name: Name, caller: Caller, session: Read, services: ServicesDep, given: Given) -> dict[str, Any]:
    """Load the version that the name points to into this process, as its first request would."""
    if given:
        raise InvalidRequest(
            f"{', '.join(sorted(given))[:128]} cannot be given while loading: a version is what was registered. Import"
            " another one: POST /v1/models/{name}/versions."
        )
    _, version = models.resolve(session, caller.project_id, name)
    services.registry.get(caller.project_id, version)
    return {}


@router.post(
    "/repository/models/{name}/unload",
    dependencies=[require("models:promote")],
    responses=shown(200, {}) | may_answer(errors.NotFound),
)
def unload(name: Name, caller: Caller, session: Read, services: ServicesDep, given: Given) -> dict[str, Any]:
    """Let go of every loaded version of a model in this process; predictions in progress end with it.

    Its next request loads it again.
    """
    if unknown := given.keys() - {"unload_dependents"}:
        raise InvalidRequest(f"There is no parameter {min(unknown)[:64]} of unload.")
    model, _ = models.resolve(session, caller.project_id, name)
    for version in session.scalars(models.versions_of(model)):
        services.registry.unload(version.id)
    return {}


# One model ----------------------------------------------------------------------------------------------------------


@both("GET", "", **seen(texts.MODEL))
def metadata(name: Name, caller: Caller, session: Read, number: Number) -> dict[str, Any]:
    """Inputs and outputs of a model: names, datatypes and shapes, -1 where any length is accepted."""
    model, version = _version(session, caller, name, number)
    manifest = read_manifest(version)
    numbers = (
        [str(version.number)]
        if number
        else sorted(str(each.number) for each in session.scalars(models.versions_of(model)))
    )
    return {
        "name": name,
        "versions": numbers,
        "platform": PLATFORM,
        "inputs": [_image(manifest)],
        "outputs": _outputs(manifest),
    }


@both("GET", "/ready", **seen({"name": "vessels", "ready": True}))
def model_ready(name: Name, caller: Caller, session: Read, number: Number) -> dict[str, Any]:
    """True when the model can be asked now."""
    _version(session, caller, name, number)
    return {"name": name, "ready": True}


@both("GET", "/config", **seen(texts.CONFIG))
def config(name: Name, caller: Caller, session: Read, number: Number) -> dict[str, Any]:
    """The configuration as Triton writes it. Batches are run image by image, so none is gathered."""
    _, version = _version(session, caller, name, number)
    manifest = read_manifest(version)

    def typed(tensor: dict[str, Any]) -> dict[str, Any]:
        return {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": tensor["shape"]}

    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": [typed(_image(manifest))],
        "output": [typed(tensor) for tensor in _outputs(manifest)],
        "version_policy": {"specific": {"versions": [version.number]}},
    }


@both("GET", "/stats", **seen(texts.STATISTICS))
def statistics(name: Name, caller: Caller, session: Read, services: ServicesDep, number: Number) -> dict[str, Any]:
    """What a version has done in this process."""
    return {"model_stats": [_statistics(services.registry, *_version(session, caller, name, number))]}


@both("POST", "/infer", **INFER)
async def infer(name: Name, request: Request, caller: Caller, services: ServicesDep, number: Number) -> Response:
    """Segment one or more images of one size."""
    body = await request.body()
    work = partial(_infer, services, caller, name, number, body, dict(request.headers))
    return await while_connected(request, services, work)


def _infer(
    services: Services,
    caller: Principal,
    name: str,
    number: int | None,
    body: bytes,
    headers: dict[str, str],
    stop: Stop,
) -> Response:
    plain = tensors.decompressed(body, headers.get("content-encoding"), services.settings.max_upload_bytes)
    asked = tensors.read(plain, headers.get(tensors.HEADER_LENGTH.lower()))
    _, version = services.names.resolve(
        caller.project_id, name if number is None else f"{models.split(name)[0]}:{number}"
    )
    _agrees(asked.header, name, version)
    predictor = services.registry.get(caller.project_id, version)
    with services.registry.statistics.request(version.id, stop.waited_ms) as counted:
        outputs, counted.timings_ms, parameters = _predicted(predictor, asked, services, stop)
        counted.images = len(next(iter(outputs.values())))
    facts = {"model_name": name, "model_version": str(version.number)} | (
        {"id": asked.header.id} if asked.header.id is not None else {}
    )
    answer, about = tensors.write(facts | ({"parameters": parameters} if parameters else {}), outputs, asked)
    answer, encoding = tensors.compressed(answer, headers.get("accept-encoding"))
    return Response(answer, headers=about | encoding)


def _predicted(
    predictor: Predictor, asked: tensors.TensorRequest, services: Services, stop: Stop
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, Any]]:
    """The tensors that were asked for, the milliseconds of every phase over all images, and what became of expectations
    and repairs.
    """
    known = [tensor["name"] for tensor in _outputs(predictor.manifest)] + list(ON_REQUEST)
    if unknown := [output.name for output in asked.header.outputs if output.name not in known]:
        raise InvalidRequest(f"There is no output {unknown[0][:64]!r}; there are {', '.join(known)}.")
    wanted = list(dict.fromkeys(output.name for output in asked.header.outputs)) or ["probability", "mask"]
    if asked.header.parameters.get("topology"):
        wanted += [name for name in ON_REQUEST if name not in wanted]
    question, parameters = _question(asked, predictor.manifest, wanted), dict[str, Any]()
    pixels, phases, timings_ms = _pixels(asked, predictor.manifest, services), Stopwatch(), Counter[str]()
    made: dict[str, list[Any]] = {name: [] for name in wanted}
    for image in pixels:
        answer = prediction.ask(predictor, Picture(image, "tiff"), question, stop=stop, phases=phases)
        found, said = answer.report or {}, answer.segmentation
        tensors_of = {"probability": said.probability, "mask": said.labels} | _counts(found, said.labels.ndim)
        for name in wanted:
            made[name].append(tensors_of[name])
        timings_ms.update(said.timings_ms)
        _tell(parameters, question, found)
    return {name: np.stack(values) for name, values in made.items()}, dict(timings_ms) | phases.spent_ms, parameters


def _question(asked: tensors.TensorRequest, manifest: Manifest, wanted: Collection[str]) -> Question:
    """What is asked about every image of the request.

    wanted  names of the tensors that are asked for
    """
    given = asked.header.parameters
    for name, kind, said in (
        ("expect", str, "a text such as beta0:1"),
        ("strict", bool, "true or false"),
        ("repair", bool, "true or false"),
    ):
        if name in given and not isinstance(given[name], kind):
            raise InvalidRequest(f"The parameter {name} is {given[name]!r:.32}; it must be {said}.")
    text = str(given.get("expect", ""))
    if len(text) > MOST_EXPECTED:
        raise InvalidRequest(f"The parameter expect has {len(text)} characters; at most {MOST_EXPECTED} are read.")
    if given.get("strict") and not text:
        raise InvalidRequest("strict insists on what `expect` says. Send `expect`, or leave strict out.")
    return Question(
        threshold=_threshold(asked),
        probability="probability" in wanted,
        topology=not {*ON_REQUEST}.isdisjoint(wanted),
        expected=expected_of(text, manifest),
        strict=bool(given.get("strict")),
        repair=bool(given.get("repair")),
    )


def _tell(parameters: dict[str, Any], question: Question, found: dict[str, dict[str, Any]]) -> None:
    """Add to the parameters of the answer what became of one image."""
    if question.repair:
        parameters["edits"] = parameters.get("edits", 0) + sum(facts["edit_count"] for facts in found.values())
    if question.expected and (expectations.listed(found) or "expectation" not in parameters):
        parameters["expectation"] = "violated" if expectations.listed(found) else "satisfied"


def _counts(found: dict[str, dict[str, Any]], dimensions: int) -> dict[str, np.ndarray]:
    return {
        "betti": np.array([[each[f"beta{k}"] for k in range(dimensions)] for each in found.values()], np.int64),
        "euler": np.array([each["euler"] for each in found.values()], np.int64),
    }


def _pixels(asked: tensors.TensorRequest, manifest: Manifest, services: Services) -> np.ndarray:
    """(N, C, ...) of a dtype that the pipeline reads, finite, N at least 1."""
    if list(asked.inputs) != ["image"] or len(asked.header.inputs) != 1:
        raise InvalidRequest(
            f"Send one input called image; {', '.join(tensor.name[:64] for tensor in asked.header.inputs)} arrived."
        )
    pixels, tensor = asked.inputs["image"], asked.header.inputs[0]
    if tensor.datatype not in PIXELS:
        raise InvalidRequest(f"image has datatype {tensor.datatype}; it can be one of {', '.join(PIXELS)}.")
    if pixels.ndim != manifest.dimensions + 2 or pixels.shape[1] != manifest.channels or 0 in pixels.shape:
        raise WrongInput(
            f"image has shape {list(pixels.shape)}; this model needs {_image(manifest)['shape']}, where -1 is any"
            " length from 1 on."
        )
    if pixels.shape[0] > MOST_IMAGES:
        raise WrongInput(
            f"image holds {pixels.shape[0]} images; at most {MOST_IMAGES} are predicted in one request. Send fewer at"
            " once, or queue a job: POST /v1/jobs."
        )
    most = services.settings.max_pixels if manifest.dimensions == 2 else services.settings.max_voxels
    if pixels.shape[0] * int(np.prod(pixels.shape[2:])) > most:
        raise TooManyPixels(
            f"image holds {pixels.shape[0] * int(np.prod(pixels.shape[2:]))} pixels; at most {most} are accepted in one"
            " request. Send fewer images at once."
        )
    with np.errstate(over="ignore"):
        pixels = pixels.astype(PIXELS[tensor.datatype], copy=False)
    if not np.isfinite(pixels).all():
        raise NonFinite("image holds NaN, infinity or a number beyond float32. Every pixel must be a finite number.")
    return pixels


def _agrees(header: tensors.InferRequest, name: str, version: tables.ModelVersion) -> None:
    """Refuse a body that names another model than the address does."""
    for what, said, here in (
        ("model", header.model_name, (name, models.split(name)[0])),
        ("version", header.model_version, (str(version.number),)),
    ):
        if said and said not in here:
            raise InvalidRequest(
                f"The body names the {what} {said[:64]} and the address {here[0]}. Name one of them, or leave it out of"
                " the body."
            )


def _threshold(asked: tensors.TensorRequest) -> float | None:
    given = asked.header.parameters.get("threshold")
    try:
        return None if given is None else Threshold.validate_python(given, strict=True)
    except ValidationError:
        raise InvalidRequest(
            f"The parameter threshold is {given!r:.32}; it must be a number above 0 and below 1."
        ) from None


# Shapes -------------------------------------------------------------------------------------------------------------


def _version(
    session: Session, caller: Principal, name: str, number: int | None
) -> tuple[tables.Model, tables.ModelVersion]:
    if number is None:
        return models.resolve(session, caller.project_id, name)
    model = models.require(session, caller.project_id, models.split(name)[0])
    return model, models.require_version(session, model, number)


def _all(session: Session, caller: Principal) -> list[tuple[tables.Model, tables.ModelVersion]]:
    joined = select(tables.Model, tables.ModelVersion).join(
        tables.ModelVersion, tables.ModelVersion.model_id == tables.Model.id
    )
    mine = joined.where(tables.Model.project_id == caller.project_id)
    rows = session.execute(mine.order_by(tables.Model.name, tables.ModelVersion.number))
    return [(model, version) for model, version in rows]


def _object(body: bytes) -> dict[str, Any]:
    sent = parse(body)
    if not isinstance(sent, dict):
        raise InvalidRequest("The body must be a JSON object, or empty.")
    return sent


def _image(manifest: Manifest) -> dict[str, Any]:
    return {"name": "image", "datatype": "FP32", "shape": [-1, manifest.channels, *[-1] * manifest.dimensions]}


def _outputs(manifest: Manifest) -> list[dict[str, Any]]:
    free = [-1] * manifest.dimensions
    return [
        {"name": "probability", "datatype": "FP32", "shape": [-1, manifest.outputs, *free]},
        {"name": "mask", "datatype": "UINT8", "shape": [-1, *free]},
    ]


def _state(registry: Registry, model: tables.Model, version: tables.ModelVersion) -> dict[str, str]:
    warm = registry.network(version.id) is not None
    return {
        "name": model.name,
        "version": str(version.number),
        "state": "READY" if warm else "UNAVAILABLE",
        "reason": "" if warm else "not loaded; its first request loads it",
    }


def _statistics(registry: Registry, model: tables.Model, version: tables.ModelVersion) -> dict[str, Any]:
    seen: VersionStatistics = registry.statistics.of(version.id)
    named = {
        "success": "success",
        "fail": "fail",
        "queue": "queue",
        "compute_input": "normalise",
        "compute_infer": "infer",
        "compute_output": "stitch",
    }
    return {
        "name": model.name,
        "version": str(version.number),
        "last_inference": seen.last_ms,
        "inference_count": seen.images,
        "execution_count": seen.phases["success"].count,
        "batch_stats": [],
        "inference_stats": {
            theirs: {"count": seen.phases[ours].count, "ns": seen.phases[ours].ns} for theirs, ours in named.items()
        },
    }
