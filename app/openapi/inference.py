"""The Open Inference Protocol in the OpenAPI document: bodies, example answers, refusals."""

from __future__ import annotations

from typing import Any

from app import errors
from app.errors import may_answer
from app.openapi.bodies import body, files
from app.openapi.predictions import PREDICTING
from app.version import VERSION

IMAGE = {"name": "image", "datatype": "FP32", "shape": [-1, 1, -1, -1]}
MASK = {"name": "mask", "datatype": "UINT8", "shape": [-1, -1, -1]}
MODEL = {
    "name": "vessels",
    "versions": ["1", "2", "3"],
    "platform": "onnx_onnxv1",
    "inputs": [IMAGE],
    "outputs": [MASK],
}
CONFIG = {
    "name": "vessels",
    "platform": "onnxruntime_onnx",
    "backend": "onnxruntime",
    "max_batch_size": 0,
    "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": [-1, 1, -1, -1]}],
    "output": [{"name": "mask", "data_type": "TYPE_UINT8", "dims": [-1, -1, -1]}],
    "version_policy": {"specific": {"versions": [3]}},
}
SERVER = {"name": "toposerve", "version": VERSION, "extensions": ["binary_tensor_data", "model_repository"]}
STATE = {"name": "vessels", "version": "3", "state": "READY", "reason": ""}
STATISTICS: dict[str, Any] = {
    "model_stats": [
        {
            "name": "vessels",
            "version": "3",
            "last_inference": 1772357400000,
            "inference_count": 12,
            "execution_count": 12,
            "batch_stats": [],
            "inference_stats": {"success": {"count": 12, "ns": 960_000_000}, "fail": {"count": 0, "ns": 0}},
        }
    ]
}
NUMBER = {
    "name": "number",
    "in": "path",
    "required": True,
    "description": "Version number.",
    "schema": {"type": "integer", "minimum": 1},
    "example": 3,
}
INFERRED = may_answer(
    errors.NotFound,
    errors.WrongInput,
    errors.ImageTooSmall,
    errors.NonFinite,
    errors.TooManyPixels,
    errors.ExpandsTooLarge,
    *PREDICTING,
)
_REQUEST = {
    "inputs": [{"name": "image", "shape": [1, 1, 2, 2], "datatype": "UINT8", "data": [0, 10, 20, 30]}],
    "outputs": [{"name": "mask"}],
}
INFER_BODY = body(
    {"application/json": {"schema": {"type": "object"}, "example": _REQUEST}} | files("application/octet-stream")
)
