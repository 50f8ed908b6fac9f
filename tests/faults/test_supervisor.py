"""`toposerve up` restarts processes that die, with backoff, and gives up clearly."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.settings import Settings
from app.supervisor import MOST_CRASHES, STEADY_S, GaveUp, Supervised
from tests.deployments import Deployment
from tests.records import add_dataset, submit, train_spec, versions_made, wait_until_ended, wait_until_step
from tests.services import Process, environment, wait_for

# One process, with a clock of our own ---------------------------------------------------------------------------------


class Scripted:
    """A child that ends when a test says so."""

    def __init__(self) -> None:
        self.ended: int | None = None

    def status(self) -> int | None:
        return self.ended

    def terminate(self) -> None:
        self.ended = -signal.SIGTERM

    kill = terminate


class World:
    """A kept process, its children so far, and what was told."""

    def __init__(self, *, needed: bool):
        self.children: list[Scripted] = []
        self.told: list[str] = []
        self.supervised = Supervised("gateway", self._start, self.told.append, needed=needed)
        self.now = 100.0
        self.supervised.check(self.now)

    def _start(self) -> Scripted:
        self.children.append(Scripted())
        return self.children[-1]

    def crash(self, status: int, *, after_s: float = 1.0) -> None:
        """The child ends, is looked at, and is looked for `after_s` later."""
        self.now += after_s
        self.children[-1].ended = status
        self.supervised.check(self.now)

    def seconds_without(self) -> float:
        """Until the next child runs."""
        before, died = len(self.children), self.now
        while len(self.children) == before:
            self.supervised.check(self.now)
            self.now += 0.1
        return self.now - 0.1 - died


def test_first_crash_restarts_at_once_and_later_ones_with_backoff() -> None:
    world = World(needed=False)
    pauses = []
    for _ in range(8):
        world.crash(-signal.SIGSEGV)
        pauses.append(round(world.seconds_without()))
    assert pauses == [0, 1, 3, 7, 15, 30, 30, 30]
    assert world.told[0] == "gateway ended by signal 11 (Segmentation fault); starting another" and world.told[
        2
    ].endswith("in 3 s")


def test_backoff_resets_after_a_long_run() -> None:
    world = World(needed=True)
    for _ in range(3 * MOST_CRASHES):
        world.crash(-signal.SIGSEGV, after_s=STEADY_S)
        assert world.seconds_without() == 0


def test_required_process_that_keeps_crashing_is_given_up() -> None:
    world = World(needed=True)
    for _ in range(MOST_CRASHES - 1):
        world.crash(-signal.SIGSEGV)
        world.seconds_without()
    with pytest.raises(GaveUp, match=f"{MOST_CRASHES} times in a row.*Segmentation fault"):
        world.crash(-signal.SIGSEGV)


def test_process_that_fails_at_its_first_start_is_not_restarted() -> None:
    with pytest.raises(GaveUp, match="did not start: it ended with status 3"):
        World(needed=True).crash(3)
    later = World(needed=True)
    later.crash(-signal.SIGSEGV)
    later.seconds_without()
    later.crash(3)  # the database may be down for a moment
    assert later.seconds_without() > 0


# The real thing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start `toposerve up` with these settings."""
    started: list[Process] = []

    def start(settings: Settings, *options: str, **more: str) -> Process:
        command = [sys.executable, "-m", "app.cli", "up", "--open", "--port", "0", "--workers", "0", *options]
        started.append(Process(command, log=tmp_path / "up.log", env=environment(settings, **more)))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def address(settings: Settings, service: Process) -> str:
    """Where it answers."""

    def ready() -> str | None:
        assert service.running, service.output()
        try:
            url = json.loads((settings.data_dir / "service.json").read_text())["url"]
            return url if httpx.get(f"{url}/livez", timeout=5).status_code == 200 else None
        except (OSError, httpx.TransportError):
            return None

    return str(wait_for(ready, seconds=60, what=service.output))


def gateway_of(service: Process) -> psutil.Process:
    (child,) = wait_for(lambda: psutil.Process(service.pid).children(), what="the gateway")
    return child


@pytest.mark.parametrize("deployment", ["embedded"], indirect=True)
@pytest.mark.parametrize("lease_s", [30.0])
def test_gateway_restarts_after_segfault_without_disturbing_a_job(
    deployment: Deployment, up: Callable[..., Process]
) -> None:
    service = up(deployment.settings)
    worker = deployment.start_worker()
    url = address(deployment.settings, service)
    job = submit(
        deployment.database,
        deployment.project_id,
        train_spec(
            add_dataset(deployment.database, deployment.blobs, deployment.project_id),
            steps=100,
            behaviour={"step_s": 0.05},
        ),
    )
    wait_until_step(deployment.database, job, 5)
    first = gateway_of(service)
    first.send_signal(signal.SIGSEGV)
    wait_for(
        lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE, seconds=5, what="the gateway to die"
    )
    began = time.monotonic()
    # The socket never closed: who comes now waits, and is served by the next gateway.
    assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    assert time.monotonic() - began < 5, service.output()
    assert gateway_of(service).pid != first.pid and "Segmentation fault" in service.output()
    (row,) = wait_until_ended(deployment.database, job)
    assert (row.state, row.attempt, versions_made(deployment.database, deployment.project_id)) == (
        "succeeded",
        1,
        1,
    ) and worker.running
    second = gateway_of(service)
    assert service.terminate() == 0, service.output()
    assert not second.is_running()


def test_blob_store_that_cannot_be_opened_stops_the_gateway_with_a_message(
    make_settings: Callable[..., Settings], up: Callable[..., Process], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    service = up(make_settings(), TOPOSERVE_BLOB_URL=f"file://{tmp_path}/file/blobs")
    assert service.popen.wait(40) == 3, service.output()
    assert "The gateway did not start" in service.output().replace("\n", " ")
    assert f"{tmp_path}/file" in service.output()
