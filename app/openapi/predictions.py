"""Predictions in the OpenAPI document: forms of an answer, headers, files, refusals."""

from __future__ import annotations

from typing import Any

from app import errors
from app.errors import may_answer
from app.openapi import examples, images
from app.openapi.bodies import Responses, body, download, files, header
from app.schemas.job_status import Job
from app.schemas.jobs import PredictSpec
from app.schemas.predictions import PREDICTION, Prediction
from app.serving.answers import MIXED, NIFTI_GZ, NRRD, PNG, TIFF
from app.serving.segmentation_objects import DICOM

JSON = "application/json"
_HERE = f"/v1/jobs/{examples.ID}"
_JOB: dict[str, Any] = examples.JOB | {
    "kind": "predict",
    "state": "queued",
    "started_at": None,
    "attempt": 0,
    "progress": {
        "phase": None,
        "fraction": 0.0,
        "step": None,
        "steps": None,
        "epoch": None,
        "seconds_per_step": None,
        "eta_s": 4.2,
        "queue_position": 1,
    },
    "spec": PredictSpec(kind="predict", model="vessels:3", images=[examples.ID]).model_dump(mode="json"),
    "links": {
        "self": _HERE,
        "events": f"{_HERE}/events",
        "log": f"{_HERE}/log",
        "predictions": f"/v1/predictions?job={examples.ID}",
        "table": f"{_HERE}/results.csv",
        "masks": f"{_HERE}/results.zip",
        "model": "/v1/models/vessels/versions/3",
    },
}
_ANSWERS: Responses = {
    200: {
        "model": Prediction,
        "description": (
            "The mask as PNG (0 and 255, or class positions where there are more than two), the float32 probability as"
            " TIFF, the mask as NIfTI on the grid of the NIfTI that was sent, or everything about it as JSON,"
            " or as multipart/mixed the part `report`, that JSON, and a part with the mask. Of a DICOM image also"
            " a DICOM segmentation that refers to it (application/dicom). `artifact` chooses another picture."
        ),
        "content": files(PNG, TIFF, NIFTI_GZ, NRRD, MIXED, DICOM) | {JSON: {"example": PREDICTION}},
        "headers": {
            "Toposerve-Variant": header("The smaller form that answered, where one was asked for."),
            "Toposerve-Model": header("The version that answered: `vessels:3`."),
            "Toposerve-Conversion": header("`luminance`: colours were read as grey; `grey_to_rgb`: the other way."),
            "Toposerve-Topology": header(
                "JSON: Betti numbers and Euler characteristic by class, when there is a report."
            ),
            "Toposerve-Expectation": header(
                "Whether the topology is as `expect` says.", enum=["satisfied", "violated"]
            ),
            "Toposerve-Edits": header("Edits that `repair=true` made.", type="integer"),
            "Server-Timing": header("Milliseconds: decode, normalise, infer, stitch, repair, topology, encode."),
        },
    },
    201: {"model": Prediction, "description": "The same, and it was stored; Location names it."},
    202: {
        "model": Job,
        "description": (
            "`Prefer: respond-async`: the image was stored and will be predicted by the job that Location names."
        ),
        "content": {JSON: {"example": _JOB}},
    },
}
PREDICTING = (
    errors.ModelNonFinite,
    errors.ModelResources,
    errors.PredictionTimeout,
    errors.ModelSignature,
    errors.ExpectationViolated,
    errors.RepairFailed,
    errors.Busy,
    errors.Gone,
    errors.BlobCorrupt,
)
"""What may go wrong once an image is read, whatever protocol brought it."""
PREDICTED = _ANSWERS | may_answer(
    *images.PROBLEMS, errors.NotFound, errors.NotAcceptable, errors.WrongInput, errors.ImageTooSmall, *PREDICTING
)
LISTED = examples.listed(PREDICTION) | may_answer(errors.InvalidCursor, errors.NotFound)
FILES = download(files(PNG, TIFF, NIFTI_GZ, DICOM, JSON, "application/graphml+xml"), "The file.", "The caller has it.")
_NAMED = {"schema": {"$ref": "#/components/schemas/ReferenceImage"}, "example": {"image": PREDICTION["image"]}}
REFERENCE_BODY = body(
    images.BODY["requestBody"]["content"] | {JSON: _NAMED}, "A mask, or the id of an image that is one."
)
REFERENCE = may_answer(
    *images.PROBLEMS, errors.NotFound, errors.MaskMismatch, errors.UnknownLabel, errors.Gone, errors.BlobCorrupt
)
