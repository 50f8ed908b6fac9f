"""What a problem says has no markup and nothing from inside of a library, whatever was sent."""

from __future__ import annotations

import random
import re
from urllib.parse import quote

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from app.errors import Invalid, Problem, every_problem, plain
from tests.gateway import Gateway
from tests.images import noise_png

TAG = re.compile(r"<[A-Za-z/!?]")
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</title><svg/onload=alert(1)>",
    "<!--",
    "<?xml version='1.0'?>",
    "{{7*7}}<b>",
    "\x1b[31mred",
)
RUNTIME = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Reshape node."
    " /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:47"
    " onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, onnxruntime::TensorShapeVector&, bool)"
    " input_shape_size == size was false. 0x7f00deadbeef"
)


def test_library_signatures_are_left_out_and_the_sentence_stays() -> None:
    said = plain(RUNTIME)
    assert "while running Reshape node." in said and "was false" in said
    assert not re.search(r"ONNXRuntimeError|::|\.h\b|const|0x|onnxruntime_src", said), said


def test_sentences_of_our_own_are_left_as_they_are() -> None:
    for kind in every_problem():
        assert kind().detail == " ".join((kind.__doc__ or "").split())
    for text in (
        "Expected 0 < lr <= 1, got 3 > 1.",
        "`name` (newest version), `name@alias` or `name:3`.",
        "Send it as `Content-Type: application/json`, not as `text/html`.",
        "[1, 2] -> [3, 4]: a/b.png and c.nii.gz",
        "String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'",
    ):
        assert plain(text) == text


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from([*HOSTILE, RUNTIME, "a::b(int)", "/usr/lib/x.so:3"]), st.text(max_size=20)),
        max_size=6,
    ).map("".join)
)
def test_no_text_survives_as_markup(text: str) -> None:
    address = f"/v1/{text}".encode("utf-8", "replace").decode()
    body = Invalid(text, errors=[{"pointer": f"/{text}", "detail": text}]).body(instance=address)
    said = [body["detail"], *body["errors"][0].values()]
    assert not any(TAG.search(each) or "\x1b" in each or "ONNXRuntimeError" in each for each in said), said
    assert not re.search(r'[<>"\s\x00-\x1f]', body["instance"])
    assert len(body["detail"]) <= len(text) + 200


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_route_echoes_markup(shared_gateway: Gateway, hostile: str) -> None:
    random.seed(0)
    told = quote(hostile, safe="")
    headers = {"Content-Type": "application/json"}
    answers = [
        shared_gateway.ask("GET", f"/v1/images/{told}"),
        shared_gateway.ask("GET", f"/v1/models/{told}/versions/1"),
        shared_gateway.ask("GET", f"/{told}"),
        shared_gateway.ask("GET", "/v1/images", params={"cursor": hostile, "limit": hostile, hostile: "1"}),
        shared_gateway.ask("POST", f"/v1/models/{told}/predict", content=noise_png()),
        shared_gateway.ask("POST", f"/v2/models/{told}/infer", json={hostile: hostile}),
        shared_gateway.ask("POST", "/v1/jobs", json={"kind": hostile, hostile: [hostile]}),
        shared_gateway.ask("POST", "/v1/jobs", json={"kind": "train", "dataset": hostile, hostile: hostile}),
        shared_gateway.ask("POST", "/v1/keys", "admin", json={"name": "n", "role": hostile, "scopes": [hostile]}),
        shared_gateway.ask("POST", "/v1/images", content=hostile, headers={"Content-Type": "text/html"}),
        shared_gateway.ask("POST", "/v1/jobs", content=hostile, headers=headers),
        shared_gateway.ask("POST", "/v1/jobs", content=b"{}", headers={"Content-Type": f"a/{hostile.encode().hex()}"}),
        shared_gateway.ask("POST", f"/v1/datasets?name={told}", content=b"PK\x03\x04" + hostile.encode()),
        shared_gateway.ask("PUT", f"/v1/models/m/aliases/{told}", "admin", json={"version": hostile}),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 500, (answer.request.url, answer.status_code)
        assert not TAG.search(answer.text) and "errors.pydantic.dev" not in answer.text, answer.text


def test_problem_is_plain_whoever_raises_it() -> None:
    assert Problem("<b>x</b> fails").detail == "b>x/b> fails"
