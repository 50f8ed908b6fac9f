"""A clinic with two networks, a dataset and a worker, and both faces of the client."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.settings import Settings
from tests.conftest import QUICK
from tests.gateway import Gateway
from tests.serving import networks
from tests.workers.conftest import QUICK_MODELS
from toposerve_client import AsyncClient, Client
from toposerve_client.transport import Group
from workers.worker import Worker


class Awaited:
    """An AsyncClient whose methods are run to their end, so that one test tells both faces."""

    def __init__(self, subject: Any, runner: asyncio.Runner):
        self._subject, self._runner = subject, runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._subject, name)
        if isinstance(found, Group):
            return Awaited(found, self._runner)
        return self._to_its_end(found) if callable(found) else found

    def _to_its_end(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def ended(*values: Any, **named: Any) -> Any:
            result = method(*values, **named)
            return [each async for each in result] if inspect.isasyncgen(result) else await result

        return lambda *values, **named: self._runner.run(ended(*values, **named))


@pytest.fixture(scope="module")
def clinic(tmp_path_factory, sqlite_template, serve) -> Iterator[Gateway]:
    """A gateway and a worker with the stand-in trainer."""
    folder = tmp_path_factory.mktemp("clinic")
    shutil.copy(sqlite_template, folder / "toposerve.db")
    settings = Settings(_env_file=None, **QUICK, data_dir=folder)
    gateway = serve(settings)
    workers = [Worker(settings, models=QUICK_MODELS) for _ in range(2)]
    threads = [
        threading.Thread(target=worker.serve, args=(lane,))
        for worker, lane in zip(workers, ("quick", "train"), strict=True)
    ]
    for thread in threads:
        thread.start()
    yield gateway
    for worker, thread in zip(workers, threads, strict=True):
        worker.stop()
        thread.join(20)
        worker.installation.database.dispose()


@pytest.fixture
def project(clinic: Gateway) -> Gateway:
    """A new project with networks that show what they are given."""
    gateway = clinic.new_project()
    gateway.register("plain", networks.through(), scaling=networks.PLAIN)
    gateway.register("cube", networks.blur_3d(), dimensions=3)
    return gateway


@pytest.fixture(params=["blocking", "async"])
def connect(request: pytest.FixtureRequest, clinic: Gateway) -> Iterator[Callable[..., Any]]:
    """Open a client, of each face once: `connect(url, key)`."""
    if request.param == "blocking":
        opened: list[Client] = []
        yield lambda *values, **named: opened.append(Client(*values, **named)) or opened[-1]
        for client in opened:
            client.close()
        return
    with asyncio.Runner() as runner:
        awaited: list[AsyncClient] = []
        yield lambda *values, **named: awaited.append(AsyncClient(*values, **named)) or Awaited(awaited[-1], runner)
        for each in awaited:
            runner.run(each.close())


@pytest.fixture
def client(connect: Callable[..., Any], project: Gateway) -> Any:
    """The client of an engineer."""
    return connect(project.url, project.keys["engineer"])
