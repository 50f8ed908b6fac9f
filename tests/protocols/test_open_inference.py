"""The Open Inference Protocol v2, byte by byte and by Triton's client."""

import gzip
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from app.imaging import Picture
from tests.images import noise
from tests.serving import networks
from topology.components import betti_numbers

CLIENT = Path(__file__).with_name("triton_client.py")


@pytest.fixture
def blur(registered):
    return registered("blur", networks.blur())


@pytest.fixture
def infer(gateway):
    def ask(body, *, model="blur", who="clinician", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return gateway.ask(
            "POST", f"/v2/models/{model}/infer", who, content=content, headers={"Accept-Encoding": "identity"} | headers
        )

    return ask


def question(image, *, datatype="UINT8", outputs=("mask",), **parameters):
    tensor = {"name": "image", "shape": list(image.shape), "datatype": datatype, "data": image.ravel().tolist()}
    return {"inputs": [tensor], "outputs": [{"name": name} for name in outputs], "parameters": parameters}


def tensor(answer, name):
    found = {each["name"]: each for each in answer.json()["outputs"]}[name]
    return np.array(found["data"]).reshape(found["shape"])


def refused(answer, status):
    body = answer.json()
    assert answer.status_code == status and answer.headers["content-type"] == "application/json", answer.text
    assert body["error"] == body["detail"] and body["status"] == status
    return body["error"]


def test_triton_client_runs_unmodified(registered, gateway):
    """JSON and binary, gzip and deflate, sync and async, metadata, statistics, repository: see triton_client.py."""
    registered("blur", networks.blur())
    registered("bands", networks.bands(3), classes=("background", "wall", "lumen"))
    command = [sys.executable, str(CLIENT), gateway.url.removeprefix("http://"), gateway.keys["admin"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["sync", "aio"]


def test_open_inference_and_predict_give_the_same_mask(blur, infer, gateway):
    image = noise(1, 1, 40, 50)
    expected = gateway.services.registry.get(gateway.project_id, blur).predict(Picture(image[0], "png"))
    answer = infer(question(image, outputs=("mask", "probability")))
    np.testing.assert_array_equal(tensor(answer, "mask")[0], expected.labels)
    np.testing.assert_allclose(tensor(answer, "probability")[0], expected.probability, atol=1e-6)
    assert answer.json()["model_version"] == "1"


def test_topology_is_returned_as_tensors_on_request(blur, infer):
    answer = infer(question(noise(2, 1, 40, 50), topology=True))
    masks = tensor(answer, "mask")
    assert tensor(answer, "betti").tolist() == [[list(betti_numbers(mask))] for mask in masks]
    assert tensor(answer, "euler").tolist() == [[b0 - b1] for ((b0, b1),) in tensor(answer, "betti").tolist()]


def test_threshold_can_be_sent_as_parameter(blur, infer):
    image = noise(1, 1, 40, 50)
    low, high = (tensor(infer(question(image, threshold=value)), "mask").sum() for value in (0.3, 0.7))
    assert low > high
    for wrong in (0, 1, 2.5, True, "half"):
        assert "threshold" in refused(infer(question(image, threshold=wrong)), 400)


def test_expectations_and_repair_can_be_sent_as_parameters(registered, infer):
    registered("plain", networks.through(), scaling=networks.PLAIN)
    images = np.zeros((2, 1, 8, 12), np.uint8)
    images[:, 0, 2:5, 2:5] = 240
    images[1, 0, 6, 9] = 140  # a speck that is just there

    def told(**parameters):
        answer = infer(question(images, **parameters), model="plain")
        assert answer.status_code == 200, answer.text
        return answer.json().get("parameters"), [betti_numbers(mask) for mask in tensor(answer, "mask")]

    assert told() == (None, [(1, 0), (2, 0)])
    assert told(expect="beta0:1") == ({"expectation": "violated"}, [(1, 0), (2, 0)])
    assert told(expect="vessel.beta1:0", strict=True) == ({"expectation": "satisfied"}, [(1, 0), (2, 0)])
    assert told(expect="beta0:1", repair=True, strict=True) == (
        {"expectation": "satisfied", "edits": 1},
        [(1, 0), (1, 0)],
    )
    assert told(repair=True) == ({"edits": 1}, [(1, 0), (1, 0)])
    assert "2 components" in refused(infer(question(images, expect="beta0:1", strict=True), model="plain"), 422)
    assert "as near as" in refused(infer(question(images, expect="beta0:9", repair=True), model="plain"), 422)
    for wrong, words in (
        ({"expect": 1}, "beta0:1"),
        ({"repair": "yes"}, "true or false"),
        ({"strict": True}, "Send `expect`"),
        ({"expect": "x" * 3000}, "2048"),
    ):
        assert words in refused(infer(question(images, **wrong), model="plain"), 400)
    assert "beta0, beta1, euler" in refused(infer(question(images, expect="beta7:1"), model="plain"), 422)


def test_binary_tensors_are_read_and_written(blur, infer):
    image = noise(1, 1, 40, 50)
    header = json.dumps(
        {
            "id": "scan",
            "inputs": [
                {"name": "image", "shape": [1, 1, 40, 50], "datatype": "FP32", "parameters": {"binary_data_size": 8000}}
            ],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "mask"}, {"name": "probability", "parameters": {"binary_data": False}}],
        }
    ).encode()
    answer = infer(header + image.astype("<f4").tobytes(), **{"Inference-Header-Content-Length": str(len(header))})
    assert answer.headers["content-type"] == "application/octet-stream"
    end = int(answer.headers["inference-header-content-length"])
    told = json.loads(answer.content[:end])
    assert (
        told["id"] == "scan"
        and told["outputs"][0]["parameters"] == {"binary_data_size": 2000}
        and len(told["outputs"][1]["data"]) == 2000
    )
    np.testing.assert_array_equal(
        np.frombuffer(answer.content[end:], np.uint8).reshape(1, 40, 50), tensor(infer(question(image)), "mask")
    )


@pytest.mark.parametrize(
    "encoding, pack, unpack", [("gzip", gzip.compress, gzip.decompress), ("deflate", zlib.compress, zlib.decompress)]
)
def test_request_and_response_may_be_compressed(blur, infer, gateway, encoding, pack, unpack):
    plain = json.dumps(question(noise(1, 1, 20, 20))).encode()
    with gateway.http.stream(
        "POST",
        "/v2/models/blur/infer",
        content=pack(plain),
        headers={
            "Authorization": f"Bearer {gateway.keys['clinician']}",
            "Content-Encoding": encoding,
            "Accept-Encoding": encoding,
        },
    ) as answer:
        assert answer.status_code == 200 and answer.headers["content-encoding"] == encoding
        assert json.loads(unpack(b"".join(answer.iter_raw()))) == infer(plain).json()


def test_decompression_bomb_is_refused_before_expansion(registered, make_settings, serve):

    small = serve(make_settings(max_upload_bytes=100_000)).new_project()
    small.register("blur", networks.blur())
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    answer = small.ask("POST", "/v2/models/blur/infer", content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413 and answer.json()["code"] == "expands_too_large"


IMAGE = {"name": "image", "shape": [1, 1, 20, 20], "datatype": "UINT8"}
FLAT = [0] * 400


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "header"),
        (b"[1]", "valid dictionary"),
        (b"{", "not JSON"),
        (b'{"inputs": [], "x": NaN}', "NaN"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [IMAGE]}, "neither"),
        ({"inputs": [IMAGE | {"data": FLAT[1:]}]}, "takes 400 values; 399"),
        ({"inputs": [IMAGE | {"data": [[1, 2], [3]]}]}, "evenly"),
        ({"inputs": [IMAGE | {"data": [300] * 400}]}, "UINT8"),
        ({"inputs": [IMAGE | {"data": [0.5] * 400}]}, "UINT8"),
        ({"inputs": [IMAGE | {"data": ["a"] * 400}]}, "UINT8"),
        ({"inputs": [IMAGE | {"data": FLAT, "datatype": "BYTES"}]}, "BYTES"),
        ({"inputs": [IMAGE | {"data": FLAT, "datatype": "INT64"}]}, "INT64"),
        ({"inputs": [IMAGE | {"data": FLAT, "shape": [1, -1, 20, 20]}]}, "shape"),
        ({"inputs": [IMAGE | {"data": FLAT, "name": "picture"}]}, "picture"),
        ({"inputs": [IMAGE | {"data": FLAT}] * 2}, "one input"),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 400}}]}, "0 arrived"),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": -1}}]}, "whole number"),
        ({"inputs": [IMAGE | {"data": FLAT}], "outputs": [{"name": "logits"}]}, "probability, mask, betti, euler"),
        ({"inputs": [IMAGE | {"data": FLAT}], "unknown": 1}, "unknown"),
    ],
)
def test_unfitting_request_is_refused_with_a_suggestion(blur, infer, body, words):
    assert words in refused(infer(body), 400)


@pytest.mark.parametrize("length", ["-1", "x", "99999", "0"])
def test_wrong_header_length_is_refused(blur, infer, length):
    refused(infer(question(noise(1, 1, 20, 20)), **{"Inference-Header-Content-Length": length}), 400)


def test_images_that_do_not_fit_the_model_are_refused_by_the_protocol(blur, infer):
    assert "[-1, 1, -1, -1]" in refused(infer(question(noise(1, 3, 20, 20))), 422)
    assert "[-1, 1, -1, -1]" in refused(infer(question(noise(0, 1, 20, 20))), 422)
    header = json.dumps(
        {
            "inputs": [
                {"name": "image", "shape": [1, 1, 2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
            ]
        }
    ).encode()
    bad = np.array([1, np.nan, 3, 4], "<f4").tobytes()
    assert "NaN" in refused(infer(header + bad, **{"Inference-Header-Content-Length": str(len(header))}), 422)


def test_unknown_models_and_missing_rights_get_their_status(blur, infer, gateway):
    assert "No model is named" in refused(infer(question(noise(1, 1, 20, 20)), model="unknown"), 404)
    for path in ("/v2/models/blur/versions/9", "/v2/models/blur/versions/x/ready", "/v2/models/unknown/config"):
        refused(gateway.ask("GET", path), 404)
    refused(infer(question(noise(1, 1, 20, 20)), who="stranger"), 404)
    refused(infer(question(noise(1, 1, 20, 20)), who="viewer"), 403)
    refused(gateway.ask("POST", "/v2/repository/models/blur/unload", "clinician"), 403)
    refused(gateway.ask("GET", "/v2/models", None), 401)
    assert gateway.ask("GET", "/v2/health/live", None).json() == {"live": True}
    assert gateway.ask("GET", "/v2/health/ready", None).json()["ready"] is True


def test_repository_index_shows_loaded_models(blur, gateway):
    def states(body=None):
        return [
            (each["name"], each["version"], each["state"])
            for each in gateway.ask("POST", "/v2/repository/index", content=json.dumps(body) if body else b"").json()
        ]

    assert states() == [("blur", "1", "UNAVAILABLE")] and states({"ready": True}) == []
    assert gateway.ask("POST", "/v2/repository/models/blur/load", "admin", json={}).status_code == 200
    assert states({"ready": True}) == [("blur", "1", "READY")]
    assert gateway.ask("POST", "/v2/repository/models/blur/unload", "admin", content=b"").status_code == 200
    assert states() == [("blur", "1", "UNAVAILABLE")]
    refused(gateway.ask("POST", "/v2/repository/index", content=b"[]"), 400)


def test_statistics_count_images_requests_and_failures(blur, infer, gateway):
    infer(question(noise(3, 1, 20, 20)))
    infer(question(noise(1, 3, 20, 20)))
    gateway.ask("POST", "/v1/models/blur/predict", content=b"no image", headers={"Content-Type": "image/png"})
    (seen,) = gateway.ask("GET", "/v2/models/blur/stats").json()["model_stats"]
    assert (seen["inference_count"], seen["execution_count"], seen["inference_stats"]["fail"]["count"]) == (3, 1, 2)
    assert seen["inference_stats"]["success"]["ns"] > seen["inference_stats"]["compute_infer"]["ns"] > 0
    assert gateway.ask("GET", "/v2/models/stats").json()["model_stats"] == [seen]


def test_alias_can_be_used_as_model_name(registered, infer, gateway):
    from tests.records import set_alias

    first = registered("tones", networks.constant(0.2))
    registered("tones", networks.constant(0.8))
    set_alias(gateway.database, first, "champion")
    answers = [
        infer(question(noise(1, 1, 20, 20)), model=name).json()
        for name in ("tones", "tones@champion", "tones/versions/1")
    ]
    assert [answer["model_version"] for answer in answers] == ["2", "1", "1"]
    assert gateway.ask("GET", "/v2/models").json() == {"models": ["tones"]}


def test_every_v2_failure_has_the_protocol_error_body(blur, infer, gateway):
    asked = gateway.ask
    assert "nothing here" in refused(asked("GET", "/v2/nothing"), 404)
    assert "nothing here" in refused(asked("POST", "/v2/models/blur/explain", json={}), 404)
    for method, path, allowed in (
        ("GET", "/v2/models/blur/infer", "POST"),
        ("DELETE", "/v2/models/blur", "GET"),
        ("POST", "/v2/health/live", "GET"),
        ("PUT", "/v2", "GET"),
    ):
        answer = asked(method, path)
        assert refused(answer, 405) and answer.headers["allow"] == allowed, (method, path)
    for encoding in ("br", "gzip, gzip", "zstd"):
        assert "gzip, deflate" in refused(infer(question(noise(1, 1, 20, 20)), **{"Content-Encoding": encoding}), 400)
    assert "not valid gzip" in refused(infer(b"plain", **{"Content-Encoding": "gzip"}), 400)
    refused(asked("GET", "/v2/models/blur?" + "x" * 9000), 414)
    refused(asked("POST", "/v2/repository/models/blur/load", "admin", content=b"{"), 400)
    for body in (b"[]", b'{"parameters": 7}', b'{"parameters": {"config": "{}"}}'):
        refused(asked("POST", "/v2/repository/models/blur/load", "admin", content=body), 400)
    assert "no parameter force" in refused(
        asked("POST", "/v2/repository/models/blur/unload", "admin", json={"parameters": {"force": True}}), 400
    )
    refused(gateway.ask("POST", "/v2/repository/index", None), 401)


def test_oversized_v2_body_is_refused_with_the_protocol_error(registered, make_settings, serve):

    small = serve(make_settings(max_upload_bytes=10_000)).new_project()
    small.register("blur", networks.blur())
    refused(small.ask("POST", "/v2/models/blur/infer", content=b" " * 100_000), 413)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"outputs": [{"name": "mask", "parameters": {"classification": 3}}]}, "mask has the parameter classification"),
        ({"outputs": [{"name": "mask", "parameters": {"shared_memory_region": "here"}}]}, "bytes travel in the body"),
        ({"outputs": [{"name": "mask", "parameters": {"binary_data": "false"}}]}, "must be true or false"),
        ({"parameters": {"binary_data_output": 1}}, "must be true or false"),
        ({"parameters": {"topology": "yes"}}, "must be true or false"),
        ({"model_name": "bands"}, "names the model bands and the address blur"),
        ({"model_version": "2"}, "names the version 2 and the address 1"),
    ],
)
def test_unsupported_request_fields_are_refused(blur, infer, change, words):
    assert words in refused(infer(question(noise(1, 1, 20, 20)) | change), 400)


def test_hints_are_ignored(blur, infer):
    plain = infer(question(noise(1, 1, 20, 20))).json()
    hinted = question(noise(1, 1, 20, 20), priority=3, timeout=10**6, sequence_id=7, sequence_start=True) | {
        "model_name": "blur",
        "model_version": "1",
    }
    assert infer(hinted).json() == plain


def test_binary_data_is_chosen_per_output(blur, infer):
    asked = question(noise(1, 1, 20, 20), outputs=(), binary_data_output=True, topology=True) | {
        "outputs": [{"name": "mask", "parameters": {"binary_data": False}}, {"name": "probability"}]
    }
    answer = infer(asked)
    told = json.loads(answer.content[: int(answer.headers["inference-header-content-length"])])
    raw = {each["name"]: each.get("parameters", {}).get("binary_data_size") for each in told["outputs"]}
    assert raw == {"mask": None, "probability": 1600, "betti": 16, "euler": 8}
    assert len(answer.content) == int(answer.headers["inference-header-content-length"]) + 1600 + 16 + 8
