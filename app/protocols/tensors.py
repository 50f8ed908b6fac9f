"""Reads and writes tensors of the Open Inference Protocol v2: JSON, binary, compressed.

A body is a JSON header, followed by the raw tensors in the order in which the header lists them;
`Inference-Header-Content-Length` says where JSON ends, counted after decompression. Raw tensors are little-endian and
row-major.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from app.errors import ExpandsTooLarge, InvalidRequest
from app.schemas.base import Schema
from app.strict_json import parse

DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
JSON, BINARY = "application/json", "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
Parameters = dict[str, str | int | float | bool]


class InputTensor(Schema):
    """One tensor of a request; its values are `data`, or follow the header when `parameters.binary_data_size` says how
    many bytes.
    """

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=8)]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class RequestedOutput(Schema):
    """One tensor that shall be answered."""

    name: str
    parameters: Parameters = {}


class InferRequest(Schema):
    """The JSON header of a request."""

    id: str | None = None
    model_name: str | None = None
    """kserve's client repeats here what the address says."""
    model_version: str | None = None
    parameters: Parameters = {}
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=64)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=64)] = []


@dataclass(frozen=True)
class TensorRequest:
    """A request as it was meant."""

    header: InferRequest
    inputs: dict[str, np.ndarray]

    def binary(self, name: str) -> bool:
        """True when the tensor is to be answered raw; what is said of one output goes before what is said of all."""
        usual = bool(self.header.parameters.get("binary_data_output", False))
        return next(
            (
                bool(output.parameters.get("binary_data", usual))
                for output in self.header.outputs
                if output.name == name
            ),
            usual,
        )


def decompressed(body: bytes, encoding: str | None, limit: int) -> bytes:
    """The body without its Content-Encoding; ExpandsTooLarge before more than `limit` bytes are made of it."""
    if encoding in (None, "", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise InvalidRequest(f"Content-Encoding is {encoding[:32]!r}; gzip, deflate and none can be read.")
    inflater = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise InvalidRequest(f"The body is not valid {encoding}. Send it again.") from None
    if len(plain) > limit:
        raise ExpandsTooLarge(
            f"The body expands to more than the {limit} bytes that are accepted. Send fewer images at once."
        )
    if not inflater.eof or inflater.unused_data:
        raise InvalidRequest(f"The {encoding} body is cut short or has something behind its end. Send it again.")
    return plain


def read(body: bytes, header_length: str | None) -> TensorRequest:
    """The request in a body; InvalidRequest says what does not fit."""
    if header_length is None:
        end = len(body)
    elif header_length.isascii() and header_length.isdigit() and int(header_length) <= len(body):
        end = int(header_length)
    else:
        raise InvalidRequest(
            f"{HEADER_LENGTH} is {header_length[:20]!r} and the body has {len(body)} bytes; it must say where its JSON"
            " ends."
        )
    if end == 0:
        raise InvalidRequest(
            "A body without a JSON header cannot say its shape, and rows and columns of an image are free. Send the"
            " header."
        )
    try:
        header = InferRequest.model_validate(parse(body[:end]))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise InvalidRequest(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    _refuse_what_is_not_spoken(header)
    inputs, position = {}, end
    for tensor in header.inputs:
        size = _binary_size(tensor)
        inputs[tensor.name] = _listed(tensor) if size is None else _raw(tensor, body[position : position + size], size)
        position += size or 0
    if position != len(body):
        raise InvalidRequest(
            f"The body has {len(body)} bytes and its tensors end at {position}. binary_data_size must say the bytes of"
            " each."
        )
    return TensorRequest(header, inputs)


NOT_SPOKEN = {
    "classification": "a mask has a class for every pixel already",
    "shared_memory_region": "bytes travel in the body",
}
"""Extensions whose being passed over would give another answer than was asked for."""
FLAGS = ("binary_data", "binary_data_output", "topology")


def _refuse_what_is_not_spoken(header: InferRequest) -> None:
    speakers: tuple[InputTensor | RequestedOutput | InferRequest, ...] = (*header.inputs, *header.outputs, header)
    for tensor in speakers:
        name = getattr(tensor, "name", "the request")
        for parameter, value in tensor.parameters.items():
            if parameter in NOT_SPOKEN and value:
                raise InvalidRequest(
                    f"{name[:64]} has the parameter {parameter}, an extension that is not spoken here:"
                    f" {NOT_SPOKEN[parameter]}. Leave it out."
                )
            if parameter in FLAGS and not isinstance(value, bool):
                raise InvalidRequest(
                    f"{name[:64]} has the parameter {parameter} = {value!r:.32}; it must be true or false."
                )


def _binary_size(tensor: InputTensor) -> int | None:
    size = tensor.parameters.get("binary_data_size")
    if size is not None and (
        tensor.data is not None or isinstance(size, bool) or not isinstance(size, int) or size < 0
    ):
        raise InvalidRequest(
            f"Input {tensor.name}: give either `data` or a binary_data_size, which is a whole number of bytes."
        )
    if size is None and tensor.data is None:
        raise InvalidRequest(f"Input {tensor.name} has neither `data` nor a binary_data_size.")
    return size


def _dtype(tensor: InputTensor) -> np.dtype[Any]:
    if tensor.datatype not in DTYPES:
        raise InvalidRequest(
            f"Input {tensor.name} has datatype {tensor.datatype[:16]!r}; it can be one of {', '.join(DTYPES)}."
        )
    return np.dtype(DTYPES[tensor.datatype])


def _raw(tensor: InputTensor, content: bytes, size: int) -> np.ndarray:
    dtype = _dtype(tensor)
    needed = math.prod(tensor.shape) * dtype.itemsize
    if not size == needed == len(content):
        raise InvalidRequest(
            f"Input {tensor.name} of shape {tensor.shape} and {tensor.datatype} takes {needed} bytes; {size} are"
            f" announced and {len(content)} arrived."
        )
    return np.frombuffer(content, dtype).reshape(tensor.shape)


def _listed(tensor: InputTensor) -> np.ndarray:
    dtype = _dtype(tensor)
    try:
        given = np.array(tensor.data)
        if given.dtype.kind not in "biuf" or (given.dtype.kind == "f" and dtype.kind != "f" and given.size):
            raise ValueError
        values = np.array(tensor.data, dtype=dtype)  # refuses integers beyond the type
    except (ValueError, OverflowError, TypeError):
        raise InvalidRequest(
            f"Input {tensor.name}: data must be numbers of {tensor.datatype}, flat or nested evenly."
        ) from None
    if values.size != math.prod(tensor.shape):
        raise InvalidRequest(
            f"Input {tensor.name} of shape {tensor.shape} takes {math.prod(tensor.shape)} values; {values.size} were"
            " sent."
        )
    return values.reshape(tensor.shape)


def write(facts: dict[str, Any], outputs: dict[str, np.ndarray], asked: TensorRequest) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an answer; each tensor in JSON or raw, as it was asked for."""
    listed, raw = [], []
    for name, values in outputs.items():
        tensor: dict[str, Any] = {"name": name, "shape": list(values.shape), "datatype": NAMES[values.dtype]}
        if asked.binary(name):
            raw.append(np.ascontiguousarray(values).tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        listed.append(tensor)
    header = json.dumps(facts | {"outputs": listed}, allow_nan=False, separators=(",", ":")).encode()
    if not raw:
        return header, {"Content-Type": JSON}
    return b"".join([header, *raw]), {"Content-Type": BINARY, HEADER_LENGTH: str(len(header))}


def compressed(body: bytes, accept_encoding: str | None) -> tuple[bytes, dict[str, str]]:
    """The body as the caller can read it fastest: gzip or deflate when named, else as it is."""
    named = {
        part.partition(";")[0].strip()
        for part in (accept_encoding or "").lower().split(",")
        if part.replace(" ", "").partition(";q=")[2] not in ("0", "0.0")
    }
    if "gzip" in named:
        return gzip.compress(body, 1, mtime=0), {"Content-Encoding": "gzip"}
    if "deflate" in named:
        return zlib.compress(body, 1), {"Content-Encoding": "deflate"}
    return body, {}
