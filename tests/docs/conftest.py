"""What the pages of the documentation are run against: a gateway with models, and workers."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.settings import Settings
from tests.conftest import QUICK
from tests.records import set_alias
from tests.serving import networks
from workers.worker import Worker


@contextmanager
def working(settings: Settings, **options: Any) -> Iterator[None]:
    """A worker for each lane while the block runs; `options` are theirs."""
    workers = {lane: Worker(settings, **options) for lane in ("quick", "train")}
    threads = [threading.Thread(target=worker.serve, args=(lane,)) for lane, worker in workers.items()]
    for thread in threads:
        thread.start()
    yield
    for worker in workers.values():
        worker.stop()
    for thread in threads:
        thread.join(20)
    for worker in workers.values():
        worker.installation.database.dispose()


@pytest.fixture(scope="module")
def clinic(tmp_path_factory, sqlite_template, serve):
    """A gateway with the two models that the pages name, and workers."""
    folder = tmp_path_factory.mktemp("clinic")
    shutil.copy(sqlite_template, folder / "toposerve.db")
    settings = Settings(_env_file=None, **QUICK, data_dir=folder)
    gateway = serve(settings).new_project()
    set_alias(gateway.database, gateway.register("vessels", networks.blur()), "champion")
    gateway.register("ct-vessels", networks.blur_3d(), dimensions=3)
    with working(settings):
        yield gateway
