"""What the OpenAPI document says about models: files, archives to import, refusals."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from app import errors
from app.errors import may_answer
from app.openapi.bodies import FILE, body, download, files, form, stored_before
from app.openapi.examples import MODEL_VERSION, shown
from app.schemas.base import Name
from app.schemas.models import ModelVersion

ModelName = Annotated[Name, Path(description="The model's name.", examples=["membranes"])]
OCTETS = "application/octet-stream"
FILES = download(
    {OCTETS: {"schema": FILE, "example": "(bytes)"}}, "The file; its ETag is its SHA-256.", "The caller has this file."
)
BUNDLE = {
    200: {"content": files("application/zip"), "description": "A MONAI bundle in a folder called `NAME-NUMBER`."},
    **may_answer(errors.NotFound, errors.Gone, errors.BlobCorrupt),
}
ARCHIVE = body(
    files("application/zip") | form(["file"], file=FILE),
    "A zip archive: `model.onnx` with `manifest.json`, or a MONAI bundle with `models/model.onnx` and"
    " `configs/metadata.json`.",
)
_UNKNOWN = dict.fromkeys(("job", "dataset", "training_s", "safetensors"))
_IMPORTED = shown(201, MODEL_VERSION | _UNKNOWN | {"source": "imported", "metrics": {}, "spec": {}})
_SAME = stored_before(
    ModelVersion, _IMPORTED, "This network was imported before under this name; this is the same version."
)
_REFUSALS = may_answer(
    errors.UnsupportedModelFormat,
    errors.ExpandsTooLarge,
    errors.BadArchive,
    errors.ChecksumMismatch,
    errors.ExternalDataRefused,
    errors.ModelRejected,
    errors.ModelSignature,
    errors.IdempotencyConflict,
    errors.IdempotencyInProgress,
    errors.StorageFull,
)
IMPORTED = _IMPORTED | _SAME | _REFUSALS
