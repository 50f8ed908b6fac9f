"""Predictions under load: alias moves, full queues, disconnects, tiling of large images."""

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app import imaging
from app.errors import Busy
from app.imaging import encode_png
from app.serving.load import Load
from app.serving.pipeline import Stopped
from app.serving.slots import BURST, HOLD_S, MANY_REFUSED, CallerLeft, Slots
from tests.gateway import told
from tests.images import noise, noise_png
from tests.records import set_alias
from tests.services import wait_for
from tests.serving import networks


def test_alias_move_under_load_neither_fails_nor_mixes_answers(registered, gateway):
    """Versions 1 and 2 answer black and white: an answer of both would show."""
    versions = [registered("tones", networks.constant(value)) for value in (0.1, 0.9)]
    set_alias(gateway.database, versions[0], "champion")
    expected = {"tones:1": {0}, "tones:2": {255}}
    ask, moved, answers = gateway.predict, threading.Event(), []

    def keep_asking(_):
        while not moved.is_set():
            answers.append(ask("tones@champion", noise_png(32, 32)))

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(keep_asking, n) for n in range(4)]
        for move in range(50):
            version = {"version": 2 - move % 2}
            response = gateway.ask("PUT", "/v1/models/tones/aliases/champion", "admin", json=version)
            assert response.status_code == 200, response.text
        wait_for(lambda: len(answers) > 20)
        moved.set()
        for each in asking:
            each.result()
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    used = [answer.headers["toposerve-model"] for answer in answers]
    assert set(used) == set(expected)
    for answer, ref in zip(answers, used, strict=True):
        assert set(np.unique(imaging.decode_mask(answer.content, gateway.settings))) == expected[ref]


def test_alias_move_applies_to_the_next_request(registered, gateway):
    versions = [registered("tones", networks.constant(value)) for value in (0.1, 0.9)]
    ask = gateway.predict
    for version in (1, 2, 1):
        set_alias(gateway.database, versions[version - 1], "champion")
        assert ask("tones@champion", noise_png(32, 32)).headers["toposerve-model"] == f"tones:{version}"


class Gate:
    """A network run that waits until it is let go."""

    def __init__(self, predictor):
        self.run, self.entered, self.opened = predictor.run, threading.Semaphore(0), threading.Event()
        self.stopped = threading.Event()
        predictor.run = self

    def __call__(self, batch, stop):
        self.entered.release()
        try:
            wait_for(lambda: self.opened.is_set() or stop.options() is None, what="the gate")
        except Stopped:
            self.stopped.set()
            raise
        return self.run(batch, stop)


@pytest.fixture
def narrow(make_settings, serve):
    """A gateway in which one prediction runs and one waits."""
    return serve(make_settings(predict_slots=1, predict_queue=1)).new_project()


def gated(gateway, monkeypatch):

    version = gateway.register("blur", networks.blur())
    return Gate(gateway.services.registry.get(gateway.project_id, version))


def test_request_over_the_queue_limit_gets_retry_after(narrow, monkeypatch):
    gate, ask, slots = gated(narrow, monkeypatch), narrow.predict, narrow.services.registry.slots
    with ThreadPoolExecutor(2) as threads:
        admitted = [threads.submit(ask, "blur", noise_png(20, 20)) for _ in range(2)]
        wait_for(lambda: slots.taken == 2)
        refused = ask("blur", noise_png(20, 20))
        assert told(refused) == (503, "busy") and int(refused.headers["retry-after"]) >= 1
        assert narrow.ask("GET", "/livez").status_code == 200  # nothing else waits for predictions
        gate.opened.set()
        assert [each.result().status_code for each in admitted] == [200, 200]
    assert ask("blur", noise_png(20, 20)).status_code == 200


def hang_up_during(gateway, content):
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = (
        f"POST /v1/models/blur/predict?store=true HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer"
        f" {gateway.keys['clinician']}\r\nContent-Type: image/png\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def test_disconnected_client_frees_its_slot(narrow, monkeypatch):
    gate, slots = gated(narrow, monkeypatch), narrow.services.registry.slots
    before = narrow.count_everything()
    running = hang_up_during(narrow, noise_png(20, 20))
    assert gate.entered.acquire(timeout=10)
    waiting = hang_up_during(narrow, noise_png(20, 20, seed=1))
    wait_for(lambda: slots.taken == 2)
    running.close(), waiting.close()
    wait_for(lambda: slots.taken == 0, what="both places")
    assert gate.stopped.is_set() and not gate.entered.acquire(blocking=False), "the one that waited must never have run"
    assert narrow.count_everything() == before
    gate.opened.set()
    assert narrow.predict("blur", noise_png(20, 20)).status_code == 200


def test_networks_are_loaded_before_the_first_prediction(registered, gateway, serve):
    version = registered("blur", networks.blur())
    set_alias(gateway.database, version, "champion")
    restarted = serve(gateway.settings).new_project()
    restarted.project_id, restarted.keys = gateway.project_id, gateway.keys
    registry = restarted.services.registry
    assert registry.wait_until_warm(30)
    loaded = registry.network(version.id)
    assert loaded is not None
    assert restarted.predict("blur@champion", noise_png(20, 20)).status_code == 200
    assert registry.network(version.id) is loaded


def with_slots(count, queue, story):
    """Run a story with slots, all of which are free at its end."""

    async def told_whole():
        slots = Slots(count, queue)
        await story(slots)
        await asyncio.sleep(0)
        assert slots.taken == 0
        slots.close()

    asyncio.run(told_whole())


def test_slots_limit_running_and_waiting_work():
    async def story(slots):
        go, never = threading.Event(), asyncio.Event()
        tasks = [asyncio.create_task(slots.run(lambda stop, n=n: go.wait(10) and n, never.wait())) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as refusal:
            await slots.run(lambda stop: None, never.wait())
        assert refusal.value.retry_after_s >= 1 and slots.taken == 3
        go.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2]

    with_slots(2, 1, story)


def test_expected_wait_decides_who_is_let_in_and_everybody_is_told_a_time_of_their_own():
    async def story():
        slots, never, go = Slots(2, 1000, patience=1.5), asyncio.Event(), threading.Event()
        for _ in range(40):  # so long that the figure is known
            await slots.run(lambda stop: time.sleep(0.01), never.wait(), "quick")
        tasks = [asyncio.create_task(slots.run(lambda stop: go.wait(20), never.wait(), "quick")) for _ in range(9)]
        await asyncio.sleep(0)
        admitted = slots.taken
        assert admitted == 2 + 2 + 2 * BURST  # two run, two would wait for their patience, and the burst
        told = [slots.refusal("quick").retry_after_s for _ in range(1000)]
        assert told == sorted(told) and told[0] == 1 and 3 <= told[-1] <= 30  # 1000 x 10 ms on two slots
        assert slots.refusal("") is not None and slots.expects("quick") < slots.expects("never asked")
        go.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(each, Busy) for each in ended) == 9 - admitted
        assert await slots.run(lambda stop: 7, never.wait(), "quick") == 7
        slots.close()

    asyncio.run(story())


def test_many_refusals_are_held_so_that_clients_without_rest_take_no_time():
    slots = Slots(1, 0)
    wait_for(lambda: time.monotonic() % 1 < 0.5)
    held = [slots.hold_s() for _ in range(MANY_REFUSED + 5)]
    assert held[:MANY_REFUSED] == [0.0] * MANY_REFUSED and held[-1] == HOLD_S


def test_prediction_without_a_place_is_refused_before_its_body_is_read(narrow, monkeypatch):
    gate, slots = gated(narrow, monkeypatch), narrow.services.registry.slots
    running = [hang_up_during(narrow, noise_png(20, 20, seed=seed)) for seed in range(2)]
    wait_for(lambda: slots.taken == 2)
    head = f"POST /v1/models/blur/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**20}\r\n\r\n"
    answer = narrow.raw(head.encode())  # and nothing of the body
    assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: " in answer
    gate.opened.set()
    for each in running:
        each.close()


def test_error_reaches_its_caller_and_frees_the_slot():
    async def story(slots):
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await slots.run(lambda stop: 1 / 0, asyncio.Event().wait())
            await asyncio.sleep(0)

    with_slots(1, 0, story)


def test_abandoned_work_is_asked_to_stop():
    async def story(slots):
        gone, entered, left = asyncio.Event(), threading.Event(), threading.Event()

        def work(stop):
            entered.set()
            wait_for(lambda: stop.asked)
            left.set()

        task = asyncio.create_task(slots.run(work, gone.wait()))
        await asyncio.to_thread(entered.wait, 10)
        gone.set()
        with pytest.raises(CallerLeft):
            await task
        assert await asyncio.to_thread(left.wait, 10)

    with_slots(1, 1, story)


def test_large_image_is_tiled_and_answered_whole(registered, gateway):
    registered("whole", networks.pyramid(), multiple=2, receptive_field=networks.PYRAMID_FIELD, tile=[512, 512])
    registered("tiled", networks.pyramid(), multiple=2, receptive_field=networks.PYRAMID_FIELD, tile=[96, 96])
    content = encode_png(noise(400, 500))
    ask = gateway.predict
    assert ask("whole", content).content == ask("tiled", content).content


def test_prediction_counts_as_single_only_without_others_running_or_admitted():
    admitted = 1
    load = Load(lambda: admitted)
    with load.one_more() as first, load.one_more() as second:
        assert (first, second) == (True, False)
    admitted = 2  # the other one is still being decoded
    with load.one_more() as third:
        assert not third
    admitted = 1
    with load.one_more() as fourth:
        assert fourth
