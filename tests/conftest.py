"""Fixtures that all tests share: databases, a Redis, settings and deployments."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share cores: spinning threads of one slow down all

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.store.blobs import Blobs
from app.store.migrate import upgrade
from app.store.session import Database
from app.store.tables import Project
from tests.deployments import Deployment
from tests.services import Postgres, Redis, redis_client

pytest_plugins = ["tests.gateway"]

QUICK = {
    "lease_s": 2,
    "heartbeat_s": 0.4,
    "events_heartbeat_s": 0.3,
    "poll_s": 0.1,
    "sweep_s": 0.3,
    "stop_grace_s": 5,
    "stall_s": 120,
    "train_threads": 1,
    "onnx_threads": 1,
    "min_free_bytes": 0,
    "log_level": "info",
    "predict_patience": 1000,  # nobody is refused for the slowness of the machine
    "wrong_keys_a_minute": 100_000,
}
"""The product's figures, shortened by settings, never by code."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real Postgres; `borrow` and `hand_back` a database."""
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    folder = tmp_path_factory.mktemp("sqlite")
    database = Database(Settings(data_dir=folder))
    upgrade(database)
    database.dispose()
    return folder / "toposerve.db"


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis that this test may kill."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = Redis(folder)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty Redis that the module has for itself."""
    given = os.environ.get("TOPOSERVE_TEST_REDIS_URL")
    if given:
        redis_client(given).flushdb()
        yield given
        return
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.kill()


@pytest.fixture
def make_settings(
    tmp_path: Path, sqlite_template: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Settings]]:
    """Settings of a quick world with an empty migrated database: `make_settings("postgres", lease_s=1)`."""
    made: list[str] = []

    def make(kind: str = "sqlite", **changes: Any) -> Settings:
        folder = tmp_path / f"data-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        if kind == "postgres":
            server = request.getfixturevalue("postgres")
            made.append(server.borrow())
            changes = {"database_url": made[-1]} | changes
        else:
            shutil.copy(sqlite_template, folder / "toposerve.db")
        return Settings(_env_file=None, **{**QUICK, "data_dir": folder, **changes})

    yield make
    for url in made:
        request.getfixturevalue("postgres").hand_back(url)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def module_settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings with an empty migrated database of each kind, for all tests of a module."""
    folder = tmp_path_factory.mktemp("data")
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), folder / "toposerve.db")
        yield Settings(_env_file=None, **QUICK, data_dir=folder)
        return
    server = request.getfixturevalue("postgres")
    url = server.borrow()
    yield Settings(_env_file=None, **QUICK, data_dir=folder, database_url=url)
    server.hand_back(url)


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, make_settings: Callable[..., Settings]) -> Settings:
    """Settings of a quick world, once on each database."""
    return make_settings(request.param)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """An empty migrated database, once of each kind."""
    database = Database(settings)
    yield database
    database.dispose()


@pytest.fixture
def blobs(settings: Settings) -> Blobs:
    """An empty blob store in a folder."""
    return Blobs(settings)


@pytest.fixture
def project_id(database: Database) -> uuid.UUID:
    """A project to put things into."""
    with database.write() as session:
        project = Project(name="clinic")
        session.add(project)
        session.flush()
        return project.id


@pytest.fixture
def lease_s() -> float:
    """Seconds until a silent worker is taken for dead; a test in which none dies may ask for more."""
    return 2.0


@pytest.fixture(params=["embedded", "distributed"])
def deployment(
    request: pytest.FixtureRequest, tmp_path: Path, make_settings: Callable[..., Settings], lease_s: float
) -> Iterator[Deployment]:
    """The service on SQLite, and on Postgres and Redis; `deployment.start_worker()` starts real processes."""
    distributed = request.param == "distributed"
    redis = request.getfixturevalue("own_redis") if distributed else None
    settings = (
        make_settings("postgres", redis_url=redis.url, lease_s=lease_s)
        if redis
        else make_settings("sqlite", lease_s=lease_s)
    )
    deployment = Deployment(settings, tmp_path, redis)
    yield deployment
    deployment.close()


def dicom_program(name: str) -> str:
    """A program of Debian's dcmtk, dicom3tools or Orthanc; skipped where it is not installed, and failed in CI."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        reason = f"no {name}: install it with `apt-get install dcmtk dicom3tools orthanc orthanc-dicomweb`"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def dciodvfy() -> Callable[[Path], list[str]]:
    """The errors that dciodvfy of dicom3tools finds in a file, by the rules of PS3.3."""

    def run(path: Path) -> list[str]:
        done = subprocess.run(
            [dicom_program("dciodvfy"), "-new", str(path)], capture_output=True, text=True, check=False
        )
        said = (done.stdout + done.stderr).splitlines()
        assert said, "dciodvfy said nothing"
        return [line for line in said if line.startswith(("Error", "Abort"))]

    return run


@pytest.fixture(scope="session")
def dcmtk() -> Callable[..., str]:
    """Runs a program of dcmtk, and gives what it says."""

    def run(name: str, *arguments: str) -> str:
        done = subprocess.run([dicom_program(name), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
