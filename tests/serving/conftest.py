"""A gateway with models in it: networks with known answers, registered as a training job would have done."""

from __future__ import annotations

import copy
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from app.imaging import encode_png
from app.settings import Settings
from app.store import keys, projects
from app.store.tables import Alias, Model, ModelVersion
from tests.conftest import QUICK
from tests.gateway.conftest import Gateway, _plain_log_lines, serve  # noqa: F401  (fixtures)
from tests.serving import networks


def register(database: Any, blobs: Any, project_id: uuid.UUID, name: str, content: bytes, **facts: Any) -> ModelVersion:
    """A new version of a model, as the worker writes it after an export."""
    sha256, size = blobs.put(project_id, content)
    manifest = networks.manifest(content, **facts)
    with database.write() as session:
        model = session.query(Model).filter_by(project_id=project_id, name=name).one_or_none() or Model(
            project_id=project_id, name=name, last_version=0
        )
        session.add(model)
        session.flush()
        model.last_version += 1
        version = ModelVersion(
            project_id=project_id,
            model_id=model.id,
            number=model.last_version,
            spec={},
            manifest=manifest,
            metrics={},
            onnx_sha256=sha256,
            onnx_bytes=size,
        )
        session.add(version)
        session.flush()
        return version


def point(database: Any, version: ModelVersion, alias: str) -> None:
    """Point an alias to a version."""
    with database.write() as session:
        row = session.query(Alias).filter_by(model_id=version.model_id, alias=alias).one_or_none()
        row = row or Alias(project_id=version.project_id, model_id=version.model_id, alias=alias)
        row.number = version.number
        session.add(row)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def png(*shape: int, seed: int = 0) -> bytes:
    """A PNG of random pixels."""
    return encode_png(noise(*shape, seed=seed))


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
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


@pytest.fixture(scope="module")
def served(world: Settings, serve: Callable[..., Gateway]) -> Gateway:  # noqa: F811
    """A gateway on each kind of database, for all tests of a module."""
    return serve(world)


@pytest.fixture
def gateway(served: Gateway) -> Gateway:
    """A project of its own in a shared gateway: nothing is in it but keys."""
    return alone(served)


def alone(served: Gateway) -> Gateway:
    """The gateway as a new project sees it."""
    mine, name = copy.copy(served), f"clinic-{uuid.uuid4().hex[:8]}"
    with served.database.write() as session:
        new = {
            role: keys.create(session, project=name, name=role, role=role)
            for role in ("viewer", "clinician", "engineer", "admin")
        }
        mine.project_id = projects.ensure(session, name).id
    mine.keys = served.keys | new
    return mine


@pytest.fixture
def predict(gateway: Gateway) -> Callable[..., Any]:
    """One image to one model: `predict("blur", content, accept="image/png", threshold=0.4)`."""
    return asker(gateway)


def asker(gateway: Gateway) -> Callable[..., Any]:
    def ask(
        model: str,
        content: bytes,
        *,
        accept: str | None = None,
        media: str = "image/png",
        who: str = "clinician",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> Any:
        sent = {"Content-Type": media} | ({"Accept": accept} if accept else {}) | (headers or {})
        return gateway.ask("POST", f"/v1/models/{model}/predict", who, content=content, params=options, headers=sent)

    return ask


@pytest.fixture
def registered(gateway: Gateway) -> Callable[..., ModelVersion]:
    """Register a network in the gateway's project: `registered("blur", networks.blur())`."""

    def add(name: str, content: bytes, **facts: Any) -> ModelVersion:
        return register(gateway.database, gateway.blobs, gateway.project_id, name, content, **facts)

    return add
