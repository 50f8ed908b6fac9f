"""Reduced-precision variants of a model over HTTP."""

from __future__ import annotations

from typing import Any

from app.imaging import decode
from tests.gateway import Gateway, told
from tests.images import noise_png
from tests.serving.test_registry import with_variants


def test_caller_can_choose_the_model_variant(gateway: Gateway, predict: Any) -> None:
    with_variants(gateway.database, gateway.blobs, gateway.project_id)
    full, small = (
        decode(predict("blur", noise_png(20, 24), accept="image/tiff", **options).content, gateway.settings).pixels
        for options in ({}, {"variant": "int8"})
    )
    assert (full.max().round(3), small.max().round(3)) == (0.1, 0.9)
    answer = predict("blur", noise_png(20, 24), variant="int8")
    assert (answer.headers["toposerve-model"], answer.headers["toposerve-variant"]) == ("blur:1", "int8")
    assert "toposerve-variant" not in predict("blur", noise_png(20, 24)).headers


def test_rejected_variant_is_refused_with_the_reason(gateway: Gateway, predict: Any) -> None:
    with_variants(gateway.database, gateway.blobs, gateway.project_id)
    refused = predict("blur", noise_png(20, 24), variant="fp16")
    assert told(refused) == (404, "not_found") and "0.20% of the pixels" in refused.json()["detail"]
    assert told(predict("blur", noise_png(20, 24), variant="int4")) == (422, "invalid")
    assert told(predict("blur", noise_png(20, 24), variant="int8", store=True)) == (422, "invalid")


def test_a_variant_can_be_downloaded_and_is_shown_on_the_card(gateway: Gateway) -> None:
    version = with_variants(gateway.database, gateway.blobs, gateway.project_id)
    address = "/v1/models/blur/versions/1/onnx"
    small = gateway.ask("GET", address, params={"variant": "int8"})
    assert (
        small.headers["etag"] == f'"{version.manifest["variants"]["int8"]["onnx_sha256"]}"'
        and "blur-1-int8.onnx" in small.headers["content-disposition"]
    )
    assert small.content != gateway.ask("GET", address).content
    assert told(gateway.ask("GET", address, params={"variant": "fp16"})) == (404, "not_found")
    page = gateway.ask("GET", "/models/blur/versions/1").text
    assert "variant=int8" in page and "0.20% of the pixels" in page
