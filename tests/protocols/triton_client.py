"""Drives tritonclient against a gateway: `python triton_client.py HOST:PORT KEY`.

The gateway holds a model `blur` (one sigmoid) and a model `bands` (three classes). Prints a word for each half that
passed.
"""

import asyncio
import sys

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 1, 33, 47)).astype(np.float32)


def inputs(binary):
    tensor = triton.InferInput("image", list(IMAGE.shape), "FP32")
    tensor.set_data_from_numpy(IMAGE, binary_data=binary)
    return [tensor]


def outputs(binary):
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in ("mask", "probability", "betti")]


def check(result, expected=None):
    mask, probability = result.as_numpy("mask"), result.as_numpy("probability")
    assert mask.shape == (2, 33, 47) and mask.dtype == np.uint8 and probability.shape == (2, 1, 33, 47)
    np.testing.assert_array_equal(mask, probability[:, 0] > 0.5)
    if expected is not None:
        np.testing.assert_allclose(probability, expected, atol=1e-6)
    return probability


def refusal(call):
    try:
        call()
    except InferenceServerException as error:
        return str(error)
    raise AssertionError("it was not refused")


def sync(address, headers):
    # dict(headers): the client leaves the length of one request in the headers it was given.
    client = triton.InferenceServerClient(address)
    assert client.is_server_live(headers=dict(headers)) and client.is_server_ready(headers=dict(headers))
    assert client.is_model_ready("blur", headers=dict(headers)) and client.is_model_ready(
        "blur", "1", headers=dict(headers)
    )
    assert not client.is_model_ready("unknown", headers=dict(headers))
    assert "binary_tensor_data" in client.get_server_metadata(headers=dict(headers))["extensions"]
    facts = client.get_model_metadata("blur", headers=dict(headers))
    assert facts["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, -1, -1]}] and facts[
        "versions"
    ] == ["1"]
    assert client.get_model_config("bands", headers=dict(headers))["output"][0]["dims"] == [-1, 3, -1, -1]
    expected = check(client.infer("blur", inputs(True), headers=dict(headers)))
    for binary_in in (True, False):
        for binary_out in (True, False):
            result = client.infer(
                "blur", inputs(binary_in), outputs=outputs(binary_out), request_id="7", headers=dict(headers)
            )
            check(result, expected)
            assert result.get_response()["id"] == "7" and result.as_numpy("betti").shape == (2, 1, 2)
    for packed in ("gzip", "deflate"):
        result = client.infer(
            "blur",
            inputs(True),
            outputs=outputs(True),
            request_compression_algorithm=packed,
            response_compression_algorithm=packed,
            headers=dict(headers),
        )
        check(result, expected)
    check(
        client.infer("blur", inputs(True), model_version="1", parameters={"topology": True}, headers=dict(headers)),
        expected,
    )
    check(client.async_infer("blur", inputs(True), headers=dict(headers)).get_result(), expected)
    assert "No model is named unknown" in refusal(lambda: client.infer("unknown", inputs(True), headers=dict(headers)))
    client.load_model("bands", headers=dict(headers))
    states = {each["name"]: each["state"] for each in client.get_model_repository_index(headers=dict(headers))}
    assert states == {"blur": "READY", "bands": "READY"}
    client.unload_model("bands", headers=dict(headers))
    assert {each["name"]: each["state"] for each in client.get_model_repository_index(headers=dict(headers))}[
        "bands"
    ] == "UNAVAILABLE"
    seen = client.get_inference_statistics("blur", headers=dict(headers))["model_stats"][0]
    assert seen["inference_count"] >= 16 and seen["inference_stats"]["success"]["count"] >= 8
    everything_else(client, headers)
    client.close()
    return expected


def everything_else(client, headers):
    """Every method of the client that is not above: it works, or is refused in words."""
    key = dict(headers)
    assert (
        client.get_model_metadata("bands", "1", headers=key)["versions"] == ["1"]
        and client.get_model_config("blur", "1", headers=key)["name"] == "blur"
    )
    assert {each["name"] for each in client.get_inference_statistics(headers=key)["model_stats"]} == {"blur", "bands"}
    assert (
        client.get_inference_statistics("blur", "1", headers=key)["model_stats"][0]["inference_stats"]["queue"]["count"]
        > 0
    )
    client.unload_model("blur", headers=key, unload_dependents=True)
    assert client.is_model_ready("blur", headers=key), "its next request loads it"
    check(
        client.infer(
            "blur", inputs(True), headers=dict(headers), timeout=10_000_000, priority=1, query_params={"from": "test"}
        )
    )
    body, length = triton.InferenceServerClient.generate_request_body(inputs(True), outputs=outputs(True))
    assert 0 < length < len(body)
    for words, call in (
        ("config cannot be given", lambda: client.load_model("blur", headers=dict(headers), config="{}")),
        (
            "1/model.onnx cannot be given",
            lambda: client.load_model("blur", headers=dict(headers), config="{}", files={"file:1/model.onnx": b"0"}),
        ),
        ("No model is named unknown", lambda: client.load_model("unknown", headers=dict(headers))),
        ("No model is named unknown", lambda: client.unload_model("unknown", headers=dict(headers))),
        ("no version 9", lambda: client.get_model_metadata("blur", "9", headers=dict(headers))),
        ("no version 9", lambda: client.get_model_config("blur", "9", headers=dict(headers))),
        ("no version 9", lambda: client.infer("blur", inputs(True), model_version="9", headers=dict(headers))),
        (
            "no output 'logits'",
            lambda: client.infer(
                "blur", inputs(True), outputs=[triton.InferRequestedOutput("logits")], headers=dict(headers)
            ),
        ),
        (
            "has the parameter classification",
            lambda: client.infer(
                "blur",
                inputs(True),
                outputs=[triton.InferRequestedOutput("mask", class_count=2)],
                headers=dict(headers),
            ),
        ),
        (
            "has the parameter shared_memory_region",
            lambda: client.infer("blur", in_shared_memory(), headers=dict(headers)),
        ),
        ("nothing here", lambda: client.get_system_shared_memory_status(headers=dict(headers))),
        ("nothing here", lambda: client.get_cuda_shared_memory_status(headers=dict(headers))),
        ("nothing here", lambda: client.register_system_shared_memory("region", "/key", 8, headers=dict(headers))),
        ("nothing here", lambda: client.unregister_system_shared_memory(headers=dict(headers))),
        ("nothing here", lambda: client.get_trace_settings(headers=dict(headers))),
        ("nothing here", lambda: client.update_trace_settings(settings={"trace_level": "OFF"}, headers=dict(headers))),
        ("nothing here", lambda: client.get_log_settings(headers=dict(headers))),
        ("nothing here", lambda: client.update_log_settings({"log_info": True}, headers=dict(headers))),
        ("Send a valid API key", lambda: client.infer("blur", inputs(True))),
    ):
        assert words in (said := refusal(call)), said
    client.register_plugin(WithKey(headers))
    assert client.is_model_ready("blur"), "the key comes from the plugin"


def in_shared_memory():
    tensor = triton.InferInput("image", list(IMAGE.shape), "FP32")
    tensor.set_shared_memory("region", IMAGE.nbytes)
    return [tensor]


class WithKey(triton.InferenceServerClientPlugin):
    """Adds the key to every request."""

    def __init__(self, headers):
        self._headers = headers

    def __call__(self, request):
        request.headers.update(self._headers)


async def aio(address, headers, expected):
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_model_ready("blur", headers=dict(headers))
        check(await client.infer("blur", inputs(True), headers=dict(headers)), expected)
        check(await client.infer("blur", inputs(False), outputs=outputs(False), headers=dict(headers)), expected)
        check(
            await client.infer(
                "blur",
                inputs(True),
                outputs=outputs(True),
                request_compression_algorithm="gzip",
                response_compression_algorithm="gzip",
                headers=dict(headers),
            ),
            expected,
        )
        await the_rest(client, headers)


async def the_rest(client, headers):
    key = dict(headers)
    assert await client.is_server_live(headers=key) and await client.is_server_ready(headers=key)
    assert await client.is_model_ready("bands", "1", headers=key) and not await client.is_model_ready(
        "unknown", headers=key
    )
    assert "statistics" in (await client.get_server_metadata(headers=key))["extensions"]
    assert (await client.get_model_metadata("bands", "1", headers=key))["outputs"][0]["shape"] == [-1, 3, -1, -1]
    assert (await client.get_model_config("bands", headers=key))["platform"] == "onnxruntime_onnx"
    await client.load_model("bands", headers=key)
    assert {each["name"]: each["state"] for each in await client.get_model_repository_index(headers=key)}[
        "bands"
    ] == "READY"
    await client.unload_model("bands", headers=key)
    assert (await client.get_inference_statistics("blur", "1", headers=key))["model_stats"][0]["inference_stats"][
        "fail"
    ]["count"] >= 1
    for words, call in (
        ("config cannot be given", client.load_model("blur", headers=key, config="{}")),
        ("No model is named unknown", client.infer("unknown", inputs(True), headers=dict(headers))),
        (
            "has the parameter classification",
            client.infer(
                "blur",
                inputs(True),
                outputs=[triton_aio.InferRequestedOutput("mask", class_count=2)],
                headers=dict(headers),
            ),
        ),
        ("nothing here", client.get_system_shared_memory_status(headers=key)),
        ("nothing here", client.get_trace_settings(headers=key)),
        ("nothing here", client.update_log_settings({"log_info": True}, headers=dict(headers))),
    ):
        try:
            await call
        except InferenceServerException as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"it was not refused: {words}")


if __name__ == "__main__":
    server, sent = sys.argv[1], {"Authorization": f"Bearer {sys.argv[2]}"}
    probability = sync(server, sent)
    print("sync")
    asyncio.run(aio(server, sent, probability))
    print("aio")
