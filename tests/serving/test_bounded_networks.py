"""Networks in processes of their own: memory, time, crashes, and answers equal to those of the gateway's process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from app.errors import ModelRejected, ModelResources, PredictionTimeout
from app.imaging import encode_png
from app.serving import trial
from app.serving.bounded import BoundedNetwork, Bounds
from app.serving.contract import Manifest
from app.serving.load import Load
from app.serving.pipeline import Stop, Stopped
from app.serving.registry import Registry
from app.serving.runtime import Network
from app.settings import GiB, MiB, Settings
from tests.gateway import Gateway, GatewayProcess, told
from tests.images import noise, noise_png
from tests.records import register, set_alias
from tests.sandbox.test_sandbox import has_ended
from tests.services import wait_for
from tests.serving import networks
from tests.serving.networks import FACTS

FOREIGN = {"verification": None}
"""What the manifest of an imported network says."""


def bounded(content: bytes, *, memory_bytes: int = GiB, run_s: float = 60, **facts: Any) -> BoundedNetwork:
    manifest = Manifest.model_validate(networks.manifest(content, **facts))
    return BoundedNetwork(content, manifest, Load(), Bounds(memory_bytes, run_s), threads=1)


def batch(*size: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 1, *size), dtype=np.float32)


def test_answers_are_those_of_a_network_in_this_process() -> None:
    content = networks.with_threshold()
    extra = {"extra_outputs": ["persistence_threshold"]}
    ours = Network(content, Manifest.model_validate(networks.manifest(content, **extra)), Load(), threads=1)
    theirs = bounded(content, **extra)
    assert (theirs.place, theirs.threads, theirs.batch) == (ours.place, ours.threads, ours.batch)
    for images in (batch(31, 47, count=2), batch(200, 100)):
        expected, answer = ours(images, Stop()), theirs(images, Stop())
        assert np.array_equal(answer, expected) and answer.flags.writeable
        name = "persistence_threshold"
        assert np.array_equal(theirs.extra(name, images, Stop()), ours.extra(name, images, Stop()))


def test_child_ends_with_its_network() -> None:
    network = bounded(networks.blur())
    child = network.pid
    assert child is not None and not has_ended(child)
    del network
    wait_for(lambda: has_ended(child), what="the end of the child")


def test_image_that_needs_too_much_memory_is_refused_and_the_next_one_is_answered() -> None:
    network = bounded(networks.squared(), tile=[32, 32])
    assert network(batch(32, 32), Stop()).shape == (1, 1, 32, 32)
    with pytest.raises(ModelResources):
        network(batch(256, 256), Stop())  # 65536 squared numbers are 16 GiB
    assert network(batch(32, 32), Stop()).shape == (1, 1, 32, 32)


def test_network_whose_process_was_killed_answers_the_next_image() -> None:
    network = bounded(networks.slow(), tile=[16, 16])
    killer = threading.Timer(0.3, lambda: os.kill(network.pid or 0, signal.SIGKILL))
    killer.start()
    with pytest.raises(ModelResources):
        network(batch(2000, 2000), Stop())
    assert network(batch(16, 16), Stop()).shape == (1, 1, 16, 16)


def test_run_beyond_its_time_is_ended() -> None:
    network = bounded(networks.slow(), tile=[16, 16], run_s=10)
    network._bounds = network._child._bounds = Bounds(GiB, 0.5)
    child, started = network.pid, time.monotonic()
    with pytest.raises(PredictionTimeout):
        network(batch(2000, 2000), Stop())
    assert time.monotonic() - started < 8
    wait_for(lambda: has_ended(child), what="the end of the child")


def test_run_ends_when_nobody_waits_for_it_and_its_process_stays() -> None:
    network, stop = bounded(networks.slow(), tile=[16, 16]), Stop()
    child = network.pid
    threading.Timer(0.3, stop.ask).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        network(batch(1000, 1000), stop)
    assert time.monotonic() - started < 8
    assert network(batch(16, 16), Stop()).shape == (1, 1, 16, 16) and network.pid == child


def test_waiting_for_the_process_ends_when_nobody_waits_for_the_answer() -> None:
    network, first, second = bounded(networks.slow(), tile=[16, 16]), Stop(), Stop()

    def run() -> None:
        with pytest.raises(Stopped):
            network(batch(1000, 1000), first)

    running = threading.Thread(target=run)
    running.start()
    wait_for(network._lock.locked)
    threading.Timer(0.1, second.ask).start()
    with pytest.raises(Stopped):
        network(batch(16, 16), second)
    assert running.is_alive()
    first.ask()
    running.join()


# Import ---------------------------------------------------------------------------------------------------------------


def test_trial_runs_the_largest_pieces_that_serving_hands_over() -> None:
    manifest = Manifest.model_validate(networks.manifest(b"", multiple=16, tile=[96, 64]))
    small, other, uncut, tiles = trial._tried(manifest, 3)
    assert (uncut, tiles) == ((1, [144, 64]), (3, [96, 64]))
    assert small[0] == 1 and other[0] == 2 and all(a != b for a, b in zip(small[1], other[1], strict=True))


def test_network_that_fails_at_its_tile_is_refused_with_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    content, facts = networks.squared(), FACTS | {"tile": [96, 96]}
    with pytest.raises(ModelRejected, match=r"more memory than a trial has for 1 image of 768 x 512"):
        trial.judge(content, FACTS, "manifest.json")  # the usual tile, 512 x 512: 575 GiB
    assert trial.judge(content, facts, "manifest.json").tile == [96, 96]  # 0.7 GiB


# Over HTTP ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gateway_process(make_settings: Callable[..., Settings], tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    """Start a gateway of its own that serves without keys."""
    running = []

    def start(settings: Settings, **variables: str) -> GatewayProcess:
        gateway = GatewayProcess(settings, tmp_path / "gateway.log", **variables)
        running.append(gateway)
        gateway.start()
        return gateway

    yield start
    for gateway in running:
        gateway.close()


def test_imported_network_that_takes_all_memory_harms_no_gateway(
    make_settings: Callable[..., Settings], gateway_process: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    """It was imported before its trial was as strict as it is, and an alias names it, so it is loaded at the start."""
    from app.store import projects
    from app.store.blobs import Blobs
    from app.store.session import Database

    settings = make_settings(open=True, network_memory_bytes=GiB)
    database, blobs = Database(settings), Blobs(settings)
    with database.write() as session:
        project_id = projects.ensure(session, projects.DEFAULT).id
    version = register(database, blobs, project_id, "squared", networks.squared(), **FOREIGN)
    set_alias(database, version, "champion")
    register(database, blobs, project_id, "blur", networks.blur())
    gateway = gateway_process(settings)
    before, pid = gateway.resident_bytes(), gateway.process.pid
    headers = {"Content-Type": "image/png"}

    def predict(model: str, side: int) -> Any:
        return gateway.http.post(f"/v1/models/{model}/predict", content=noise_png(side, side), headers=headers)

    for _ in range(2):
        assert told(predict("squared@champion", 96)) == (422, "model_resources")
        assert predict("blur", 96).status_code == 200
    assert gateway.process.pid == pid and gateway.process.running
    assert gateway.peak_bytes() - before < 200 * MiB
    children = psutil.Process(pid).children(recursive=True)
    gateway.process.kill()
    wait_for(lambda: not any(child.is_running() for child in children), what="the end of the children")


def test_import_of_such_a_network_is_refused(sqlite_gateway: Gateway) -> None:
    from tests.api.test_model_import import package, send

    gateway = sqlite_gateway.new_project()
    refused = send(gateway, package(networks.squared()))
    assert told(refused) == (422, "model_rejected") and "`tile`" in refused.json()["detail"]


@pytest.mark.parametrize("foreign", [{}, FOREIGN], ids=["own", "imported"])
def test_prediction_beyond_the_deadline_is_answered_503_and_stopped(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway], foreign: dict[str, Any]
) -> None:
    gateway = serve(make_settings(predict_timeout_s=2)).new_project()
    version = gateway.register("slow", networks.slow(), tile=[16, 16], **foreign)
    gateway.services.registry.get(gateway.project_id, version)
    assert gateway.predict("slow", noise_png(8, 8)).status_code == 200
    started = time.monotonic()
    answer = gateway.predict("slow", encode_png(noise(1500, 1500)))
    assert told(answer) == (503, "prediction_timeout") and time.monotonic() - started < 8
    wait_for(lambda: gateway.services.registry.slots.taken == 0, seconds=5, what="the place")
    assert gateway.predict("slow", noise_png(8, 8)).status_code == 200


# Loading --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., tuple[Registry, Any, Any]]]:
    from app.store.blobs import Blobs
    from app.store.session import Database

    opened = []

    def make(**changes: Any) -> tuple[Registry, Any, Any]:
        settings = make_settings(**changes)
        database, blobs = Database(settings), Blobs(settings)
        opened.append(Registry(database, blobs, settings))
        return opened[-1], database, blobs

    yield make
    for each in opened:
        each.close()


def put(database: Any, blobs: Any, **facts: Any) -> Any:
    from app.store import projects

    with database.write() as session:
        project_id = projects.ensure(session, "clinic").id
    return register(database, blobs, project_id, "blur", networks.blur(), **facts)


@pytest.mark.parametrize(
    ("setting", "facts", "in_a_child"),
    [("imported", {}, False), ("imported", FOREIGN, True), ("all", {}, True)],
)
def test_imported_networks_run_in_children_and_on_request_all(
    registry: Callable[..., Any], setting: str, facts: dict[str, Any], in_a_child: bool
) -> None:
    opened, database, blobs = registry(bounded_networks=setting)
    version = put(database, blobs, **facts)
    opened.get(version.project_id, version)
    assert isinstance(opened.network(version.id), BoundedNetwork) == in_a_child


def test_network_whose_loading_ended_a_process_is_loaded_in_a_child_from_then_on(registry: Callable[..., Any]) -> None:
    opened, database, blobs = registry()
    version = put(database, blobs)
    child = os.fork()
    if child == 0:  # a gateway that a network crashes while it is being loaded
        opened._network = lambda *_args, **_options: os._exit(9)
        opened.get(version.project_id, version)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    for _ in range(2):
        opened.get(version.project_id, version)
        assert isinstance(opened.network(version.id), BoundedNetwork)
        opened.unload(version.id)


def test_network_that_was_loaded_leaves_no_note(registry: Callable[..., Any]) -> None:
    opened, database, blobs = registry()
    version = put(database, blobs)
    opened.get(version.project_id, version)
    assert list(opened._settings.scratch.iterdir()) == []
    assert isinstance(opened.network(version.id), Network)
