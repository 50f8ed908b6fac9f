"""Small synthetic datasets of lines and rings, in the service's folder layout."""

import json
import os

import numpy as np
import pytest

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tests share cores; two spinning threads on a busy core are slower than one

import torch

torch.set_num_threads(1)


def draw_world(rng, sides):
    """Label with one line and one ring, and a noisy picture of it."""
    label = np.zeros(sides, np.uint8)
    rows, columns = np.mgrid[: sides[-2], : sides[-1]]
    row, column = rng.integers(8, sides[-2] - 8), rng.integers(12, sides[-1] - 12)
    radius = np.hypot(rows - row, columns - column)
    label[..., (radius > 5) & (radius < 8)] = 1
    label[..., sides[-2] // 2 : sides[-2] // 2 + 3, 2:-2] = 1
    return label, (120 * label + 60 + 20 * rng.standard_normal(sides)).clip(0, 255)


def write_dataset(
    folder,
    *,
    count=6,
    sides=(48, 56),
    classes=("background", "vessel"),
    channels=1,
    ignore=None,
    seed=0,
    groups=None,
    splits=None,
    spacing_mm=None,
    orientation=None,
):
    """A dataset folder; several foreground classes divide the structures by columns."""
    rng = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    items = []
    for index in range(count):
        label, image = draw_world(rng, sides)
        if len(classes) > 2:
            label *= (1 + np.arange(sides[-1]) * (len(classes) - 1) // sides[-1]).astype(np.uint8)
        if ignore is not None:
            label[..., :6, :] = ignore
        np.save(folder / f"images/{index}.npy", np.stack([image.astype(np.uint8)] * channels))
        np.save(folder / f"labels/{index}.npy", label)
        items.append(
            {
                "id": f"item{index}",
                "image": f"images/{index}.npy",
                "label": f"labels/{index}.npy",
                "spacing_mm": None if spacing_mm is None else spacing_mm[index],
                "group": None if groups is None else groups[index],
                "split": None if splits is None else splits[index],
            }
        )
    facts = {"classes": list(classes), "ignore": ignore, "channels": channels, "dimensions": len(sides), "items": items}
    facts["orientation"] = orientation
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Six grey images of one foreground class, 48 x 56 pixels."""
    return write_dataset(tmp_path_factory.mktemp("world"))


@pytest.fixture
def make_dataset(tmp_path):
    """A function that writes a dataset of one's own."""
    return lambda **options: write_dataset(tmp_path / "data", **options)


@pytest.fixture
def spec():
    """A training of a second or two."""
    return {
        "network": {"name": "unet", "dimensions": 2, "channels": [4, 8]},
        "loss": {"terms": [{"name": "cross_entropy"}, {"name": "dice"}], "neighbour_penalty": None},
        "patch": [32, 32],
        "batch": 2,
        "steps": 8,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "validate_every": 4,
        "checkpoint_every": 3,
        "best_metric": "dice",
        "threads": 1,
    }
