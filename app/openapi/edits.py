"""What the OpenAPI document says about edits by hand: bodies, forms of an answer, refusals."""

from __future__ import annotations

from app import errors
from app.errors import may_answer
from app.imaging.formats import MEDIA_TYPES, NAMES
from app.openapi import examples
from app.openapi.bodies import FILE, Responses, body, example_of, files, form
from app.openapi.images import PROBLEMS
from app.openapi.predictions import JSON
from app.schemas.edits import EDIT, AnalysedEdit, StoredMap
from app.serving.answers import NIFTI_GZ, PNG

_STORED = (errors.NotFound, errors.Gone, errors.BlobCorrupt)
_MASK = "The mask with all edits: PNG (0 and 255, or class positions), of a volume NIfTI."
_MADE: Responses = {201: {"content": {JSON: {"example": EDIT}}}}
_SHOWN: Responses = {200: {"description": _MASK, "content": files(PNG, NIFTI_GZ)}}
_ANALYSED: Responses = {
    200: {
        "model": AnalysedEdit,
        "description": "The edit as JSON; by `Accept` the mask after it: PNG, of a volume NIfTI.",
        "content": files(PNG, NIFTI_GZ),
    }
}
MADE = _MADE | may_answer(
    *_STORED,
    errors.Conflict,
    errors.NothingToEdit,
    errors.IdempotencyConflict,
    errors.IdempotencyInProgress,
    errors.Busy,
)
LISTED = examples.listed(EDIT) | may_answer(errors.InvalidCursor, errors.NotFound)
MASK = _SHOWN | may_answer(*_STORED)
FILES = ("image", "mask")
BODY = body(
    files(*MEDIA_TYPES)
    | form(["image"], **dict.fromkeys(FILES, FILE))
    | {JSON: {"schema": {"$ref": "#/components/schemas/StoredMap"}, "example": example_of(StoredMap)}},
    f"One probability map or mask ({NAMES}); a form of two with the `mask` as it is now; or JSON that"
    " names stored images.",
)
ANALYSED = _ANALYSED | may_answer(
    *PROBLEMS, *_STORED, errors.NotAcceptable, errors.MaskMismatch, errors.NothingToEdit, errors.Busy
)
