"""One exception class for each error that a caller may get.

Every class carries a stable `code`, an HTTP status and a title; its docstring is the sentence used when
nobody wrote a better one. The body is RFC 9457 `application/problem+json`; under `/v2` the same facts carry an
extra `error` member and under `/monai` and `/nninteractive` the sentence stands alone as `detail`, because those
clients read only that.
Input values, paths, SQL and stacks never leave the process.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

TYPE_BASE = "https://toposerve.dev/problems/"


MARKUP = re.compile(r"<+(?=[A-Za-z/!?])")
"""Where a page that prints a text without care would see a tag begin."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""What a terminal would obey."""
INSIDES = re.compile(
    r"\[ONNXRuntimeError\][ :]*\d*[ :]*[A-Z_]*[ :]*"  # the runtime's own label
    r"|(?:[\w:<>*&,~]+ )*\w+(?:::~?\w+)+(?:<[^>]*>)?(?:\([^)]*\))?(?: const)?:?"  # a C++ name with its signature
    r"|(?:/[\w.+-]+){2,}\.(?:cc|cpp|cu|h|hpp|py|pyx|so)\b(?::\d+)?:?"  # a source file
    r"|\b0x[0-9a-fA-F]{4,}\b|https://errors\.pydantic\.dev/\S*"
)
"""What libraries say about themselves, which tells a caller nothing and an attacker what runs here."""


def plain(text: str) -> str:
    """A text without markup and without names from inside of libraries, whoever wrote it."""
    return MARKUP.sub("", " ".join(CONTROL.sub("", INSIDES.sub(" ", text)).split()))


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
        self.detail = plain(detail or " ".join((type(self).__doc__ or self.title).split()))
        self.errors = [{name: plain(text) for name, text in each.items()} for each in errors]
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
            members["instance"] = quote(instance, safe="/:@!$&'()*+,;=~-._")
        if request_id:
            members["request_id"] = request_id
        return members

    def as_message(self) -> dict[str, Any]:
        """What a child process sends of it to its parent, as JSON; `from_message` is the other end."""
        return {"code": self.code, "detail": self.detail, "errors": self.errors}

    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer: Retry-After, WWW-Authenticate."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="toposerve"' + self.challenge()
        return headers

    def challenge(self) -> str:
        """What WWW-Authenticate says besides the realm."""
        return ""


# Syntax: the request could not be read at all.


class InvalidRequest(Problem):
    """The request is not well-formed."""

    status = 400
    code = "invalid_request"
    title = "Request cannot be read"


class InvalidJson(Problem):
    """The body is not strict JSON (no NaN, no Infinity, no repeated keys)."""

    status = 400
    code = "invalid_json"
    title = "Body is not JSON"


class InvalidCursor(Problem):
    """This cursor was not issued by this list. Start again without `cursor`."""

    status = 400
    code = "invalid_cursor"
    title = "Unknown cursor"


class IncompleteBody(Problem):
    """The body ended before it was complete. Send it again."""

    status = 400
    code = "incomplete_body"
    title = "Body is incomplete"


# Who is asking.


class Unauthenticated(Problem):
    """Send a valid API key as `Authorization: Bearer ts_...`. `toposerve keys create` makes one."""

    status = 401
    code = "unauthenticated"
    title = "Key missing or not valid"


class InvalidToken(Problem):
    """This token of the OpenID provider is not accepted. Ask the provider for a new one."""

    status = 401
    code = "invalid_token"
    title = "Token not valid"

    def challenge(self) -> str:
        # RFC 6750, section 3: printable ASCII without quotes and backslashes.
        said = re.sub(r"[^\x20\x21\x23-\x5b\x5d-\x7e]", "'", self.detail)
        return f', error="invalid_token", error_description="{said}"'


class ProjectNotChosen(Problem):
    """You are a member of several projects. Name one of them in the header X-Project; `projects` lists them."""

    status = 400
    code = "project_not_chosen"
    title = "Project not chosen"


class TooManyWrongKeys(Problem):
    """Too many keys that are not valid came from this address. A valid key is served as ever."""

    status = 429
    code = "too_many_wrong_keys"
    title = "Too many wrong keys"


class Forbidden(Problem):
    """This key may not do that. Ask an administrator for the scope that is named."""

    status = 403
    code = "forbidden"
    title = "Not allowed"


class CrossSite(Problem):
    """The form's token is missing or old. Reload the page and send it again."""

    status = 403
    code = "csrf"
    title = "Session expired"


# What is asked for.


class NotFound(Problem):
    """There is nothing here, or it belongs to another project."""

    status = 404
    code = "not_found"
    title = "Not found"


class MethodNotAllowed(Problem):
    """This address does not answer that method; see the Allow header."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


class NotAcceptable(Problem):
    """None of the accepted media types can be produced here."""

    status = 406
    code = "not_acceptable"
    title = "No acceptable media type"


class Gone(Problem):
    """The record exists but its bytes are no longer stored. Upload them again."""

    status = 410
    code = "blob_missing"
    title = "Stored bytes are missing"


class SessionEnded(Problem):
    """This session has ended, or was of another process. Open a new one and send the image again."""

    status = 410
    code = "session_ended"
    title = "Session has ended"


class Conflict(Problem):
    """The current state does not allow this."""

    status = 409
    code = "conflict"
    title = "Conflict with the current state"


class IdempotencyConflict(Problem):
    """This Idempotency-Key was used for another request. Use a new key for a new request."""

    status = 422
    code = "idempotency_key_reused"
    title = "Idempotency-Key used twice"


class IdempotencyInProgress(Problem):
    """The first request with this Idempotency-Key has not been answered yet. Wait, then ask again."""

    status = 409
    code = "idempotency_in_progress"
    title = "First request is still running"


class PreconditionFailed(Problem):
    """The record changed since you read it. Read it again."""

    status = 412
    code = "precondition_failed"
    title = "Record has changed"


# Too much.


class TooLarge(Problem):
    """The body is larger than this address accepts."""

    status = 413
    code = "too_large"
    title = "Too large"


class TooManyPixels(Problem):
    """The image declares more pixels than are accepted."""

    status = 413
    code = "too_many_pixels"
    title = "Image too large"


class ExpandsTooLarge(Problem):
    """The compressed data declares more bytes than are accepted."""

    status = 413
    code = "expands_too_large"
    title = "Decompressed data too large"


class UriTooLong(Problem):
    """The address is longer than is accepted."""

    status = 414
    code = "uri_too_long"
    title = "Address too long"


class HeadersTooLarge(Problem):
    """The request headers are larger than is accepted."""

    status = 431
    code = "headers_too_large"
    title = "Headers too large"


class SlowRequest(Problem):
    """The body did not arrive in time."""

    status = 408
    code = "slow_request"
    title = "Request too slow"


# Kind of content.


class UnsupportedMediaType(Problem):
    """This address does not accept that content type."""

    status = 415
    code = "unsupported_media_type"
    title = "Media type not accepted"


class UnsupportedImage(Problem):
    """The bytes are no image of a format that is read here. Send one of those that docs/reference/formats.md lists."""

    status = 415
    code = "unsupported_image"
    title = "Not an accepted image"


class UnsupportedTransferSyntax(Problem):
    """The transfer syntax of the DICOM file is not read here."""

    status = 415
    code = "unsupported_transfer_syntax"
    title = "Unsupported transfer syntax"


class UnsupportedArchive(Problem):
    """A dataset is uploaded as a zip or tar.gz archive."""

    status = 415
    code = "unsupported_archive"
    title = "Not a zip archive"


class UnsupportedModelFormat(Problem):
    """A model is imported as a zip archive with model.onnx and manifest.json, or as a MONAI bundle with
    models/model.onnx. Nothing else is opened, and nothing is ever unpickled.
    """

    status = 415
    code = "unsupported_model_format"
    title = "Not an accepted model"


class RangeNotSatisfiable(Problem):
    """Ask for one range inside the bytes, such as `bytes=0-1023`."""

    status = 416
    code = "range_not_satisfiable"
    title = "Range outside the bytes"


# Right kind, wrong content.


class Invalid(Problem):
    """Some fields are not valid; `errors` names each."""

    status = 422
    code = "invalid"
    title = "Fields are not valid"


class CorruptImage(Problem):
    """The image cannot be decoded: it is damaged or cut short."""

    status = 422
    code = "corrupt_image"
    title = "Image is damaged"


class NoPixelData(Problem):
    """The DICOM file holds no pixels. Send images."""

    status = 422
    code = "no_pixel_data"
    title = "No pixel data"


class BadSeries(Problem):
    """The DICOM files are not the slices of one volume."""

    status = 422
    code = "bad_series"
    title = "Not one series"


class IdentifyingPixels(Problem):
    """The DICOM file says that its pixels show who the patient is. Send it without."""

    status = 422
    code = "identifying_pixels"
    title = "Identity in the pixels"


class EmptyImage(Problem):
    """The image has a side of length zero."""

    status = 422
    code = "empty_image"
    title = "Image has no pixels"


class ImageTooSmall(Problem):
    """The image is smaller than this model accepts."""

    status = 422
    code = "image_too_small"
    title = "Image too small"


class UnsupportedDepth(Problem):
    """This pixel depth cannot be read without loss."""

    status = 422
    code = "unsupported_depth"
    title = "Pixel depth not accepted"


class UnsupportedDtype(Problem):
    """This pixel type is not accepted."""

    status = 422
    code = "unsupported_dtype"
    title = "Pixel type not accepted"


class UnsupportedColor(Problem):
    """This colour model is not accepted. Convert to grey or RGB."""

    status = 422
    code = "unsupported_color"
    title = "Colour model not accepted"


class NonFinite(Problem):
    """Every pixel must be a finite number."""

    status = 422
    code = "non_finite"
    title = "Image holds NaN or infinity"


class ManyFrames(Problem):
    """The file holds more than one frame; send one image per file."""

    status = 422
    code = "multiple_frames"
    title = "More than one frame"


class ChecksumMismatch(Problem):
    """The data does not match its own checksum."""

    status = 422
    code = "checksum_mismatch"
    title = "Checksum does not match"


class BadAffine(Problem):
    """The image's affine matrix is singular or not finite."""

    status = 422
    code = "bad_affine"
    title = "Orientation is not valid"


class MaskMismatch(Problem):
    """Mask and image must have the same shape."""

    status = 422
    code = "mask_mismatch"
    title = "Mask does not fit its image"


class UnknownLabel(Problem):
    """The mask holds a value that the label map does not name."""

    status = 422
    code = "unknown_label"
    title = "Label value not in the label map"


class BadArchive(Problem):
    """The archive holds an entry that is not accepted."""

    status = 422
    code = "bad_archive_entry"
    title = "Archive entry refused"


class BadDataset(Problem):
    """The dataset cannot be used as it is."""

    status = 422
    code = "bad_dataset"
    title = "Dataset cannot be used"


class WrongInput(Problem):
    """The image does not fit what the model was trained on."""

    status = 422
    code = "model_input"
    title = "Image does not fit the model"


class ModelSignature(Problem):
    """The network's inputs or outputs do not fit its manifest. Export it again."""

    status = 422
    code = "model_signature"
    title = "Network does not match its manifest"


class ExternalDataRefused(Problem):
    """The network keeps weights in another file. Save it as one file: `onnx.save(model, path,
    save_as_external_data=False)`.
    """

    status = 422
    code = "external_data_refused"
    title = "Network refers to other files"


class ModelRejected(Problem):
    """The network holds something that is not run here, or it did not pass its trial."""

    status = 422
    code = "model_rejected"
    title = "Network refused"


class ExpectationViolated(Problem):
    """The topology of the mask is not as `expect` says; `violations` has every number and where. Nothing was stored."""

    status = 422
    code = "expectation_violated"
    title = "Topology is not as expected"


class RepairFailed(Problem):
    """No edit of the mask leads to the topology that is asked for. Nothing was stored."""

    status = 422
    code = "repair_failed"
    title = "Mask cannot be repaired"


class NothingToEdit(Problem):
    """At this place there is nothing for this edit to change. Nothing was stored."""

    status = 422
    code = "nothing_to_edit"
    title = "Nothing to edit there"


class ModelNonFinite(Problem):
    """The model's answer for this image is not finite."""

    status = 422
    code = "model_non_finite"
    title = "Model output is not finite"


class ModelResources(Problem):
    """The network needs more memory for this image than one network may use, or its process crashed. Send a smaller
    image, or use another model.
    """

    status = 422
    code = "model_resources"
    title = "Network needs too much"


# Not now.


class PredictionTimeout(Problem):
    """The prediction took longer than one request may wait, and was stopped. Send a smaller image, or let a job predict
    it: `Prefer: respond-async`.
    """

    status = 503
    code = "prediction_timeout"
    title = "Prediction takes too long"


class Unavailable(Problem):
    """A part of the service is not available. Try again shortly."""

    status = 503
    code = "unavailable"
    title = "Temporarily unavailable"


class Busy(Problem):
    """The queue of this model is full. Try again after the time in Retry-After."""

    status = 503
    code = "busy"
    title = "Too many requests waiting"


class StorageFull(Problem):
    """There is no room to store this. Nothing was kept."""

    status = 507
    code = "insufficient_storage"
    title = "Storage is full"


class BlobCorrupt(Problem):
    """The stored bytes no longer match their digest. They were not sent."""

    status = 500
    code = "blob_corrupt"
    title = "Stored bytes are damaged"


def every_problem() -> list[type[Problem]]:
    """Every class above."""
    return [Problem, *Problem.__subclasses__()]


def by_code(code: str) -> type[Problem]:
    """The class with this code; LookupError when there is none."""
    found = [problem for problem in every_problem() if problem.code == code]
    if not found:
        raise LookupError(f"no problem has the code {code!r}")
    return found[0]


def from_message(message: dict[str, Any]) -> Problem:
    """The problem that a child process sent; LookupError or KeyError when it sent none."""
    return by_code(message["code"])(message["detail"], errors=message["errors"])


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
