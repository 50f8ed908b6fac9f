"""The probe: norms, cosines and weights of terms on batches, by hand and from the command line."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from models.events import Events
from models.probe import probe
from tests.models.training_runs import run

TERMS = [{"name": "cross_entropy"}, {"name": "dice"}, {"name": "betti_matching", "weight": 0.5, "from_step": 900}]


def probed(spec, world, **options):
    found = probe(spec, world, events=Events(io.StringIO()), batches=3, **options)
    return found, {each["name"]: each for each in found["terms"]}


def test_the_equal_weight_makes_a_term_pull_as_hard_as_the_pixel_losses(world, spec):
    spec = {**spec, "loss": {"terms": TERMS, "neighbour_penalty": None}}
    found, terms = probed(spec, world)
    assert found["batches"] == 3 and terms["betti_matching"]["weight"] == 0.5
    equal = terms["betti_matching"]["equal_weight"]
    again, balanced = probed({**spec, "loss": {"terms": [*TERMS[:2], TERMS[2] | {"weight": equal}]}}, world)
    assert again["pixel_norm"] == pytest.approx(found["pixel_norm"])
    assert balanced["betti_matching"]["norm"] == pytest.approx(found["pixel_norm"], rel=1e-4)
    assert terms["cross_entropy"]["equal_weight"] is None and terms["cross_entropy"]["factor"] is None
    assert all(-1 <= each["cosine"] <= 1 and each["norm"] > 0 and each["seconds"] > 0 for each in terms.values())
    heavy, _ = probed({**spec, "loss": {"terms": [*TERMS[:2], TERMS[2] | {"weight": 4 * equal}]}}, world)
    assert 0 < heavy["terms"][2]["factor"] < 0.6 < balanced["betti_matching"]["factor"]


def test_a_term_alone_has_no_weight_that_follows(world, spec):
    found, terms = probed({**spec, "loss": {"terms": [TERMS[2]], "neighbour_penalty": {"window": 3}}}, world)
    assert found["pixel_norm"] is None
    assert (terms["betti_matching"]["equal_weight"], terms["betti_matching"]["cosine"]) == (None, None)


def test_the_command_line_probes_trained_weights_and_leaves_the_folder_alone(world, spec, tmp_path):
    run(spec, world, tmp_path / "run")
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "loss": {"terms": TERMS}}))
    command = [sys.executable, "-m", "models", "probe", "--spec", tmp_path / "spec.json", "--data", world]
    command += ["--start-from", tmp_path / "run/best.safetensors", "--batches", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    done = json.loads(ended.stdout.splitlines()[-1])
    assert done["event"] == "done" and done["batches"] == 2
    untrained, _ = probed({**spec, "loss": {"terms": TERMS}}, world)
    assert done["terms"][0]["norm"] != pytest.approx(untrained["terms"][0]["norm"], rel=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "spec.json"]
