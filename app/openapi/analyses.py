"""What the OpenAPI document says about analyses: bodies, layers, refusals."""

from __future__ import annotations

from typing import Any

from app import errors
from app.errors import may_answer
from app.imaging.formats import MEDIA_TYPES, NAMES
from app.openapi.bodies import FILE, Responses, body, example_of, files, form
from app.openapi.images import PROBLEMS
from app.schemas.topology import StoredMask, StoredPair


def _masks(stored: type[StoredMask], said: str) -> dict[str, Any]:
    """The body: what a request by name holds is what a form sends as files."""
    named = {"application/json": {"schema": {"type": "object"}, "example": example_of(stored)}}
    return body(files(*MEDIA_TYPES) | form(["image"], **dict.fromkeys(stored.model_fields, FILE)) | named, said)


ONE_MASK = _masks(StoredMask, f"One mask or probability map ({NAMES}); or JSON that names a stored image.")
MASK_OR_PAIR = _masks(
    StoredPair,
    f"One mask or probability map ({NAMES}); a form of two with a `reference`; or JSON that names stored images.",
)
ANALYSED = may_answer(*PROBLEMS, errors.MaskMismatch, errors.NotFound, errors.Busy, errors.Gone, errors.BlobCorrupt)
GRAPHML = "application/graphml+xml"
LAYER: Responses = {
    200: {
        "description": "A mask of the same shape: PNG, for a volume NIfTI.",
        "content": files("image/png", "application/gzip"),
    },
    **ANALYSED,
}
SKELETON: Responses = {
    200: {
        "description": "The skeleton as a mask of the same shape, or its graph as JSON or GraphML, as `Accept` says.",
        "content": files("image/png", "application/gzip", GRAPHML)
        | {"application/json": {"schema": {"$ref": "#/components/schemas/SkeletonGraph"}}},
    },
    **ANALYSED,
    **may_answer(errors.NotAcceptable),
}
