"""A gateway on each database, and a dataset in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.settings import Settings
from app.store.tables import DatasetVersion
from tests.rooms.house import House, dataset, opened


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    """A gateway with a key of every role."""
    with opened(settings) as house:
        yield house


@pytest.fixture
def data(house: House) -> DatasetVersion:
    """The dataset version bars@1: four images of 64 x 48."""
    return dataset(house)
