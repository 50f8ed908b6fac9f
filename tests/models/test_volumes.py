"""Training on volumes: every loss, and resumption."""

import io
import json
import math

import pytest

from models import checkpoints
from models.events import Events
from models.losses import LOSSES, RULE_LOSSES
from models.networks import NETWORKS
from models.train import train

NETWORK_OPTIONS = {
    "unet_tcsp": {"iterations": 1},
    "dynunet": {"channels": [2, 4, 4], "deep_supervision": 1},
    "unet_dictionary": {"codes": 8, "priors": [{"classes": [1], "betti": [1, 0, 0]}], "prior_from_step": 2},
}

SILENT_AT_FIRST = {"neighbour_loss"}
"""Looks where neighbouring predictions disagree, and a new network answers alike everywhere."""


@pytest.fixture
def volumes(make_dataset):
    """Three volumes of tubes and sheets."""
    return make_dataset(sides=(8, 24, 32), count=3)


@pytest.fixture
def volume_spec(spec):
    """Four steps on them, with an end that needs no measuring."""
    return {
        **spec,
        "network": {"name": "unet", "dimensions": 3, "channels": [2, 4]},
        "patch": [8, 12, 16],
        "steps": 4,
        "validate_every": 4,
        "checkpoint_every": 2,
    }


def run(spec, data, out, **options):
    stream = io.StringIO()
    train(spec, data, out, events=Events(stream, clock=iter(range(10**6)).__next__), **options)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("penalty", [None, {"window": 3, "mode": "add"}], ids=["plain", "penalised"])
@pytest.mark.parametrize("name", sorted(set(LOSSES) - RULE_LOSSES))
def test_every_loss_trains_in_3d(volumes, volume_spec, tmp_path, name, penalty):
    loss = {
        "terms": [{"name": "cross_entropy"}] * (name != "cross_entropy") + [{"name": name}],
        "neighbour_penalty": penalty,
    }
    events = run({**volume_spec, "loss": loss, "steps": 3, "validate_every": 3}, volumes, tmp_path / "out")
    steps = [event for event in events if event["event"] == "step"]
    assert len(steps) == 3 and all(math.isfinite(step["terms"][name]) for step in steps)
    assert any(step["terms"][name] for step in steps) or name in SILENT_AT_FIRST
    assert {"beta0_error", "beta1_error", "beta2_error"} <= set(events[-1]["metrics"])


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_resumed_run_on_volumes_ends_in_the_same_bytes(volumes, volume_spec, tmp_path, name):
    spec = {**volume_spec, "network": {**volume_spec["network"], "name": name, **NETWORK_OPTIONS.get(name, {})}}
    run(spec, volumes, tmp_path / "whole")
    half = tmp_path / "whole/checkpoints/000002.safetensors"
    events = run(spec, volumes, tmp_path / "resumed", resume=half)
    assert events[0]["resumed_from"] == 2
    ends = [
        checkpoints.file_sha256(tmp_path / each / "checkpoints/000004.safetensors") for each in ("whole", "resumed")
    ]
    assert ends[0] == ends[1] != checkpoints.file_sha256(half)
