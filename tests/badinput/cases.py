"""Bad requests by rows of docs/how-to/bad-input.md, on every address that takes such a thing.

The files are those that the tests of single rows use; here each is sent wherever it may be sent.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from app.job_kinds import KINDS
from tests.api.test_bad_requests import BAD_JSON
from tests.api.test_datasets import bad_archives
from tests.api.test_model_import import OTHER_FORMATS, PLACES, external, identity, model_of, package
from tests.images import archive, pairs
from tests.imaging.test_bad_images_over_http import BAD, MASKS, READ_AS_NUMBERS
from tests.serving import networks

IMAGES = {
    "upload": "/v1/images",
    "predict": "/v1/models/blur/predict",
    "predict and store": "/v1/models/blur/predict?store=true",
    "analyse": "/v1/analyses",
    "skeleton": "/v1/analyses/skeleton",
}
JSON_BODIES = {
    "keys": "/v1/keys",
    "jobs": "/v1/jobs",
    "datasets": "/v1/datasets",
    "infer": "/v2/models/blur/infer",
    "index": "/v2/repository/index",
}
HOSTILE = (
    "",
    "x" * 5000,
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "a\0b",
    "http://169.254.169.254/latest",
    "'; DROP TABLE jobs; --",
    -1,
    0,
    2**31,
    2**63,
    1e300,
    True,
    [],
    {},
    [[[[]]]],
    {"kind": "train"},
)


@dataclass(frozen=True)
class Case:
    """One request and what may be answered.

    row       of docs/how-to/bad-input.md
    target    what kind of address
    expected  (status, code); None: any refusal
    refused   False where some of a generated kind are accepted
    """

    row: str
    name: str
    target: str
    path: str
    body: bytes
    media: str = "image/png"
    expected: tuple[int, str] | None = None
    refused: bool = True
    headers: dict[str, str] = field(default_factory=dict)


def every() -> list[Case]:
    """All of them, always in the same order."""
    return [*images(), *datasets(), *imports(), *json_bodies(), *job_specs(), *tensors()]


def images() -> Iterator[Case]:
    """B1 to B26 and B46, on every address that takes an image."""
    for title, (content, expected) in BAD.items():
        row = title.partition(" ")[0].rstrip(",")
        for target, path in IMAGES.items():
            if target in ("analyse", "skeleton") and title in READ_AS_NUMBERS:
                continue
            yield Case(row, title, target, path, content, expected=expected)
    for title, (content, _) in MASKS.items():
        for target in ("analyse", "skeleton"):
            yield Case("B26", f"mask {title}", target, IMAGES[target], content, refused=False)


def datasets() -> Iterator[Case]:
    """B27 to B29, and every bad image as an image and as a mask of a dataset."""
    for title, (content, status, code) in bad_archives().items():
        yield _dataset("B27", title, content, (status, code))
    for title, content in {
        "tar": b"x" * 257 + b"ustar\x0000",
        "7z": b"7z\xbc\xaf\x27\x1c",
        "rar": b"Rar!\x1a\7\0",
    }.items():
        yield _dataset("B29", title, content + bytes(600), (415, "unsupported_archive"))
    good = pairs(2)
    for title, (content, _) in BAD.items():
        if len(content) < 1 << 20:  # larger ones were sent by themselves, and a zip of zeros is a case of its own
            yield _dataset("B26", f"image {title}", archive(good | {"images/00.png": content}))
            yield _dataset("B26", f"mask {title}", archive(good | {"masks/00.png": content}))
    whole = archive(good)
    for cut in range(1, 20):
        yield _dataset("B28", f"cut at {cut}/20", whole[: len(whole) * cut // 20])
    for name in (
        "../x.png",
        "/x.png",
        "C:\\x.png",
        "images/\0.png",
        "images/" + "n" * 300 + ".png",
        "images/../../x.png",
    ):
        yield _dataset("B27", f"entry {name[:20]!r}", _zip_with(name, good), None)


def _zip_with(name: str, files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for each, content in files.items():
            made.writestr(each, content)
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name
        made.writestr(entry, b"x")
    return file.getvalue()


def _dataset(row: str, name: str, content: bytes, expected: tuple[int, str] | None = None) -> Case:
    return Case(row, name, "dataset", "/v1/datasets?name=bad", content, "application/zip", expected)


def imports() -> Iterator[Case]:
    """B30 to B34: networks that are none, refer to files, lie, or ask for too much."""
    for title, content in OTHER_FORMATS.items():
        yield _network("B30", title, content, (415, "unsupported_model_format"))
    for title, model in PLACES.items():
        yield _network("B31", title, package(model.SerializeToString()), (422, "external_data_refused"))
    for location in ("../x", "/etc/passwd", "x\0y", "model.onnx"):
        found = model_of(identity(), (external(location=location),))
        yield _network("B31", f"at {location!r}", package(found.SerializeToString()), (422, "external_data_refused"))
    huge = helper.make_node("ConstantOfShape", ["image"], ["probability"])
    rejected = {
        "opset 999": model_of(identity(), opset=999),
        "custom domain": model_of([helper.make_node("Evil", ["image"], ["probability"], domain="com.evil")]),
        "no node": model_of([]),
        "a shape from pixels": model_of([huge]),
        "sides of 2^62": model_of(identity(), (onnx.TensorProto(name="w", data_type=1, dims=[2**62]),)),
        "numbers of 64 bits": model_of(identity(), elem=onnx.TensorProto.DOUBLE),
        "five axes": model_of(identity(), shape=("n", 1, 1, 1, "h", "w")),
        "no axis": model_of(identity(), shape=()),
    }
    for title, model in rejected.items():
        yield _network("B32", title, package(model.SerializeToString()))
    good = networks.blur()
    for name in (
        "classes",
        "channels",
        "activation",
        "threshold",
        "scaling",
        "multiple",
        "tile",
        "dimensions",
        "input",
    ):
        for wrong in (-1, "x", [], 2**40, {"a": 1}):
            yield _network("B33", f"{name}={wrong!r}", package(good, **{name: wrong}))
    for cut in range(0, len(good), max(1, len(good) // 20)):
        yield _network("B32", f"cut at {cut}", package(good[:cut]))


def _network(row: str, name: str, content: bytes, expected: tuple[int, str] | None = None) -> Case:
    return Case(row, name, "import", "/v1/models/foreign/versions", content, "application/zip", expected)


def json_bodies() -> Iterator[Case]:
    """B35, B36: what is no strict JSON."""
    for title, body in BAD_JSON.items():
        for target, path in JSON_BODIES.items():
            yield Case("B35", title, target, path, body, "application/json")
    for value in ("null", "true", "1", '"text"', "[]", "[{}]", "{}"):
        for target in ("keys", "jobs", "datasets", "infer"):
            yield Case("B36", value, target, JSON_BODIES[target], value.encode(), "application/json")


def job_specs() -> Iterator[Case]:
    """B37, B47, B48: every field of every kind of job with hostile values; unknown fields; a missing kind."""
    for kind, table in KINDS.items():
        spec = copy.deepcopy(table.spec.model_json_schema()["examples"][0]) | {"kind": kind}
        yield _job(f"{kind} with a field nobody knows", spec | {"callback_url": "http://169.254.169.254"})
        yield _job(f"{kind} without its kind", {name: value for name, value in spec.items() if name != "kind"})
        for name in spec:
            for value in HOSTILE:
                yield _job(f"{kind}.{name}={str(value)[:24]!r}", spec | {name: value})


def _job(name: str, spec: dict[str, Any]) -> Case:
    # The examples name models and datasets that are not there, so that each is refused at the latest for that.
    return Case("B37", name, "jobs", "/v1/jobs", json.dumps(spec).encode(), "application/json")


def tensors() -> Iterator[Case]:
    """B50: tensors of the Open Inference Protocol that do not fit their head."""
    image = np.zeros((1, 1, 20, 20), np.uint8)
    good: dict[str, Any] = {
        "name": "image",
        "shape": [1, 1, 20, 20],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": image.nbytes},
    }
    for name in good:
        for value in (*HOSTILE, [1, 1, -20, 20], [1, 1, 2**40, 2**40], [1, 1, 0, 20], "BYTES", "BF16", {"a": -1}):
            yield _tensor(f"{name}={str(value)[:24]!r}", {"inputs": [good | {name: value}]}, image.tobytes())
    yield _tensor("cut short", {"inputs": [good]}, image.tobytes()[:-1])
    yield _tensor("too long", {"inputs": [good]}, image.tobytes() + b"x")
    yield _tensor("twice", {"inputs": [good, good]}, image.tobytes() * 2)
    yield _tensor("numbers that are none", {"inputs": [good | {"datatype": "FP32", "data": ["x"] * 400}]}, b"")
    nan = struct.pack("<f", float("nan")) * 400
    floats = good | {"datatype": "FP32", "parameters": {"binary_data_size": 1600}}
    yield _tensor("NaN", {"inputs": [floats]}, nan)


def _tensor(name: str, head: dict[str, Any], data: bytes) -> Case:
    body = json.dumps(head).encode()
    return Case(
        "B50",
        name,
        "infer",
        "/v2/models/blur/infer",
        body + data,
        "application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(body))},
    )
