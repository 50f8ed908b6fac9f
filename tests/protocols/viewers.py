"""The environment in which other people's clients run, unmodified."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ".venv-viewers"


@cache
def python() -> Path:
    """The Python that has the clients; installed once, from the versions that tests/protocols/viewers.txt names."""
    command = ["make", f"{ENVIRONMENT}/.installed", f"PYTHON={sys.executable}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return ROOT / ENVIRONMENT / "bin" / "python"


def told_by(program: str, *arguments: object) -> Any:
    """The last line that a program of this folder prints, as JSON."""
    command = [str(python()), str(Path(__file__).with_name(program)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
