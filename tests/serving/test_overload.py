"""Too many predictions are refused with Retry-After; invalid tensors are refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.protocols.open_inference import MOST_IMAGES
from app.routes import predictions
from app.settings import Settings
from tests.api.test_bad_requests import resident
from tests.gateway import Gateway
from tests.images import noise, noise_png
from tests.serving import networks

SLOTS, WAITING, WORK_S, FACTOR = 2, 4, 0.05, 10


@pytest.fixture
def narrow(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> Gateway:
    """A gateway whose predictions take `WORK_S` and whose queue lets an admitted one wait for twice that."""
    gateway = serve(make_settings(predict_slots=SLOTS, predict_queue=WAITING, predict_patience=1.5)).new_project()
    gateway.register("blur", networks.blur())
    respond = predictions.respond

    def slowly(question: Any, stop: Any) -> Any:
        time.sleep(WORK_S)
        return respond(question, stop)

    monkeypatch.setattr(predictions, "respond", slowly)
    return gateway


async def one(gateway: Gateway, content: bytes) -> tuple[int, bytes, float]:
    """Status, head and body, and seconds of one prediction on a connection of its own."""
    host, port = gateway.url.removeprefix("http://").split(":")
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        "POST /v1/models/blur/predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer"
        f" {gateway.keys['clinician']}\r\nContent-Type: image/png\r\nContent-Length: {len(content)}\r\nConnection:"
        " close\r\n\r\n"
    )
    writer.write(head.encode() + content)
    answer = await reader.read()
    writer.close()
    return int(answer[9:12]), answer, time.perf_counter() - started


def test_overload_is_answered_or_refused_with_retry_after(narrow: Gateway) -> None:
    slots, content, most = narrow.services.registry.slots, noise_png(20, 20), 0

    async def open_loop(seconds: float) -> list[tuple[int, bytes, float]]:
        nonlocal most
        every, started, sent = WORK_S / SLOTS / FACTOR, time.perf_counter(), []
        while time.perf_counter() - started < seconds:  # whoever is waiting, the next one comes
            sent.append(asyncio.create_task(one(narrow, content)))
            most = max(most, slots.taken)
            await asyncio.sleep(max(0, started + len(sent) * every - time.perf_counter()))
        return await asyncio.gather(*sent)

    unloaded = [asyncio.run(one(narrow, content))[2] for _ in range(10)]
    asyncio.run(open_loop(0.3))
    before = resident()
    answers = asyncio.run(open_loop(1.2))
    statuses = [status for status, _, _ in answers]
    admitted = [spent for status, _, spent in answers if status == 200]
    print(
        f"{len(statuses)} sent, {len(admitted)} admitted; p99 {np.quantile(admitted, 0.99):.3f} s, unloaded"
        f" {np.median(unloaded):.3f} s"
    )  # pytest -rP shows it
    assert set(statuses) == {200, 503} and len(admitted) > SLOTS + WAITING
    for status, answer, _ in answers:
        if status == 503:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert json.loads(body)["code"] == "busy" and b"retry-after: " in head.lower()
    assert most <= SLOTS + WAITING
    assert resident() - before < 30 * 2**20
    assert slots.taken == 0 and asyncio.run(one(narrow, content))[0] == 200


# What may be asked of a model -----------------------------------------------------------------------------------------


@pytest.fixture
def infer(registered: Callable[..., Any], gateway: Gateway) -> Callable[..., tuple[int, str]]:
    """Status and code of a request under the Open Inference Protocol."""
    registered("blur", networks.blur())
    registered("broken", networks.not_a_number())
    registered("colour", networks.blur(channels=3), channels=3)

    def ask(image: np.ndarray, model: str = "blur", raw: str | None = None, **parameters: Any) -> tuple[int, str]:
        tensor = {
            "name": "image",
            "shape": list(image.shape),
            "datatype": "UINT8",
            "parameters": {"binary_data_size": image.nbytes},
        }
        head = (raw or json.dumps({"inputs": [tensor], "parameters": parameters})).encode()
        answer = gateway.ask(
            "POST",
            f"/v2/models/{model}/infer",
            "clinician",
            content=head + image.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
        )
        body = answer.json()
        assert body["error"] == body["detail"]
        return answer.status_code, body["code"]

    return ask


def test_tensors_that_do_not_fit_the_model_are_refused(infer: Callable[..., tuple[int, str]]) -> None:
    assert infer(noise(1, 3, 20, 20)) == (422, "model_input")
    assert infer(noise(1, 1, 20, 20), "colour") == (422, "model_input")
    assert infer(noise(1, 20, 20)) == (422, "model_input")
    assert infer(noise(0, 1, 20, 20)) == (422, "model_input")
    assert infer(noise(MOST_IMAGES + 1, 1, 2, 2)) == infer(noise(10_000, 1, 2, 2)) == (422, "model_input")
    assert infer(noise(1, 1, 20, 20), "broken") == (422, "model_non_finite")


def test_invalid_parameters_are_refused(infer: Callable[..., tuple[int, str]]) -> None:
    image = noise(1, 1, 20, 20)
    for threshold in (2, 0, -1, "half", True, None):
        assert infer(image, threshold=threshold) == (400, "invalid_request"), threshold
    tensor = (
        '{"inputs": [{"name": "image", "shape": [1, 1, 20, 20], "datatype": "UINT8", "parameters": {"binary_data_size":'
        ' 400}}], "parameters": {"threshold": %s}}'
    )
    for threshold in ("NaN", "Infinity", "1e999"):
        assert infer(image, raw=tensor % threshold) == (400, "invalid_json"), threshold
