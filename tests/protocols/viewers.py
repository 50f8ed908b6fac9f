"""The environment in which other people's clients run, unmodified."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from tests.services import ROOT, make

ENVIRONMENT = ".venv-viewers"


@cache
def python() -> Path:
    """The Python that has the clients; installed once, from the versions that tests/protocols/viewers.txt names."""
    made = make(f"{ENVIRONMENT}/.installed")
    assert made.returncode == 0, made.stdout + made.stderr
    return ROOT / ENVIRONMENT / "bin" / "python"


def told_by(program: str, *arguments: object) -> Any:
    """The last line that a program of this folder prints, as JSON."""
    command = [str(python()), str(Path(__file__).with_name(program)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
