"""Dynamic batching: grouping, waiting, failures, measured benefit."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.errors import ModelNonFinite
from app.imaging.picture import Picture
from app.serving import runtime
from app.serving.batching import Batcher
from app.serving.contract import Manifest
from app.serving.load import Load
from app.serving.pipeline import Predictor, Stop, Stopped
from app.serving.registry import Registry
from app.serving.runtime import Network
from tests.images import noise
from tests.records import register
from tests.services import wait_for
from tests.serving import networks


class Device:
    """Doubles what it is given, one batch at a time; `hold` keeps the next batches waiting until `let_go`."""

    def __init__(self):
        self.batches, self.entered, self._open = [], threading.Semaphore(0), threading.Event()
        self._open.set()

    def hold(self):
        self._open.clear()

    def let_go(self):
        self._open.set()

    def __call__(self, images, stop):
        self.batches.append(len(images))
        self.entered.release()
        assert self._open.wait(10)
        if (images < 0).any() and len(images) > 1:
            raise RuntimeError("out of memory")
        if (images < 0).any():
            raise ValueError("this image")
        return 2 * images


def one(value, side=4):
    return np.full((1, 1, side, side), value, np.float32)


@pytest.fixture
def crowd():
    with ThreadPoolExecutor(16) as threads:
        yield threads


def ask(crowd, batcher, images, stop=None):
    return crowd.submit(batcher, images, stop or Stop())


def gathered(batcher):
    return sum(len(seats) for seats in batcher._gathering.values())


def behind(crowd, device, batcher):
    """Something runs, so that what comes next gathers."""
    device.hold()
    first = ask(crowd, batcher, one(100))
    assert device.entered.acquire(timeout=10)
    return first


def test_requests_during_a_run_are_batched_and_each_gets_its_answer(crowd):
    device = Device()
    batcher = Batcher(device, 8, 60)
    first = behind(crowd, device, batcher)
    asked = [ask(crowd, batcher, one(n)) for n in range(5)]
    wait_for(lambda: gathered(batcher) == 5)
    device.let_go()
    assert [float(each.result(10).max()) for each in (first, *asked)] == [200, 0, 2, 4, 6, 8]
    assert device.batches == [1, 5]


def test_single_image_is_not_delayed(crowd):
    device = Device()
    assert (ask(crowd, Batcher(device, 8, 30), one(3)).result(10) == 6).all() and device.batches == [1]


def test_full_batch_starts_while_another_runs(crowd):
    device = Device()
    batcher = Batcher(device, 2, 60)
    behind(crowd, device, batcher)
    asked = []
    for n in range(5):
        asked.append(ask(crowd, batcher, one(n)))
        wait_for(lambda n=n: sum(device.batches) + gathered(batcher) == 2 + n)
    wait_for(lambda: device.batches == [1, 2, 2])
    device.let_go()
    assert [float(each.result(10).max()) for each in asked] == [0, 2, 4, 6, 8] and device.batches == [1, 2, 2, 1]


def test_batch_starts_after_the_waiting_time(crowd):
    device = Device()
    batcher = Batcher(device, 8, 0.01)
    behind(crowd, device, batcher)
    ask(crowd, batcher, one(1))
    assert device.entered.acquire(timeout=10), "the second batch must not wait for the first to end"
    device.let_go()


def test_only_images_of_one_size_share_a_batch(crowd):
    device = Device()
    batcher = Batcher(device, 8, 60)
    behind(crowd, device, batcher)
    asked = [ask(crowd, batcher, one(n, side=4 + 4 * (n % 2))) for n in range(4)]
    wait_for(lambda: gathered(batcher) == 4)
    device.let_go()
    assert [each.result(10).shape[-1] for each in asked] == [4, 8, 4, 8] and sorted(device.batches) == [1, 2, 2]


def test_request_abandoned_while_waiting_is_not_predicted(crowd):
    device, stop = Device(), Stop()
    batcher = Batcher(device, 8, 60)
    behind(crowd, device, batcher)
    leaver = ask(crowd, batcher, one(1), stop)  # and it leads
    wait_for(lambda: gathered(batcher) == 1)
    stayed = [ask(crowd, batcher, one(n)) for n in (2, 3)]
    wait_for(lambda: gathered(batcher) == 3)
    stop.ask()
    device.let_go()
    assert isinstance(leaver.exception(10), Stopped)
    assert [float(each.result(10).max()) for each in stayed] == [4, 6] and device.batches == [1, 2]
    with pytest.raises(Stopped):
        batcher(one(1), stop)


def test_failing_image_does_not_fail_its_batch(crowd):
    device = Device()
    batcher = Batcher(device, 8, 60)
    behind(crowd, device, batcher)
    asked = [ask(crowd, batcher, one(n)) for n in (1, -1, 2)]
    wait_for(lambda: gathered(batcher) == 3)
    device.let_go()
    assert [float(asked[n].result(10).max()) for n in (0, 2)] == [2, 4]
    assert str(asked[1].exception(10)) == "this image" and device.batches == [1, 3, 1, 1, 1]


def test_nan_answer_fails_only_its_own_image(crowd):
    device = Device()
    batcher = Batcher(
        lambda images, stop: np.where(device(images, stop) < 120, np.float32(np.nan), np.float32(0.9)), 8, 60
    )
    facts = networks.manifest(b"", scaling={"kind": "dataset", "mean": [0.0], "std": [1.0]})
    model = Predictor(Manifest.model_validate(facts), batcher)
    device.hold()
    pictures = [Picture(np.full((1, 8, 8), value, np.uint8), "png") for value in (200, 200, 50, 220)]
    first = crowd.submit(model.predict, pictures[0])
    assert device.entered.acquire(timeout=10)
    asked = [crowd.submit(model.predict, picture) for picture in pictures[1:]]
    wait_for(lambda: gathered(batcher) == 3)
    device.let_go()
    assert isinstance(asked[1].exception(10), ModelNonFinite)
    assert all(each.result(10).labels.all() for each in (first, asked[0], asked[2])) and device.batches == [1, 3]


def test_many_concurrent_callers_each_get_their_own_answer(crowd):
    device = Device()
    batcher = Batcher(device, 4, 0.002)

    def keep_asking(n):
        return all((batcher(one(100 * n + k, side=4 + n % 2), Stop()) == 2 * (100 * n + k)).all() for k in range(200))

    assert all(crowd.map(keep_asking, range(12)))
    assert (
        sum(device.batches) == 12 * 200 and max(device.batches) <= 4 and not batcher._gathering and not batcher._running
    )


# What is chosen at load ----------------------------------------------------------------------------------------------


def warmed(spent_s, *, threads=2, batch_most=8):
    content = networks.blur()
    network = Network(content, Manifest.model_validate(networks.manifest(content)), Load(), threads=threads)
    asked = []

    def quickest(works, clock):
        assert all(len(work()) for work in works.values())
        asked.append((set(works), clock.__name__))
        return {name: spent_s[name] for name in works}

    network.warm(batch_most=batch_most, quickest=quickest)
    return network, asked


@pytest.mark.parametrize("one_s, threads", [(0.0005, 1), (0.0029, 1), (0.0031, 2), (0.5, 2)])
def test_single_prediction_of_a_small_network_uses_one_thread(one_s, threads):
    network, asked = warmed({"one": one_s, "all": 100.0})
    assert network.threads == threads and network.bytes == threads * len(networks.blur())
    assert {clock for _, clock in asked} == {"thread_time"}
    batch = np.random.default_rng(0).random((1, 1, 16, 16), np.float32)
    assert network(batch, Stop()).shape == (1, 1, 16, 16)


@pytest.mark.parametrize(
    "one_s, all_s, batch",
    [(0.010, 0.080, 1), (0.010, 0.065, 1), (0.010, 0.063, 8), (0.010, 0.012, 8), (0.100, 0.101, 1)],
)
def test_batching_is_used_when_it_saves_a_fifth_per_image(one_s, all_s, batch):
    assert warmed({"wide": 1, "narrow": 1, "one": one_s, "all": all_s})[0].batch == batch


def test_nothing_is_measured_with_one_core_and_no_batching():
    network, asked = warmed({}, threads=1, batch_most=1)
    assert not asked and (network.threads, network.batch) == (1, 1)


def test_measurement_alternates_and_keeps_the_minimum(monkeypatch):
    monkeypatch.setattr(runtime, "MOST_TURNS", 5)
    now, order = [0.0], []
    costs = {"wide": iter([0.03, 0.01, 0.02, 0.02, 0.02]), "narrow": iter([0.05] * 5)}

    def work(name):
        order.append(name)
        now[0] += next(costs[name])

    assert runtime.take_turns({name: lambda name=name: work(name) for name in costs}, lambda: now[0]) == pytest.approx(
        {"wide": 0.01, "narrow": 0.05}
    )
    assert order == ["wide", "narrow"] * 5


class Held:
    """A network that counts its batches and waits to be let go."""

    def __init__(self, network):
        self.network, self.batches, self.gate = network, [], threading.Event()

    def __call__(self, images, stop):
        self.batches.append(len(images))
        assert self.gate.wait(10)
        return self.network(images, stop)


def test_batched_serving_does_not_change_answers(database, blobs, project_id, settings, monkeypatch):
    monkeypatch.setattr(
        runtime, "take_turns", lambda works, clock: {"wide": 1.0, "narrow": 1.0, "one": 0.01, "all": 0.011}
    )
    registry = Registry(
        database, blobs, settings.model_copy(update={"predict_slots": 6, "batch_most": 4, "batch_wait_ms": 60_000})
    )
    version = register(database, blobs, project_id, "blur", networks.blur())
    predictor = registry.get(project_id, version)
    batcher, held = predictor.run, Held(registry.network(version.id))
    monkeypatch.setattr(batcher, "_run", held)
    pictures = [Picture(noise(1, 24, 24, seed=seed), "png") for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(predictor.predict, pictures[0])
        wait_for(lambda: held.batches == [1])
        others = [threads.submit(predictor.predict, each) for each in pictures[1:]]
        wait_for(lambda: gathered(batcher) == 3)
        held.gate.set()
        answers = [each.result(10) for each in (first, *others)]
    assert held.batches == [1, 3]
    alone = Predictor(predictor.manifest, held.network)
    for answer, picture in zip(answers, pictures, strict=True):
        np.testing.assert_allclose(answer.probability, alone.predict(picture).probability, atol=1e-6)
    registry.close()


def test_batch_size_is_limited_by_the_prediction_slots(database, blobs, project_id, settings, monkeypatch):
    monkeypatch.setattr(
        runtime, "take_turns", lambda works, clock: {"wide": 1.0, "narrow": 1.0, "one": 0.01, "all": 0.011}
    )
    registry = Registry(database, blobs, settings.model_copy(update={"predict_slots": 3}))
    version = register(database, blobs, project_id, "blur", networks.blur())
    registry.get(project_id, version)
    assert registry.network(version.id).batch == 3
    registry.close()
