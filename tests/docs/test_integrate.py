"""Runs the curl, Python and JavaScript code of the integration page."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from app import imaging
from tests.images import noise
from topology.components import betti_numbers

PAGE = (Path(__file__).parents[2] / "docs/how-to/integrate.md").read_text()


def code(language: str) -> str:
    """Every block of a language, in the order of the page."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


COMMANDS = {
    "sh": ["bash", "-euo", "pipefail", "it.sh"],
    "python": [sys.executable, "-W", "error", "it.py"],
    "javascript": ["node", "it.mjs"],
}


@pytest.mark.parametrize("language", COMMANDS)
def test_documented_client_code_runs(clinic, tmp_path, language):
    command = COMMANDS[language]
    if language == "javascript" and shutil.which("node") is None:
        pytest.skip("there is no node here to run JavaScript with")
    affine = np.diag([0.5, 0.6, 2.0, 1.0])
    image, volume = noise(40, 56), noise(8, 24, 16)
    (tmp_path / "image.png").write_bytes(imaging.encode_png(image))
    (tmp_path / "scan.nii.gz").write_bytes(imaging.encode_nifti_gz(volume, affine))
    # Three clients with one key and one Idempotency-Key would get one job.
    (tmp_path / command[-1]).write_text(code(language).replace("scan-0042", f"scan-{language}"))
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | {
        "URL": clinic.url,
        "KEY": clinic.keys["clinician"],
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = imaging.decode_mask(
        clinic.ask(
            "POST",
            "/v1/models/vessels/predict",
            content=(tmp_path / "image.png").read_bytes(),
            headers={"Content-Type": "image/png"},
        ).content,
        clinic.settings,
    )
    np.testing.assert_array_equal(imaging.decode_mask((tmp_path / "mask.png").read_bytes(), clinic.settings), expected)
    answered = imaging.decode((tmp_path / "mask.nii.gz").read_bytes(), clinic.settings)
    assert answered.shape == volume.shape
    np.testing.assert_allclose(answered.affine, affine)
    if language == "sh":
        what_curl_left(tmp_path, expected, clinic)
    else:
        np.testing.assert_array_equal(
            imaging.decode_mask((tmp_path / "later.png").read_bytes(), clinic.settings), expected
        )
        beta0, beta1 = betti_numbers(expected > 0)
        for words in (
            "vessels:1",
            f"vessel {beta0} components {beta1} loops",
            "expectation_violated",
            "state: 'succeeded'" if language == "javascript" else "'state': 'succeeded'",
        ):
            assert words in done.stdout, words


def what_curl_left(folder, expected, clinic):
    report = json.loads((folder / "report.json").read_text())
    assert report["expectation"]["satisfied"] and report["topology"][0]["beta0"] == 1
    assert "event: state" in (folder / "events.txt").read_text()
    finished = json.loads((folder / "finished.json").read_text())
    assert finished["state"] == "succeeded" and finished["links"]["prediction"]
    (row,) = csv.DictReader((folder / "results.csv").read_text().splitlines())
    with zipfile.ZipFile(folder / "results.zip") as found:
        np.testing.assert_array_equal(imaging.decode_mask(found.read(row["mask"]), clinic.settings), expected)


def test_every_documented_language_has_code():
    assert all(len(code(language)) > 500 for language in (*COMMANDS, "csharp"))
