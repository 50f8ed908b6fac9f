"""One class for each thing a caller may be told, and the one handler that tells it.

Every class carries a stable `code`, an HTTP status and a title; its docstring is the sentence used when
nobody wrote a better one. The body is RFC 9457 `application/problem+json`; under `/v2` the same facts carry an
extra `error` member and under `/monai` the sentence stands alone as `detail`, because those clients read only that.
Input values, paths, SQL and stacks never leave the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

TYPE_BASE = "https://toposerve.dev/problems/"


class Problem(Exception):
    """Something went wrong on our side; the log has the details under this request id."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[dict[str, str]] = (),
        retry_after_s: int | None = None,
        members: dict[str, Any] | None = None,
    ):
        self.detail = detail or " ".join((type(self).__doc__ or self.title).split())
        self.errors = list(errors)
        self.retry_after_s = retry_after_s
        self.members = members or {}
        super().__init__(self.detail)

    def body(self, *, instance: str | None = None, request_id: str | None = None) -> dict[str, Any]:
        """The RFC 9457 members; `errors` lists one {pointer, detail} per wrong field.

        Some problems have members of their own.
        """
        members: dict[str, Any] = {
            **self.members,
            "type": TYPE_BASE + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "errors": self.errors,
        }
        if instance:
            members["instance"] = instance
        if request_id:
            members["request_id"] = request_id
        return members

    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer: Retry-After, WWW-Authenticate."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="toposerve"'
        return headers


def _problem(name: str, status: int, code: str, title: str, doc: str) -> type[Problem]:
    """Classes that differ in facts only are made here, so that the list below reads as a table."""
    return type(
        name, (Problem,), {"status": status, "code": code, "title": title, "__doc__": doc, "__module__": __name__}
    )


# Syntax: the request could not be read at all.
InvalidRequest = _problem(
    "InvalidRequest", 400, "invalid_request", "Request cannot be read", "The request is not well-formed."
)
InvalidJson = _problem(
    "InvalidJson",
    400,
    "invalid_json",
    "Not JSON",
    "The body is not strict JSON (no NaN, no Infinity, no repeated keys).",
)
InvalidCursor = _problem(
    "InvalidCursor",
    400,
    "invalid_cursor",
    "Cursor not known",
    "This cursor was not issued by this list. Start again without `cursor`.",
)
IncompleteBody = _problem(
    "IncompleteBody",
    400,
    "incomplete_body",
    "Body ended early",
    "The body ended before it was complete. Send it again.",
)

# Who is asking.
Unauthenticated = _problem(
    "Unauthenticated",
    401,
    "unauthenticated",
    "Key missing or not valid",
    "Send a valid API key as `Authorization: Bearer ts_...`. `toposerve keys create` makes one.",
)
Forbidden = _problem(
    "Forbidden",
    403,
    "forbidden",
    "Not allowed",
    "This key may not do that. Ask an administrator for the scope that is named.",
)
CrossSite = _problem(
    "CrossSite",
    403,
    "csrf",
    "Form is not ours",
    "The form's token is missing or old. Reload the page and send it again.",
)

# What is asked for.
NotFound = _problem(
    "NotFound", 404, "not_found", "Not found", "There is nothing here, or it belongs to another project."
)
MethodNotAllowed = _problem(
    "MethodNotAllowed",
    405,
    "method_not_allowed",
    "Method not allowed",
    "This address does not answer that method; see the Allow header.",
)
NotAcceptable = _problem(
    "NotAcceptable",
    406,
    "not_acceptable",
    "Cannot answer in that form",
    "None of the accepted media types can be produced here.",
)
Gone = _problem(
    "Gone",
    410,
    "blob_missing",
    "Bytes are gone",
    "The record exists but its bytes are no longer stored. Upload them again.",
)
Conflict = _problem(
    "Conflict", 409, "conflict", "Conflict with the present state", "The present state does not allow this."
)
IdempotencyConflict = _problem(
    "IdempotencyConflict",
    422,
    "idempotency_key_reused",
    "Idempotency-Key used twice",
    "This Idempotency-Key was used for another request. Use a new key for a new request.",
)
IdempotencyInProgress = _problem(
    "IdempotencyInProgress",
    409,
    "idempotency_in_progress",
    "First request still running",
    "The first request with this Idempotency-Key has not been answered yet. Wait, then ask again.",
)
PreconditionFailed = _problem(
    "PreconditionFailed",
    412,
    "precondition_failed",
    "Changed meanwhile",
    "The record changed since you read it. Read it again.",
)

# Too much.
TooLarge = _problem("TooLarge", 413, "too_large", "Too large", "The body is larger than this address accepts.")
TooManyPixels = _problem(
    "TooManyPixels", 413, "too_many_pixels", "Image too large", "The image declares more pixels than are accepted."
)
ExpandsTooLarge = _problem(
    "ExpandsTooLarge",
    413,
    "expands_too_large",
    "Expands too far",
    "The compressed data declares more bytes than are accepted.",
)
QuotaReached = _problem("QuotaReached", 429, "quota_exceeded", "Quota reached", "This project has reached its quota.")
UriTooLong = _problem("UriTooLong", 414, "uri_too_long", "Address too long", "The address is longer than is accepted.")
HeadersTooLarge = _problem(
    "HeadersTooLarge", 431, "headers_too_large", "Headers too large", "The request headers are larger than is accepted."
)
SlowRequest = _problem("SlowRequest", 408, "slow_request", "Too slow", "The body did not arrive in time.")

# Kind of content.
UnsupportedMediaType = _problem(
    "UnsupportedMediaType",
    415,
    "unsupported_media_type",
    "Media type not accepted",
    "This address does not accept that content type.",
)
UnsupportedImage = _problem(
    "UnsupportedImage",
    415,
    "unsupported_image",
    "Not an accepted image",
    "The bytes are none of PNG, JPEG, TIFF or NIfTI. Send one of these.",
)
UnsupportedArchive = _problem(
    "UnsupportedArchive", 415, "unsupported_archive", "Not a zip archive", "A dataset is uploaded as a zip archive."
)

UnsupportedModelFormat = _problem(
    "UnsupportedModelFormat",
    415,
    "unsupported_model_format",
    "Not an accepted model",
    "A model is imported as a zip archive with model.onnx and manifest.json, or as a MONAI bundle with"
    " models/model.onnx. Nothing else is opened, and nothing is ever unpickled.",
)

RangeNotSatisfiable = _problem(
    "RangeNotSatisfiable",
    416,
    "range_not_satisfiable",
    "Range outside the bytes",
    "Ask for one range inside the bytes, such as `bytes=0-1023`.",
)

# Right kind, wrong content.
Invalid = _problem("Invalid", 422, "invalid", "Fields are not valid", "Some fields are not valid; `errors` names each.")
CorruptImage = _problem(
    "CorruptImage", 422, "corrupt_image", "Image is damaged", "The image cannot be decoded: it is damaged or cut short."
)
EmptyImage = _problem("EmptyImage", 422, "empty_image", "Image has no pixels", "The image has a side of length zero.")
ImageTooSmall = _problem(
    "ImageTooSmall", 422, "image_too_small", "Image too small", "The image is smaller than this model accepts."
)
UnsupportedDepth = _problem(
    "UnsupportedDepth",
    422,
    "unsupported_depth",
    "Pixel depth not accepted",
    "This pixel depth cannot be read without loss.",
)
UnsupportedDtype = _problem(
    "UnsupportedDtype", 422, "unsupported_dtype", "Pixel type not accepted", "This pixel type is not accepted."
)
UnsupportedColor = _problem(
    "UnsupportedColor",
    422,
    "unsupported_color",
    "Colour model not accepted",
    "This colour model is not accepted. Convert to grey or RGB.",
)
NonFinite = _problem(
    "NonFinite", 422, "non_finite", "Image holds NaN or infinity", "Every pixel must be a finite number."
)
ManyFrames = _problem(
    "ManyFrames",
    422,
    "multiple_frames",
    "More than one frame",
    "The file holds more than one frame; send one image per file.",
)
ChecksumMismatch = _problem(
    "ChecksumMismatch", 422, "checksum_mismatch", "Checksum does not match", "The data does not match its own checksum."
)
BadAffine = _problem(
    "BadAffine", 422, "bad_affine", "Orientation is not valid", "The image's affine matrix is singular or not finite."
)
MaskMismatch = _problem(
    "MaskMismatch", 422, "mask_mismatch", "Mask does not fit its image", "Mask and image must have the same shape."
)
UnknownLabel = _problem(
    "UnknownLabel",
    422,
    "unknown_label",
    "Label value not in the label map",
    "The mask holds a value that the label map does not name.",
)
BadArchive = _problem(
    "BadArchive", 422, "bad_archive_entry", "Archive entry refused", "The archive holds an entry that is not accepted."
)
BadDataset = _problem(
    "BadDataset", 422, "bad_dataset", "Dataset cannot be used", "The dataset cannot be used as it is."
)
WrongInput = _problem(
    "WrongInput",
    422,
    "model_input",
    "Image does not fit the model",
    "The image does not fit what the model was trained on.",
)
ModelSignature = _problem(
    "ModelSignature",
    422,
    "model_signature",
    "Network is not what its manifest says",
    "The network's inputs or outputs do not fit its manifest. Export it again.",
)
ExternalDataRefused = _problem(
    "ExternalDataRefused",
    422,
    "external_data_refused",
    "Network points outside itself",
    "The network keeps weights in another file. Save it as one file: `onnx.save(model, path,"
    " save_as_external_data=False)`.",
)
ModelRejected = _problem(
    "ModelRejected",
    422,
    "model_rejected",
    "Network refused",
    "The network holds something that is not run here, or it did not pass its trial.",
)
ExpectationViolated = _problem(
    "ExpectationViolated",
    422,
    "expectation_violated",
    "Topology is not as expected",
    "The topology of the mask is not what `expect` says; `violations` has every number and where. Nothing was stored.",
)
RepairFailed = _problem(
    "RepairFailed",
    422,
    "repair_failed",
    "Mask cannot be repaired",
    "No edit of the mask leads to the topology that is asked for. Nothing was stored.",
)
ModelNonFinite = _problem(
    "ModelNonFinite", 422, "model_non_finite", "Model answered NaN", "The model's answer for this image is not finite."
)

# Not now.
Unavailable = _problem(
    "Unavailable", 503, "unavailable", "Not available now", "A part of the service is not available. Try again shortly."
)
Busy = _problem(
    "Busy", 503, "busy", "Too much waiting", "The queue of this model is full. Try again after the time in Retry-After."
)
StorageFull = _problem(
    "StorageFull", 507, "insufficient_storage", "Storage is full", "There is no room to store this. Nothing was kept."
)
BlobCorrupt = _problem(
    "BlobCorrupt",
    500,
    "blob_corrupt",
    "Stored bytes are damaged",
    "The stored bytes no longer match their digest. They were not sent.",
)


def every_problem() -> list[type[Problem]]:
    """Every class above, for the docs and the test that each has a page."""
    return [value for value in globals().values() if isinstance(value, type) and issubclass(value, Problem)]


def may_answer(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint, made from the classes it may raise, so OpenAPI cannot drift from the code."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for problem in problems:
        entry = by_status.setdefault(
            problem.status,
            {
                "description": "",
                "content": {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}, "examples": {}}
                },
            },
        )
        entry["description"] = "; ".join(filter(None, [entry["description"], f"`{problem.code}`: {problem.title}"]))
        entry["content"]["application/problem+json"]["examples"][problem.code] = {"value": problem().body()}
    return by_status
