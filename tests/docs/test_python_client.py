"""Runs the Python page and the notebook against a service with a worker that really trains."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from app import imaging
from tests.images import noise
from tests.services import ROOT

PAGE = (ROOT / "docs/how-to/python.md").read_text()
NOTEBOOK = json.loads((ROOT / "docs/notebooks/rings.ipynb").read_text())


def ran(clinic, folder: Path, code: str, **variables: str) -> str:
    """What a program printed, which must not fail or warn."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    who = {"URL": clinic.url, "KEY": clinic.keys["engineer"], "PYTHONPATH": str(ROOT / "client")}
    (folder / "it.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "it.py"],
        check=False,
        cwd=folder,
        env=kept | who | variables,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_code_of_the_page_runs(clinic, tmp_path):
    (tmp_path / "image.png").write_bytes(imaging.encode_png(noise(40, 56)))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    said = ran(clinic, tmp_path, "\n".join(blocks))
    for words in ("(40, 56)", "Dice 1.0 Betti errors 0 0", "squares succeeded", "404 not_found"):
        assert words in said, said


def test_cells_of_the_notebook_run_in_their_order(clinic, tmp_path):
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    said = ran(clinic, tmp_path, "\n".join([*cells, "print(models, table)"]), STEPS="30")
    for words in (
        "rings@1 24 pairs",
        "with soft clDice succeeded",
        "edits change",
        "['rings:1', 'rings:2']",
        "beta0_error",
    ):
        assert words in said, said


def test_notebook_is_one_that_jupyter_opens():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert all(cell["id"] and not cell.get("outputs") for cell in NOTEBOOK["cells"]), (
        "without outputs, which grow stale"
    )
