"""Wrong settings and unusable databases end each program with a sentence, never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import ROOT

UP = ("app.cli", "up", "--port", "0", "--workers", "0")
WRONG = {
    "TOPOSERVE_MAX_PIXELS": "abc",
    "TOPOSERVE_DATABASE_URL": "mysql://somebody:secret@host/name",
    "TOPOSERVE_BLOB_URL": "nonsense://here",
    "TOPOSERVE_REDIS_URL": "127.0.0.1:6379",
    "TOPOSERVE_LEASE_S": "-1",
}


def ended(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOPOSERVE_")}
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=kept | {"TOPOSERVE_DATA_DIR": str(folder)} | variables,
        check=False,
    )


@pytest.mark.parametrize("name", WRONG)
def test_wrong_setting_is_named_in_a_sentence(tmp_path: Path, name: str) -> None:
    told = ended(tmp_path / "data", *UP, **{name: WRONG[name]})
    assert told.returncode == 2 and "Traceback" not in told.stderr + told.stdout, told.stderr
    assert "Settings are not valid" in told.stderr and name.removeprefix("TOPOSERVE_").lower() in told.stderr.lower()
    assert "secret" not in told.stderr and not (tmp_path / "data").exists()


@pytest.mark.parametrize("program", ["workers", "uvicorn"])
def test_worker_and_gateway_alone_say_the_same(tmp_path: Path, program: str) -> None:
    command = {"workers": ("workers",), "uvicorn": ("uvicorn", "--factory", "app.main:create", "--port", "0")}[program]
    told = ended(tmp_path, *command, TOPOSERVE_MAX_PIXELS="abc")
    assert told.returncode != 0 and "Traceback" not in told.stderr, told.stderr
    assert "TOPOSERVE_MAX_PIXELS: Input should be a valid integer" in told.stderr


def test_file_that_is_no_database_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "toposerve.db").write_bytes(b"this is no database, and never was one" * 40)
    told = ended(tmp_path, *UP)
    assert told.returncode == 1 and "Traceback" not in told.stderr
    assert "The database cannot be used: file is not a database" in told.stderr
