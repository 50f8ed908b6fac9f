"""A worker in the test process that runs the stand-in trainer."""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.store.blobs import Blobs
from app.store.session import Database
from app.store.tables import DatasetVersion, Job
from tests.records import add_dataset, submit, train_spec
from workers.worker import Worker

QUICK_MODELS = (sys.executable, str(Path(__file__).with_name("quick_models.py")))


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    """A worker that runs what it is told to: `worker.drain("train")`."""
    worker = Worker(settings, models=QUICK_MODELS)
    yield worker
    worker.stop()
    worker.installation.database.dispose()


@pytest.fixture
def in_background() -> Iterator[Callable[..., threading.Thread]]:
    """Run something in a thread that the test waits for at its end."""
    threads: list[threading.Thread] = []

    def start(function: Callable[..., Any], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def rings(database: Database, blobs: Blobs, project_id: uuid.UUID) -> DatasetVersion:
    """A dataset version."""
    return add_dataset(database, blobs, project_id)


@pytest.fixture
def submit_training(database: Database, project_id: uuid.UUID, rings: DatasetVersion) -> Callable[..., Job]:
    """Queue a training; keyword arguments change the spec, `behaviour` the child."""
    return lambda **changes: submit(database, project_id, train_spec(rings, **changes))
