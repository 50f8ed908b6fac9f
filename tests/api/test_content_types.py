"""What a body is, not what its Content-Type says, decides how it is read, wherever files are taken."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.http.media_types import WARNING
from app.imaging import encode_nifti_gz, encode_png, encode_tiff
from tests.api.test_model_import import package
from tests.gateway import Gateway, told
from tests.serving import networks

RING = np.zeros((24, 24), np.uint8)
RING[4:20, 4:20] = 255
RING[8:16, 8:16] = 0
PNG = encode_png(RING)


def archive() -> bytes:
    """A dataset of two pairs."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in ("a", "b"):
            made.writestr(f"images/{name}.png", encode_png(RING // 2 + ord(name)))
            made.writestr(f"masks/{name}.png", PNG)
    return file.getvalue()


@dataclass(frozen=True)
class Address:
    """Where a body may be sent, a body that it takes, and the type that this body has."""

    method: str
    path: str
    content: bytes
    media: str


@pytest.fixture
def addresses(gateway: Gateway, registered: Callable[..., Any], predict: Callable[..., Any]) -> dict[str, Address]:
    """Every address that takes a file; three of them take JSON in its place."""
    registered("blur", networks.blur())
    stored = predict("blur", PNG, accept="application/json", store="true").json()
    image = json.dumps({"image": stored["image"]}).encode()
    pairs = json.dumps({"name": "named", "pairs": [{"image": stored["image"], "mask": stored["image"]}] * 2}).encode()
    infer = {"inputs": [{"name": "image", "shape": [1, 1, 2, 2], "datatype": "UINT8", "data": [0, 10, 20, 30]}]}
    return {
        "images": Address("POST", "/v1/images", PNG, "image/png"),
        "predict": Address("POST", "/v1/models/blur/predict", PNG, "image/png"),
        "predict later": Address("POST", "/v1/models/blur/predict?store=true", PNG, "image/png"),
        "analyses": Address("POST", "/v1/analyses", PNG, "image/png"),
        "analyses of a stored image": Address("POST", "/v1/analyses", image, "application/json"),
        "skeleton": Address("POST", "/v1/analyses/skeleton", PNG, "image/png"),
        "simple points": Address("POST", "/v1/analyses/simple-points", PNG, "image/png"),
        "reference": Address("PUT", stored["links"]["reference"], PNG, "image/png"),
        "reference that is stored": Address("PUT", stored["links"]["reference"], image, "application/json"),
        "datasets": Address("POST", "/v1/datasets?name=rings", archive(), "application/zip"),
        "datasets of stored images": Address("POST", "/v1/datasets", pairs, "application/json"),
        "models": Address("POST", "/v1/models/foreign/versions", package(networks.blur()), "application/zip"),
        "infer": Address("POST", "/v2/models/blur/infer", json.dumps(infer).encode(), "application/json"),
    }


DECLARED = (
    None,
    "",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "application/x-www-form-urlencoded; charset=utf-8",
    "text/plain",
    "text/html",
    "image",
    "image/jpeg",
    "image/png",
    "application/json",
    "application/zip",
    "application/gzip",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
)
NO_CLAIM = (None, "", "application/octet-stream", "application/x-www-form-urlencoded")


def test_declared_type_decides_nothing(gateway: Gateway, addresses: dict[str, Address]) -> None:
    for name, address in addresses.items():
        for declared in DECLARED:
            headers = {} if declared is None else {"Content-Type": declared}
            answer = gateway.ask(address.method, address.path, content=address.content, headers=headers)
            assert answer.status_code in (200, 201), (name, declared, answer.text)
            claimed = (declared or "").partition(";")[0]
            warned = claimed not in NO_CLAIM and claimed != address.media and name != "infer"
            assert (WARNING in answer.headers) == warned, (name, declared)
            if warned:
                assert f"declared as {claimed} and is {address.media}" in answer.headers[WARNING]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_needs_no_content_type(gateway: Gateway, addresses: dict[str, Address], tmp_path: Path) -> None:
    body = tmp_path / "body"
    for name, address in addresses.items():
        body.write_bytes(address.content)
        key, url = gateway.keys["engineer"], f"{gateway.http.base_url}".rstrip("/") + address.path
        command = ["curl", "-s", "-o", str(tmp_path / "answer"), "-w", "%{http_code}", "-X", address.method]
        command += ["-H", f"Authorization: Bearer {key}", "--data-binary", f"@{body}", url]
        status = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert status in ("200", "201"), (name, (tmp_path / "answer").read_bytes()[:500])


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        (PNG, "image/x-png"),
        (encode_tiff(RING / np.float32(255)), "image/tiff"),
        (encode_tiff(RING / np.float32(255)), "image/x-tiff"),
        (encode_nifti_gz(np.stack([RING] * 3)), "application/gzip"),
        (encode_nifti_gz(np.stack([RING] * 3)), "application/x-gzip"),
    ],
)
def test_other_names_of_a_type_are_no_contradiction(gateway: Gateway, content: bytes, declared: str) -> None:
    answer = gateway.upload(content, declared)
    assert answer.status_code in (200, 201) and WARNING not in answer.headers


def test_part_of_a_form_is_read_as_what_it_is(gateway: Gateway) -> None:
    for declared, warned in (("image/png", False), ("application/octet-stream", False), ("text/html", True)):
        answer = gateway.ask("POST", "/v1/images", files={"file": ("ring.html", PNG, declared)})
        assert answer.json()["format"] == "png" and (WARNING in answer.headers) == warned


def test_declared_type_with_odd_characters_is_quoted_in_plain_ones(gateway: Gateway) -> None:
    odd: Any = b"im\xe4ge/png" + b"x" * 300
    answer = gateway.upload(PNG, odd)
    assert answer.status_code in (200, 201)
    assert answer.headers[WARNING].isascii() and len(answer.headers[WARNING]) < 200


@pytest.mark.parametrize("declared", [None, "application/json", "image/png"])
def test_json_keeps_its_own_limit_whatever_it_is_declared_as(gateway: Gateway, declared: str | None) -> None:
    body = b'{"image": "' + b"x" * gateway.settings.max_json_bytes + b'"}'
    headers = {} if declared is None else {"Content-Type": declared}
    for content in (body, iter([body[:1000], body[1000:]])):
        answer = gateway.ask("POST", "/v1/analyses", content=content, headers=headers)
        assert told(answer) == (413, "too_large")


def test_what_is_neither_a_file_nor_json_is_refused_by_its_bytes(gateway: Gateway) -> None:
    for path, code in (("/v1/images", "unsupported_image"), ("/v1/datasets?name=a", "unsupported_archive")):
        for declared in ("text/plain", "image/png", "application/x-www-form-urlencoded"):
            answer = gateway.ask("POST", path, content=b"a=1&b=2", headers={"Content-Type": declared})
            assert told(answer) == (415, code) and WARNING not in answer.headers
    answer = gateway.ask("POST", "/v1/analyses", content=b"hello", headers={"Content-Type": "application/json"})
    assert told(answer) == (400, "invalid_json")
