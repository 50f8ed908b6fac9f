"""Latency and failure statistics of model versions and where they are shown."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from app.serving.pipeline import Predictor
from app.serving.statistics import RECENT, Statistics
from tests.images import noise_png
from tests.services import wait_for
from tests.serving import networks

VERSION = uuid.UUID(int=1)


class Clock:
    """Seconds that only a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def done(clock):
    """Statistics in which requests took as long as a test says."""
    statistics = Statistics(clock)

    def request(ms, *, queued_ms=0.0, fails=False, **timings):
        try:
            with statistics.request(VERSION, queued_ms) as counted:
                clock.now += ms / 1000
                counted.timings_ms = timings
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        return statistics.live(VERSION)

    request.statistics = statistics
    return request


def test_unused_version_has_no_statistics(done):
    live = done.statistics.live(VERSION)
    assert (live.requests, live.per_s, live.quantiles_ms, live.phases_ms, live.last_ms) == (0, 0.0, {}, {}, 0)
    assert done.statistics.used(10) == []


def test_quantiles_are_over_the_newest_durations(done):
    for ms in range(1000, 0, -1):
        live = done(float(ms))
    assert live.of == RECENT and live.requests == 1000
    newest = sorted(range(1, RECENT + 1))
    assert {q: round(ms) for q, ms in live.quantiles_ms.items()} == {
        0.5: newest[255],
        0.95: newest[486],
        0.99: newest[506],
    }
    assert {round(ms) for ms in done(5000.0).quantiles_ms.values()} <= {256, 257, 487, 488, 507, 508}


def test_single_duration_is_every_quantile(done):
    assert [round(ms, 6) for ms in done(7.0, queued_ms=3.0).quantiles_ms.values()] == [10.0] * 3


def test_rate_covers_the_last_minute(done, clock):
    for _ in range(120):
        live = done(500.0)
    assert live.per_s == pytest.approx(2.0, abs=0.05)
    clock.now += 30
    assert done.statistics.live(VERSION).per_s == pytest.approx(1.0, abs=0.05)
    clock.now += 31
    assert done.statistics.live(VERSION).per_s == 0.0
    assert done(0.0).per_s == pytest.approx(1 / 60), "a second of an hour ago is not counted again"


def test_failures_are_counted_but_not_in_latency(done):
    done(10.0, infer=6.0)
    done(10.0, infer=8.0)
    live = done(90.0, fails=True)
    assert (live.requests, live.failures, live.images, live.of) == (3, 1, 2, 2)
    assert live.phases_ms == {"queue": 0.0, "infer": 7.0} and max(live.quantiles_ms.values()) == pytest.approx(10.0)


def test_model_card_shows_latency_statistics(gateway, registered, predict):
    registered("blur", networks.blur())
    page = "/models/blur/versions/1"
    assert "Nothing was asked of it here yet" in gateway.ask("GET", page, "viewer").text
    for seed in range(3):
        assert predict("blur", noise_png(24, 32, seed=seed)).status_code == 200
    assert predict("blur", b"no image").status_code == 415
    live = gateway.ask("GET", page + ".json", "viewer").json()["live"]
    assert (live["loaded"], live["requests"], live["failures"], live["images"], live["of"], live["per_s"]) == (
        True,
        4,
        1,
        3,
        3,
        pytest.approx(4 / 60, abs=1e-3),
    )
    assert (
        list(live["latency_ms"]) == ["p50", "p95", "p99"] and 0 < live["latency_ms"]["p50"] <= live["latency_ms"]["p99"]
    )
    assert {"queue", "decode", "infer", "encode"} <= set(live["phases_ms"])
    text = gateway.ask("GET", page, "viewer").text
    assert (
        "4, 1 failed" in text
        and "Latency p95" in text
        and "this process only" in text
        and "<dt>Runs on</dt><dd>CPUExecutionProvider, 1 core when alone, no batches</dd>" in text
    )


def test_prometheus_metrics_cover_own_models_and_all_for_an_operator(gateway, registered, predict):
    from app.store import keys
    from app.store.tables import Project

    registered("blur", networks.blur())
    predict("blur", noise_png(24, 32))
    with gateway.database.write() as session:
        name = session.get_one(Project, gateway.project_id).name
        gateway.keys["operator here"] = keys.create(session, project=f"{name}-ops", name="ops", role="operator")
    mine, theirs, operators = (
        gateway.ask("GET", "/metrics", who).text for who in ("admin", "stranger", "operator here")
    )
    of_it = f'model="blur",phase="infer",project="{name}",version="1"'
    for text in (mine, operators):
        assert f"toposerve_model_phase_seconds_count{{{of_it}}} 1.0" in text
        assert (
            f'toposerve_model_requests_total{{model="blur",outcome="success",project="{name}",version="1"}} 1.0' in text
        )
        assert f'toposerve_model_latency_seconds{{model="blur",project="{name}",quantile="0.99",version="1"}}' in text
    assert name not in theirs and "toposerve_request_seconds" in theirs


def test_time_in_the_queue_is_counted(gateway, registered, monkeypatch):
    """One place to work: what waits for it says so."""
    registered("blur", networks.blur())
    slots, real, running, free = (
        gateway.services.registry.slots,
        Predictor.predict,
        threading.Semaphore(0),
        threading.Event(),
    )

    def held(self, *arguments, **options):
        running.release()
        assert free.wait(20)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Predictor, "predict", held)
    count = slots.running + 1

    def ask():
        gateway.http.post(
            "/v1/models/blur/predict",
            content=noise_png(24, 32),
            headers={"Authorization": f"Bearer {gateway.keys['clinician']}", "Content-Type": "image/png"},
        )

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for _ in range(slots.running):
        assert running.acquire(timeout=20)
    wait_for(lambda: slots.taken == count, what="the one that has to wait")
    time.sleep(0.03)
    free.set()
    for thread in threads:
        thread.join(20)
    (seen,) = gateway.ask("GET", "/v2/models/blur/stats").json()["model_stats"]
    queue, success = seen["inference_stats"]["queue"], seen["inference_stats"]["success"]
    assert queue["count"] == success["count"] == count and 20e6 < queue["ns"] < success["ns"]
