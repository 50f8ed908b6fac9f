"""Priors and rules of a training name classes as the dataset calls them, or by index."""

import json

import numpy as np
import pytest

from models.errors import InvalidInput
from models.export import load_network
from tests.models.training_runs import run

CLASSES = ["background", "myelin", "axon"]


@pytest.fixture
def axons(tmp_path):
    """Four images of a disk (axon, 2) in a ring (myelin, 1)."""
    rows, columns = np.mgrid[:32, :32]
    rng, items = np.random.default_rng(0), []
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for n in range(4):
        radius = np.hypot(rows - rng.integers(12, 20), columns - rng.integers(12, 20))
        label = np.where(radius < 6, 2, np.where(radius < 9, 1, 0)).astype(np.uint8)
        np.save(
            tmp_path / f"data/images/{n}.npy", (80 * label + rng.integers(0, 60, label.shape))[None].astype(np.uint8)
        )
        np.save(tmp_path / f"data/labels/{n}.npy", label)
        items.append({"id": f"item{n}", "image": f"images/{n}.npy", "label": f"labels/{n}.npy"})
    facts = {"classes": CLASSES, "ignore": None, "channels": 1, "dimensions": 2, "items": items}
    (tmp_path / "data/dataset.json").write_text(json.dumps(facts))
    return tmp_path / "data"


def specification(axon, myelin, network=None):
    terms = [
        {"name": "cross_entropy"},
        {"name": "inside", "pairs": [{"subject": axon, "others": [myelin]}], "where_true": False},
        {"name": "betti_prior", "priors": [{"classes": [axon, myelin], "betti": [1, 0]}]},
    ]
    return {
        "network": network or {"name": "unet", "dimensions": 2, "channels": [4, 8]},
        "loss": {"terms": terms},
        "patch": [32, 32],
        "batch": 2,
        "steps": 3,
        "validate_every": 3,
        "seed": 0,
        "threads": 1,
    }


def test_class_names_train_as_their_indices_do(axons, tmp_path):
    named = run(specification("axon", "myelin"), axons, tmp_path / "named")[-1]
    numbered = run(specification(2, 1), axons, tmp_path / "numbered")[-1]
    assert named["metrics"] == numbered["metrics"] and "rule_violations" in named["metrics"]
    assert named["resolved"]["loss"]["terms"][1]["pairs"] == [{"subject": 2, "others": [1]}]
    assert named["resolved"]["loss"]["terms"][2]["priors"] == [{"classes": [2, 1], "betti": [1, 0]}]
    assert "resolved" not in numbered


def test_network_with_a_prior_by_name_can_be_loaded_again(axons, tmp_path):
    priors = [{"classes": ["myelin"], "betti": [1, 1]}]
    network = {"name": "unet_dictionary", "dimensions": 2, "channels": [4, 8], "codes": 8, "priors": priors}
    run(specification(2, 1, network), axons, tmp_path / "out")
    again, facts = load_network(tmp_path / "out/best.safetensors")
    assert again.priors == facts["spec"]["network"]["priors"] == [{"classes": [1], "betti": [1, 1]}]


def test_unknown_class_name_is_refused_with_the_names_there_are(axons, tmp_path):
    with pytest.raises(InvalidInput, match="no class 'nerve'; the classes are background, myelin, axon"):
        run(specification("nerve", "myelin"), axons, tmp_path / "out")
