"""kserve's unmodified client gives the same answers as our API."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.services import ROOT, make
from tests.serving import networks

ENVIRONMENT = ".venv-kserve"


@pytest.fixture(scope="module")
def kserve_python() -> Path:
    """The Python that has kserve; installed once, from the versions that tests/protocols/kserve.txt names."""
    if sys.version_info >= (3, 14):
        pytest.skip("kserve 0.21 refuses to install on Python 3.14")
    made = make(f"{ENVIRONMENT}/.installed")
    assert made.returncode == 0, made.stdout + made.stderr
    return ROOT / ENVIRONMENT / "bin" / "python"


def test_kserve_client_predicts_and_shows_errors(kserve_python, make_settings, serve):
    gateway = serve(make_settings()).new_project()
    gateway.register("blur", networks.blur())
    command = [
        str(kserve_python),
        str(ROOT / "tests/protocols/kserve_client.py"),
        gateway.url,
        gateway.keys["clinician"],
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    the_same_as_we(said, gateway)
    for case, status, words in (
        ("unknown", 404, "No model is named unknown"),
        ("another in the body", 400, "names the model bands"),
        ("wrong shape", 422, "[-1, 1, -1, -1]"),
        ("wrong output", 400, "There is no output 'logits'"),
        ("no key", 401, "Send a valid API key"),
    ):
        told = said[case]
        assert told is not None and told[0] == status and words in told[1], (case, told)


def the_same_as_we(said, gateway):
    assert (said["live"], said["ready"], said["model ready"]) == (True, True, [True, True, False, False])
    image = np.random.default_rng(0).integers(0, 256, (2, 1, 33, 47)).astype(np.float32)
    body = {
        "inputs": [{"name": "image", "shape": list(image.shape), "datatype": "FP32", "data": image.ravel().tolist()}],
        "parameters": {"topology": True},
    }
    ours = gateway.ask("POST", "/v2/models/blur/infer", "clinician", json=body).json()
    expected = {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in ours["outputs"]}
    for way in ("json", "as a dict", "binary in", "binary out", "binary both, some outputs", "one version"):
        answer = said[way]
        assert answer.pop("id") == "scan-7" and answer.pop("model") == "blur"
        wanted = {"mask", "probability"} | (
            {"betti", "euler"} if way == "binary out" else {"betti"} if "some" in way else set()
        )
        assert set(answer) == wanted, way
        for name, (dtype, values) in answer.items():
            assert dtype == {"mask": "uint8", "probability": "float32"}.get(name, "int64")
            np.testing.assert_allclose(np.array(values), expected[name], atol=1e-6, err_msg=f"{way}: {name}")
