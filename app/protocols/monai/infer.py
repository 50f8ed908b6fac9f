"""Inference for MONAI Label's clients: mask and parameters in one form, or either."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal
from uuid import uuid4

import numpy as np
from fastapi import Query, Request, Response
from pydantic import BaseModel, Field

from app import imaging
from app.errors import InvalidRequest, NotAcceptable
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.downloads import disposition
from app.http.limits import body_up_to
from app.http.resources import ServicesDep
from app.http.uploads import FormSent, received_form
from app.imaging.header import opened
from app.imaging.picture import Source
from app.imaging.spacing import sized
from app.protocols.loose_json import checked, params_of
from app.protocols.monai.wire import image_of, new_router
from app.roles import Principal
from app.schemas.base import ModelRef
from app.services import Services
from app.serving import expectations, prediction
from app.serving.contract import Manifest
from app.serving.pipeline import Stop, Stopwatch
from app.serving.prediction import Answer, Question, expected_of
from app.store import labels

router = new_router()

EXTENSIONS = (".nii.gz", ".nrrd", ".seg.nrrd", ".nii", ".png")
"""Files that a mask is answered in, the usual one first; the ending of its name tells the viewer."""
MOST_COMPONENTS = 100
"""Components of each class in an answer, the largest ones."""


class InferParams(BaseModel):
    """What a viewer may set; what it sends besides, such as its own id, is passed over."""

    threshold: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    topology: bool = True
    expect: Annotated[str, Field(max_length=2048)] = ""
    strict: bool = False
    repair: bool = False
    margins: bool = False
    result_extension: Literal[".nii.gz", ".nrrd", ".seg.nrrd", ".nii", ".png"] | None = None
    result_dtype: Literal["uint8", "uint16", "int16", "int32", "float32"] = "uint8"
    result_compress: bool = True


@dataclass(frozen=True)
class Asked:
    """One call, once its form is here."""

    services: Services
    caller: Principal
    model: str
    image: str
    session_id: str
    output: str
    form: FormSent


@router.post(
    "/infer/{model}",
    dependencies=[require("predict", "images:read"), body_up_to("max_upload_bytes")],
    response_class=Response,
)
async def infer(
    model: ModelRef,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    image: Annotated[str, Query(max_length=255)] = "",
    session_id: Annotated[str, Query(max_length=64)] = "",
    output: Annotated[str | None, Query(max_length=16)] = None,
) -> Response:
    """Segment the file that comes along, the image of a session, or a stored image."""
    if output not in (None, "", "all", "json", "image", "dicom_seg"):
        raise InvalidRequest(f"output is {output!r}; it can be all, json, image or dicom_seg.")
    async with received_form(request, services, files=("file", "label"), fields=("params",)) as form:
        asked = Asked(services, caller, model, image, session_id, output or "all", form)
        return await while_connected(request, services, partial(_infer, asked))


def _infer(asked: Asked, stop: Stop) -> Response:
    services, project_id = asked.services, asked.caller.project_id
    given = checked(InferParams, params_of(asked.form.fields.get("params")))
    if "label" in asked.form.files:
        raise InvalidRequest("This model takes no scribbles. Send the image alone, or draw over /nninteractive.")
    model, version = services.names.resolve(project_id, asked.model)
    predictor = services.registry.get(project_id, version)
    name, source, spacing_mm = _source(asked)
    with services.registry.statistics.request(version.id, stop.waited_ms) as counted:
        phases = Stopwatch()
        with phases("decode"):
            picture = sized(services.decoders.decode(source), spacing_mm)
        question = Question(
            threshold=given.threshold if predictor.manifest.activation == "sigmoid" else None,
            topology=given.topology,
            margins=given.margins,
            expected=expected_of(given.expect or None, predictor.manifest),
            strict=given.strict and bool(given.expect),
            repair=given.repair,
            by_plane=True,
        )
        answer = prediction.ask(predictor, picture, question, stop=stop, phases=phases)
        del picture
        if asked.output == "dicom_seg" and not answer.picture.format.startswith("dicom"):
            raise NotAcceptable(
                "The image is not DICOM, so no DICOM segmentation can refer to it. Ask for output=image, with"
                " result_extension .seg.nrrd or .nii.gz."
            )
        extension = _extension(given, answer)
        with phases("encode"):
            ref = f"{model.name}:{version.number}"
            if asked.output == "dicom_seg":
                mask = _as_dicom(answer, source, ref, predictor.manifest, given)
            else:
                mask = b"" if asked.output == "json" else _encoded(answer, extension, given)
        counted.timings_ms = answer.timings_ms
    told = _params(ref, answer)
    # Not the name of the image: the client saves the mask in a folder of temporary files, where the image may be, too.
    return _response(asked.output, f"mask-{uuid4().hex[:8]}-{labels.stem(name)}{extension}", mask, told)


def _source(asked: Asked) -> tuple[str, Source, list[float] | None]:
    """Name, bytes and stated pixel size of the image: of the file, else of the session, else of the store."""
    services, project_id, spacing_mm = asked.services, asked.caller.project_id, None
    if upload := asked.form.files.get("file"):
        return upload.name or "image", upload.file, None
    if asked.session_id:
        with services.database.write() as session:
            kept = labels.require_session(session, project_id, asked.session_id)
            labels.touch(kept)
            name, sha256 = kept.name, kept.sha256
    elif asked.image:
        row = image_of(services, project_id, asked.image)
        name, sha256, spacing_mm = row.name, row.sha256, row.spacing_mm
    else:
        raise InvalidRequest("Name an image (image=...), a session (session_id=...), or send a file along.")
    return name, services.blobs.read(project_id, sha256), spacing_mm


def _as_dicom(answer: Answer, source: Source, ref: str, manifest: Manifest, given: InferParams) -> bytes:
    """The mask as a segmentation object of the DICOM image in `source`."""
    from app.serving import segmentation_objects

    decides = given.model_dump(include={"threshold", "expect", "repair"}, exclude_none=True)
    by = segmentation_objects.author(ref, manifest, decides)
    with opened(source) as stream:
        stream.seek(0)
        return segmentation_objects.artifact("mask", answer.segmentation, stream, by, "binary").content


def _extension(given: InferParams, answer: Answer) -> str:
    if given.result_extension == ".png" and answer.picture.is_volume:
        raise NotAcceptable("A volume cannot be answered as PNG. Ask for .nii.gz, .nii, .nrrd or .seg.nrrd.")
    return given.result_extension or EXTENSIONS[0]


def _encoded(answer: Answer, extension: str, given: InferParams) -> bytes:
    segmentation, picture = answer.segmentation, answer.picture
    mask = segmentation.labels.astype(np.dtype(given.result_dtype), copy=False)
    if extension == ".png":
        return imaging.encode_png(segmentation.labels)
    if extension.endswith(".nrrd"):
        segments = segmentation.classes[1:] if extension == ".seg.nrrd" else ()
        return imaging.encode_nrrd(mask, picture.affine, segments=segments, compressed=given.result_compress)
    packed = imaging.encode_nifti_gz(mask, picture.affine, forms=picture.forms)
    if extension == ".nii.gz":
        return packed
    import gzip

    return gzip.decompress(packed)


def _params(ref: str, answer: Answer) -> dict[str, Any]:
    """The JSON beside a mask: what its numbers mean, its topology, and how long everything took."""
    spent = answer.timings_ms
    named = {"pre": ("decode", "normalise"), "infer": ("infer",), "post": ("stitch", "repair", "topology")}
    latencies = {name: round(sum(spent.get(each, 0.0) for each in of) / 1000, 3) for name, of in named.items()}
    told: dict[str, Any] = {
        "model": ref,
        "label_names": {name: position for position, name in enumerate(answer.segmentation.classes) if position},
        "latencies": latencies | {"write": round(spent.get("encode", 0.0) / 1000, 3)},
    }
    if answer.report is None:
        return told
    topology = {
        name: facts | {"components": facts["components"][:MOST_COMPONENTS]} for name, facts in answer.report.items()
    }
    told["topology"] = topology
    if violations := expectations.listed(answer.report):
        told["violations"] = violations
    return told


def _response(output: str, name: str, mask: bytes, told: dict[str, Any]) -> Response:
    if output == "json":
        return Response(json.dumps(told), media_type="application/json")
    if output == "dicom_seg":
        return Response(mask, media_type="application/dicom", headers={"Content-Disposition": disposition("mask.dcm")})
    if output == "image":
        return Response(mask, media_type="application/octet-stream", headers={"Content-Disposition": disposition(name)})
    boundary = f"toposerve-{uuid4().hex}"
    plain = name.encode("ascii", "replace").decode().replace('"', "_").replace("?", "_").replace("/", "_")
    parts = (
        ('form-data; name="params"', "application/json", json.dumps(told).encode()),
        (f'form-data; name="image"; filename="{plain}"', "application/octet-stream", mask),
    )
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: {head}\r\nContent-Type: {media}\r\n\r\n".encode() + content + b"\r\n"
        for head, media, content in parts
    )
    return Response(body + f"--{boundary}--\r\n".encode(), media_type=f"multipart/form-data; boundary={boundary}")
