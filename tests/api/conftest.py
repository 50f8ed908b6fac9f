"""A dataset version for tests of jobs."""

from __future__ import annotations

import pytest

from app.store.tables import DatasetVersion
from tests.gateway import Gateway
from tests.records import add_dataset_row


@pytest.fixture
def bars(gateway: Gateway) -> DatasetVersion:
    """The dataset version bars@1: four images of 64 x 48."""
    return add_dataset_row(gateway)
