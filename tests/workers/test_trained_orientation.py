"""Volumes of a dataset reach the trainer in one orientation, with their labels."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.imaging import Picture
from app.imaging.grids import turned_to
from app.imaging.picture import NOWHERE
from workers import train

VOXELS = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 6), dtype=np.uint8)
STRAIGHT = Picture(VOXELS, "nifti", (3.0, 2.0, 1.0), np.diag([1.0, 2.0, 3.0, 1.0]))


def written(monkeypatch: pytest.MonkeyPatch, folder: Any, pictures: list[Picture]) -> dict[str, Any]:
    """dataset.json of these volumes, whose labels are their odd voxels."""
    rows = {
        number: SimpleNamespace(
            item=SimpleNamespace(name=str(number), mask_sha256="0", group=None, split=None),
            image=SimpleNamespace(id=number),
        )
        for number in range(len(pictures))
    }
    said = SimpleNamespace(label_map={"odd": 1}, classes=["background", "odd"], channels=1, dimensions=3)
    monkeypatch.setattr(train, "dataset_version", lambda *_: said)
    monkeypatch.setattr(train, "pairs_of", lambda *_: list(rows.values()))
    monkeypatch.setattr(
        train,
        "read_pair",
        lambda _, pair, __: (pictures[int(pair.item.name)], pictures[int(pair.item.name)].pixels[0] & 1),
    )
    work: Any = SimpleNamespace(
        database=SimpleNamespace(read=lambda: nullcontext(None)),
        claim=SimpleNamespace(spec={"dataset_version_id": "", "dataset": "tubes@1"}),
        heartbeat=SimpleNamespace(check=lambda: None, progress=lambda **_: None),
    )
    train.write_data(work, folder)
    return json.loads((folder / "dataset.json").read_text())


def test_all_volumes_are_turned_to_the_orientation_of_the_first(monkeypatch, tmp_path):
    facts = written(monkeypatch, tmp_path, [STRAIGHT, turned_to(STRAIGHT, "PIR"), turned_to(STRAIGHT, "LAS")])
    assert facts["orientation"] == "RAS"
    for number, item in enumerate(facts["items"]):
        assert item["spacing_mm"] == pytest.approx([3.0, 2.0, 1.0])
        np.testing.assert_array_equal(np.load(tmp_path / f"images/{number}.npy"), VOXELS)
        np.testing.assert_array_equal(np.load(tmp_path / f"labels/{number}.npy"), VOXELS[0] & 1)


def test_the_orientation_is_unknown_where_a_volume_has_no_place(monkeypatch, tmp_path):
    facts = written(monkeypatch, tmp_path, [STRAIGHT, replace(STRAIGHT, forms=NOWHERE)])
    assert facts["orientation"] is None


def test_a_stated_size_is_turned_with_the_axes(monkeypatch, tmp_path):
    stated = replace(STRAIGHT, spacing_mm=(30.0, 20.0, 10.0))
    facts = written(monkeypatch, tmp_path, [STRAIGHT, turned_to(stated, "PIR")])
    assert facts["items"][1]["spacing_mm"] == pytest.approx([30.0, 20.0, 10.0])
