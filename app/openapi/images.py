"""What the OpenAPI document says about images: bodies, answers, refusals."""

from __future__ import annotations

from app import errors
from app.errors import may_answer
from app.imaging.formats import MEDIA_TYPES, NAMES
from app.openapi.bodies import FILE, TEXT, Responses, body, download, files, form
from app.schemas.images import Image

PROBLEMS = (
    errors.UnsupportedImage,
    errors.UnsupportedTransferSyntax,
    errors.BadArchive,
    errors.BadSeries,
    errors.NoPixelData,
    errors.IdentifyingPixels,
    errors.TooManyPixels,
    errors.ExpandsTooLarge,
    errors.CorruptImage,
    errors.EmptyImage,
    errors.UnsupportedDepth,
    errors.UnsupportedDtype,
    errors.UnsupportedColor,
    errors.NonFinite,
    errors.ManyFrames,
    errors.ChecksumMismatch,
    errors.BadAffine,
    errors.IdempotencyConflict,
    errors.IdempotencyInProgress,
    errors.StorageFull,
)
"""What an upload of an image may be answered, besides what every body may."""
UPLOADED: Responses = {
    200: {"model": Image, "description": "These bytes were stored before; this is the same image."},
    **may_answer(*PROBLEMS),
}
BODY = body(
    files(*MEDIA_TYPES) | form(["file"], file=FILE, name=TEXT),
    f"One image: {NAMES}. Its bytes decide which; a Content-Type that says otherwise is answered with"
    " the header `Toposerve-Warning`.",
)
CONTENT = download(
    files(*MEDIA_TYPES),
    "The bytes as they were uploaded.",
    "The caller has these bytes.",
)
PREVIEW: Responses = {
    200: {"content": files("image/png"), "description": "The plane as a browser shows it."},
    304: {"description": "The caller has this preview."},
    **may_answer(errors.NotFound, errors.Gone, errors.BlobCorrupt),
}
