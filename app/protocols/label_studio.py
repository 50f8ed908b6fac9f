"""Label Studio's machine learning backend: masks as brush labels under `/label-studio/MODEL`.

Label Studio is given `URL/label-studio/MODEL` and, with Basic authentication, any user name and a key as password. A
task's image comes along as a data URI, or is an image of this service, named by its id or its address. What cannot be
predicted is told in its own result, so one bad task does not spoil the others. Corrections are not learnt from here.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import partial
from typing import Annotated, Any
from uuid import UUID
from xml.etree import ElementTree as ET

import numpy as np
from fastapi import Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import Invalid, InvalidRequest, NotFound, Problem
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.endpoints import noun_router
from app.http.resources import ServicesDep
from app.protocols.loose_json import body_of, checked
from app.roles import Principal
from app.schemas.base import ModelRef
from app.services import Services
from app.serving import prediction
from app.serving.pipeline import Predictor, Segmentation, Stop
from app.serving.prediction import Question
from app.store import images

router = noun_router("Label Studio", prefix="/label-studio", include_in_schema=False)
ROUTERS = (router,)

Ref = Annotated[ModelRef, Path(description="`name` or `name@alias`.")]
MOST_TASKS = 64
OURS = re.compile(r"(?:^|/v1/images/)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:/content)?$")
LENGTHS = (3, 4, 8, 16)
"""Bits in which the length of a run may be written."""
WORD = 8
"""Bits of a value."""


class Tasks(BaseModel):
    """What Label Studio asks about; what it sends besides is passed over."""

    tasks: Annotated[list[dict[str, Any]], Field(max_length=MOST_TASKS)]
    label_config: Annotated[str, Field(max_length=65536)]


@router.get("/{ref}/health", dependencies=[require("predict")])
def health(ref: Ref, caller: Caller, services: ServicesDep) -> dict[str, str]:
    """The model can be asked."""
    services.names.resolve(caller.project_id, ref)
    return {"status": "UP", "model_class": "toposerve"}


@router.post("/{ref}/{name}", dependencies=[require("predict")])
async def act(ref: Ref, name: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """`setup`, `predict` and `webhook`."""
    sent = await body_of(request)
    if name == "webhook":
        return JSONResponse({}, 201)  # nothing is learnt from single corrections
    if name not in ("setup", "predict"):
        raise NotFound(f"Label Studio does not ask {name[:32]!r}.")
    given = checked(Tasks, {"label_config": "", "tasks": []} | sent) if name == "predict" else None
    return await while_connected(request, services, partial(_answered, services, caller, ref, given))


def _answered(services: Services, caller: Principal, ref: str, given: Tasks | None, stop: Stop) -> Response:
    model, version = services.names.resolve(caller.project_id, ref)
    said = f"{model.name}:{version.number}"
    if given is None:
        return JSONResponse({"model_version": said})
    brush = Brush(given.label_config)
    predictor = services.registry.get(caller.project_id, version)
    results = []
    for task in given.tasks:
        try:
            results.append(_predicted(services, caller, predictor, brush, task, stop) | {"model_version": said})
        except Problem as problem:
            if problem.status >= 500:
                raise
            results.append({"model_version": said, "score": 0.0, "result": [], "error": problem.detail})
    return JSONResponse({"results": results})


class Brush:
    """The brush labels of a labelling interface.

    name, to     of the control and of the image that it draws on
    key          in the data of a task
    labels       what may be drawn
    """

    def __init__(self, config: str):
        if "<!" in config:
            raise InvalidRequest("The labelling interface has a document type or a comment; leave it out.")
        try:
            root = ET.fromstring(config)
        except ET.ParseError as error:
            raise InvalidRequest(f"The labelling interface is not valid XML: {error}.") from None
        control = root.find(".//BrushLabels")
        if control is None:
            raise InvalidRequest("The labelling interface has no BrushLabels. Add them, with the classes of the model.")
        self.name, self.to = control.get("name", "tag"), control.get("toName", "image")
        shown = next((each for each in root.iter("Image") if each.get("name") == self.to), None)
        self.key = (shown.get("value", "$image") if shown is not None else "$image").lstrip("$")
        self.labels = [each.get("value", "") for each in control.iter("Label")]

    def of(self, class_name: str, classes: int) -> str | None:
        """The label of a class: of the same name, or the only one there is."""
        if class_name in self.labels:
            return class_name
        return self.labels[0] if len(self.labels) == 1 and classes == 2 else None


def _predicted(
    services: Services, caller: Principal, predictor: Predictor, brush: Brush, task: dict[str, Any], stop: Stop
) -> dict[str, Any]:
    data = task.get("data")
    address = data.get(brush.key) if isinstance(data, dict) else None
    if not isinstance(address, str):
        raise Invalid(f"The task has no image under {brush.key!r}.")
    picture = services.decoders.decode(_bytes(services, caller, address))
    answer = prediction.ask(predictor, picture, Question(probability=True, topology=True), stop=stop)
    found = answer.segmentation
    drawn = []
    for position, class_name in enumerate(found.classes):
        label, mask = brush.of(class_name, len(found.classes)), found.labels == position
        if position and label is not None and mask.any():
            drawn.append(_region(brush, label, mask) | {"score": _certainty(found, position)})
    counts = {name: {key: facts[key] for key in ("beta0", "beta1")} for name, facts in (answer.report or {}).items()}
    score = min((region["score"] for region in drawn), default=0.0)
    return {"score": score, "result": drawn, "topology": counts}


def _bytes(services: Services, caller: Principal, address: str) -> bytes:
    """The image that a task names; NotFound, and Invalid for an address that is none of ours."""
    if address.startswith("data:"):
        head, _, packed = address.partition(",")
        try:
            return base64.b64decode(packed, validate=True) if head.endswith(";base64") else b""
        except binascii.Error:
            raise Invalid("The data URI of the task is not valid base64.") from None
    named = OURS.search(address.partition("?")[0])
    if named is None:
        raise Invalid(
            "The image of a task is a data URI, or an image of this service: its id, or URL/v1/images/ID/content. Other"
            " addresses are not fetched."
        )
    with services.database.read() as session:
        row = images.get(session, caller.project_id, UUID(named[1]))
    return services.blobs.read(caller.project_id, row.sha256)


def _region(brush: Brush, label: str, mask: np.ndarray) -> dict[str, Any]:
    if mask.ndim != 2:
        raise Invalid("Label Studio draws on images; this is a volume.")
    rows, columns = mask.shape
    return {
        "from_name": brush.name,
        "to_name": brush.to,
        "type": "brushlabels",
        "original_width": columns,
        "original_height": rows,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": run_lengths(mask), "brushlabels": [label]},
    }


def _certainty(found: Segmentation, position: int) -> float:
    """The mean probability of the class where it is drawn."""
    assert found.probability is not None
    values = found.probability[0] if len(found.probability) == 1 else found.probability[position]
    return float(values[found.labels == position].mean())


def run_lengths(mask: np.ndarray) -> list[int]:
    """Bytes of a mask (rows, columns) bool as Label Studio packs the RGBA pixels of a brush, 0 or 255 in each channel.

    32 bits the number of values, 5 the bits of a value less 1, four times 4 the bits of a length less 1; then runs: a
    1, two bits which of the four, the length less 1, the value.
    Source: the format that `decode_rle` of label-studio-sdk reads (thi.ng rle-pack).
    """
    flat = np.repeat(mask.reshape(-1), 4)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat))
    lengths, values = np.diff(ends, prepend=0), flat[ends - 1]
    most = 1 << LENGTHS[-1]
    pieces = -(-lengths // most)  # long runs are cut
    values = np.repeat(values, pieces)
    whole = np.full(len(values), most, np.int64)
    whole[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * most
    kinds = np.searchsorted(1 << np.array(LENGTHS), whole)
    sizes = np.array(LENGTHS)[kinds]
    code = (((4 + kinds) << sizes | (whole - 1)) << WORD) | np.where(values, 255, 0)
    bits = [_bits(np.array([len(flat)]), np.array([32])), _bits(np.array([WORD - 1]), np.array([5]))]
    bits += [_bits(np.array([size - 1]), np.array([4])) for size in LENGTHS]
    bits.append(_bits(code, 3 + sizes + WORD))
    return np.packbits(np.concatenate(bits)).tolist()


def _bits(numbers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The bits of numbers, each in its own width, the highest first; uint8."""
    place = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
    shift = np.repeat(widths, widths) - 1 - place
    return ((np.repeat(numbers.astype(np.int64), widths) >> shift) & 1).astype(np.uint8)
