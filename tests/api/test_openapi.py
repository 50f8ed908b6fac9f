"""Schemathesis sends generated requests to every documented operation."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from app.settings import Settings
from tests.gateway import Gateway
from tests.images import noise_png

SECONDS = 35
LEFT_OUT = "DELETE /v1/keys/{key_id}"
"""It ends the very key that the attack comes with; test_keys.py has it."""
EXCUSED = "positive_data_acceptance,allow_header_conformance"
"""No schema can say which cursors, images and names are accepted. `Allow` names every method of an address, also where
two templates match it (`/reference` and `/{file}`)."""


def test_generated_requests_never_contradict_the_openapi_document(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway], tmp_path: Path
) -> None:
    gateway = serve(make_settings())
    gateway.upload(noise_png())
    command = [
        str(Path(sys.executable).with_name("st")),
        "--config-file",
        str(Path(__file__).parent / "schemathesis.toml"),
        "run",
        f"{gateway.url}/openapi.json",
        "--header",
        f"Authorization: Bearer {gateway.keys['admin']}",
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "10",
        "--max-time",
        str(SECONDS),
        "--seed",
        "1",
        "--no-shrink",
        "--continue-on-failure",
        "--exclude-checks",
        EXCUSED,
        "--exclude-name",
        LEFT_OUT,
        "--generation-database",
        "none",
        "--suppress-health-check",
        "all",
        "--no-color",
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=180, check=False)
    assert run.returncode == 0, run.stdout[-15_000:] + run.stderr[-3000:]
    turned_away = re.search(r"Authentication failed: (\d+) operation", run.stdout)
    assert turned_away is None or int(turned_away.group(1)) <= 1, run.stdout[
        -3000:
    ]  # making projects is not for an admin
    assert gateway.http.get("/livez").status_code == 200
