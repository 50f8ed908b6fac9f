"""Plans for training: what they propose, that it is accepted and trains, and how good the estimate of memory is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from app.admission.plans import memory_of
from app.store.tables import DatasetVersion, Image
from tests.gateway import told
from tests.images import archive, pairs
from tests.models.conftest import write_dataset
from tests.records import add_dataset_row

MiB = 2**20


def upload(gateway, files, name="bars"):
    sent = gateway.ask("POST", "/v1/datasets", data={"name": name}, files={"file": ("d.zip", archive(files))})
    assert sent.status_code == 201, sent.text


def plan_of(gateway, name="bars", **query):
    answer = gateway.ask("GET", f"/v1/datasets/{name}/versions/1/plan", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_plan_is_accepted_as_it_is_and_says_why(gateway):
    upload(gateway, pairs(4))
    said = plan_of(gateway)
    training = said["training"]
    assert (training["patch"], training["network"]["channels"]) == ([64, 48], [32, 64, 128, 256]), "64 x 48: 8 deep"
    assert {each["field"] for each in said["reasons"]} >= {"patch", "batch", "steps", "scaling", "network.channels"}
    assert said["memory"]["estimated_bytes"] < said["memory"]["limit_bytes"] == 8192 * MiB
    sent = gateway.ask("POST", "/v1/jobs", json=training)
    assert sent.status_code == 202, sent.text
    assert gateway.ask("GET", "/v1/datasets/bars/versions/1").json()["links"]["plan"].endswith("/plan")


def test_less_memory_makes_batch_patch_and_network_smaller_until_it_fits(gateway):
    add_dataset_row(gateway, "large", count=12, size=(1000, 800))
    plans = [plan_of(gateway, "large", memory_mib=memory) for memory in (16384, 1500, 700)]
    assert [each["training"]["batch"] for each in plans] == [8, 4, 2]
    sizes = [np.prod(each["training"]["patch"]) * each["training"]["network"]["channels"][0] for each in plans]
    assert sizes[0] >= sizes[1] > sizes[2]
    assert all(each["memory"]["estimated_bytes"] <= each["memory"]["limit_bytes"] for each in plans)
    assert any("fits into memory" in each["reason"] for each in plans[2]["reasons"])
    assert all(gateway.ask("POST", "/v1/jobs", json=each["training"]).status_code == 202 for each in plans)


def test_scaling_folds_foreground_and_spacing_follow_from_what_was_counted(gateway):
    add_dataset_row(gateway, "ct", count=12, channels=3)
    with gateway.database.write() as session:
        version = session.scalars(select(DatasetVersion).filter_by(project_id=gateway.project_id)).one()
        version.statistics = {"pairs": 12, "dtypes": {"int16": 12}, "fg_fraction": 0.01}
        for number, image in enumerate(session.scalars(select(Image).filter_by(project_id=gateway.project_id))):
            image.spacing_mm = [0.5, 0.5] if number else [0.9, 0.5]
    said = plan_of(gateway, "ct")
    training, reasons = said["training"], {each["field"]: each for each in said["reasons"]}
    assert (training["scaling"], training["folds"], training["foreground_fraction"]) == ("clipped", 5, 0.33)
    assert training["augment"] == {"preset": "colour"} and reasons["spacing"]["value"] == [0.5, 0.5]
    assert any("Pixel sizes differ" in note for note in said["notes"])


def test_nothing_is_planned_for_images_without_masks_or_for_strangers(gateway):
    upload(gateway, pairs(1))
    assert any("1 labelled images or groups" in note for note in plan_of(gateway)["notes"])
    with gateway.database.write() as session:
        version = session.scalars(select(DatasetVersion).filter_by(project_id=gateway.project_id)).one()
        version.statistics = version.statistics | {"pairs": 0}
    assert told(gateway.ask("GET", "/v1/datasets/bars/versions/1/plan")) == (409, "conflict")
    assert told(gateway.ask("GET", "/v1/datasets/bars/versions/1/plan", "stranger")) == (404, "not_found")
    assert told(gateway.ask("GET", "/v1/datasets/bars/versions/1/plan?memory_mib=3"))[0] == 422


@pytest.mark.parametrize(
    ("channels", "patch", "batch"), [([16, 32, 64], [128, 128], 4), ([32, 64], [256, 256], 4), ([8, 16], [48] * 3, 2)]
)
def test_measured_memory_is_between_half_and_twice_the_estimate(tmp_path: Path, channels, patch, batch):
    world = write_dataset(tmp_path / "data", count=2, sides=patch)
    network = {"name": "unet", "dimensions": len(patch), "channels": channels}
    spec = {"network": network, "patch": patch, "batch": batch, "steps": 2, "validate_every": 2, "threads": 1}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "models", "train", "--spec", tmp_path / "spec.json", "--data", world]
    ended = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    (peak,) = [each["peak_bytes"] for each in events if each["event"] == "memory"]
    assert peak / 2 < memory_of(patch, channels, batch, 1) < 2 * peak
