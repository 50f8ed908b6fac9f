"""Memory and start time of the gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

from app.cli.options import database_of
from tests.gateway import GatewayProcess

ROOT = Path(__file__).parents[2]
MOST_RESIDENT_MIB = 130
MOST_READY_S = 2.0
MOST_TIMES_THE_LIBRARIES = 2.25
"""What is allowed on a machine so slow that importing the libraries alone takes more than 0.9 s of processor time."""
LIBRARIES = "import fastapi, pydantic, uvicorn, sqlalchemy.orm, structlog, numpy, jinja2, fsspec, prometheus_client"


def cpu_s(pid: int) -> float:
    """Processor time that a process has used; a busy machine does not change it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(make_settings, tmp_path: Path) -> tuple[GatewayProcess, float]:  # type: ignore[no-untyped-def]
    """A gateway as the command line starts it, on a migrated database: process, processor seconds to ready.

    Bytecode is kept, as anywhere but in a test environment that forbids it.
    """
    settings = make_settings(open=True)
    database_of(settings).dispose()
    gateway = GatewayProcess(settings, tmp_path / f"gateway-{uuid.uuid4()}.log", PYTHONDONTWRITEBYTECODE="")
    gateway.start()
    return gateway, cpu_s(gateway.process.pid)


def libraries_s() -> float:
    """Processor time of a process that imports the libraries and ends."""
    before = os.times()
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True, env=environment)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_a_gateway_is_ready_within_two_seconds_and_130_mib(make_settings, tmp_path: Path) -> None:
    spent, libraries = [], []
    for _ in range(3):  # the first compiles what was never compiled
        libraries.append(libraries_s())
        gateway, processor = start(make_settings, tmp_path)
        try:
            spent.append(processor)
            assert gateway.http.get("/v1/images").status_code == 200
            assert gateway.resident_bytes() < MOST_RESIDENT_MIB * 2**20
        finally:
            gateway.close()
    assert min(spent) < max(MOST_READY_S, MOST_TIMES_THE_LIBRARIES * min(libraries)), (spent, libraries)


def test_building_the_gateway_imports_no_network_library(tmp_path: Path) -> None:
    code = (
        "import sys, json, pathlib; from app.main import build; from app.settings import Settings; app ="
        " build(Settings(_env_file=None, data_dir=pathlib.Path(sys.argv[1]))); from app.openapi.document import"
        " describe; describe(app); print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    ).stdout
    assert set(json.loads(out)) & {"torch", "numba", "scipy", "skimage", "celery", "pandas"} == set()
