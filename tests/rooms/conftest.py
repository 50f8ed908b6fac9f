"""A gateway on each database, shared by all tests, and in it a house of its own for each:
two projects with their keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from app.settings import Settings
from app.store.tables import DatasetVersion
from tests.conftest import QUICK
from tests.rooms.house import Gateway, House, dataset, opened


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that stays for all tests of the rooms."""
    changes: dict[str, str | Path] = {"data_dir": tmp_path_factory.mktemp(request.param)}
    server = request.getfixturevalue("postgres") if request.param == "postgres" else None
    if server:
        changes["database_url"] = server.borrow()
    plain = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]
    structlog.configure(
        processors=plain, wrapper_class=structlog.make_filtering_bound_logger(40)
    )  # the default draws every local variable into a traceback
    with opened(Settings(_env_file=None, **{**QUICK, "events_heartbeat_s": 0.3, **changes})) as gateway:
        yield gateway
    structlog.reset_defaults()
    if server:
        server.hand_back(changes["database_url"])


@pytest.fixture
def house(gateway: Gateway) -> Iterator[House]:
    """Two new projects with a key of every role in the first."""
    house = House(gateway)
    yield house
    house.leave()


@pytest.fixture
def data(house: House) -> DatasetVersion:
    """The dataset version bars@1: four images of 64 x 48."""
    return dataset(house)
