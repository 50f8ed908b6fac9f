"""Fixtures for imaging tests: limits, real data folders, a memory check."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TOPOSERVE_DATA_SHARED", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def limits() -> Settings:
    """The product's own limits."""
    return Settings()


@pytest.fixture
def data():
    """Folder of a real data set, or a skip that says where it was looked for."""

    def folder(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"{name} is not in {DATA}; set TOPOSERVE_DATA_SHARED to the folder that holds it")
        return DATA / name

    return folder


@pytest.fixture
def lean():
    """Fails when the test raised this process's peak memory by more than 64 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 64, f"peak memory grew by {grown:.0f} MiB"
