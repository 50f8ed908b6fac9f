"""Comparisons and recipes on data and in conditions that they cannot use, over HTTP: each has a clear end."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sqlalchemy import select

from app.store.tables import Job
from tests.comparison.jobs import TRAINING, compare_spec
from tests.gateway import told
from tests.images import archive, png
from tests.records import add_dataset
from tests.workers.conftest import QUICK_MODELS
from workers.work import MODELS
from workers.worker import Worker

pytestmark = pytest.mark.parametrize("module_settings", ["sqlite"], indirect=True)
SMALL = {name: value for name, value in TRAINING.items() if name != "folds"}


@pytest.fixture
def worker(gateway):
    """A worker with the real trainer, or with another one: `worker(QUICK_MODELS)`."""
    workers = []

    def start(models=MODELS, **changes):
        workers.append(Worker(gateway.settings.model_copy(update=changes), models=models))
        return workers[-1]

    yield start
    for each in workers:
        each.stop()
        each.installation.database.dispose()


def upload(gateway, masks, *, label_map=None, name="bars"):
    """A dataset of these masks (rows, columns) uint8, each with an image that shows them."""
    files = {}
    for number, mask in enumerate(masks):
        noise = np.random.default_rng(number).integers(0, 60, mask.shape)
        files[f"images/{number}.png"] = png((noise + 90 * mask).astype(np.uint8))
        files[f"masks/{number}.png"] = png(mask.astype(np.uint8))
    fields = {"name": name, "label_map": label_map or '{"background": 0, "bar": 1}'}
    sent = gateway.ask("POST", "/v1/datasets", data=fields, files={"file": ("bars.zip", archive(files))})
    assert sent.status_code == 201, sent.text
    return sent.json()


def bars(count, *, second_in=()):
    """`count` masks with a bar of class 1, and one of class 2 in some of them."""
    masks = np.zeros((count, 48, 48), np.uint8)
    masks[:, 8:40, 10:16] = 1
    masks[list(second_in), 8:40, 30:36] = 2
    return list(masks)


def ask(gateway, **spec):
    """Queue a job; its id."""
    sent = gateway.ask("POST", "/v1/jobs", json=spec)
    assert sent.status_code == 202, sent.text
    return sent.json()["id"]


def state_of(gateway, job):
    return gateway.ask("GET", f"/v1/jobs/{job}").json()


def set_behaviour(gateway, **behaviour):
    """How the stand-in behaves in all trainings that have not ended."""
    with gateway.database.write() as session:
        for row in session.scalars(select(Job).where(Job.kind == "train", Job.state != "succeeded")):
            row.spec = row.spec | {"behaviour": {"step_s": 0.0} | behaviour}


def test_a_class_missing_in_a_fold_is_a_note_of_the_comparison(gateway, worker):
    label_map = '{"background": 0, "bar": 1, "rare": 2}'
    upload(gateway, bars(4, second_in=[0]), label_map=label_map)
    job = ask(gateway, **compare_spec({"steps": 2}, dataset="bars", folds=[0]))
    trainer = worker()
    trainer.drain("train")
    trainer.drain("quick")
    said = gateway.ask("GET", f"/v1/jobs/{job}/comparison").json()
    assert said["state"] == "succeeded" and {each["state"] for each in said["trainings"]} == {"succeeded"}
    (note,) = [each for each in said["notes"] if "rare" in each]
    assert re.fullmatch(r"Class rare is in no (training|validation) label: .*", note), note
    page = gateway.ask("GET", f"/jobs/{job}", headers={"Accept": "text/html"}).text
    assert "Its trainings warn" in page and note in page


def test_every_training_that_diverges_is_a_row_with_its_reason(gateway, worker):
    upload(gateway, bars(4))
    wild = {"name": "sgd", "lr": 10, "momentum": 0, "weight_decay": 1}  # every step multiplies the weights by -9
    training = {"steps": 60, "schedule": "constant", "optimizer": wild, "checkpoint_every": 60}
    job = ask(gateway, **compare_spec(training, dataset="bars", folds=[0]))
    trainer = worker()
    trainer.drain("train")
    trainer.drain("quick")
    row, said = state_of(gateway, job), gateway.ask("GET", f"/v1/jobs/{job}/comparison").json()
    assert (row["state"], row["error"]["code"]) == ("failed", "baseline_failed")
    assert "became nan at step" in row["error"]["detail"] and "Use a learning rate below" in row["error"]["detail"]
    assert [each["state"] for each in said["trainings"]] == ["failed", "failed"]
    assert all("Use a learning rate below" in each["reason"] for each in said["trainings"])


def test_masks_that_are_all_empty_are_refused_before_anything_is_queued(gateway):
    upload(gateway, [np.zeros((48, 48), np.uint8)] * 4)
    for spec in (
        compare_spec(dataset="bars"),
        {"kind": "train", "dataset": "bars", "model": "m", **SMALL},
        {"kind": "train", "dataset": "bars", "model": "m", "recipe": "auto", **SMALL, "steps": 20},
    ):
        answer = gateway.ask("POST", "/v1/jobs", json=spec)
        assert told(answer)[0] == 422 and "its masks are empty" in answer.json()["detail"]
    assert gateway.ask("GET", "/v1/jobs").json()["items"] == []


@pytest.mark.parametrize("count", [1, 2])
def test_one_image_is_refused_and_two_are_too_few_to_tell(gateway, worker, count):
    upload(gateway, bars(count))
    auto = {"kind": "train", "dataset": "bars", "model": "m", "recipe": "auto", **SMALL, "steps": 20}
    if count == 1:
        for spec in (compare_spec(dataset="bars"), auto):
            answer = gateway.ask("POST", "/v1/jobs", json=spec)
            assert told(answer)[0] == 422 and "1 pairs to train and validate on; 2 are needed" in answer.text
        return
    job, chosen = ask(gateway, **compare_spec(dataset="bars")), ask(gateway, **auto)
    set_behaviour(gateway)
    trainer = worker(QUICK_MODELS)
    for lane in ("train", "quick", "train"):
        trainer.drain(lane)
    assert "too few to tell" in gateway.ask("GET", f"/v1/jobs/{job}/comparison").json()["verdict"]
    row = state_of(gateway, chosen)
    assert row["state"] == "succeeded" and row["result"]["recipe"]["helped"] is False


def test_a_budget_too_small_for_one_training_is_refused_with_one_that_would_do(gateway):
    add_dataset(gateway.database, gateway.blobs, gateway.project_id, count=8)
    spec = {"kind": "train", "dataset": "rings", "model": "m", "recipe": "auto", **SMALL, "steps": 1000, "budget": 5}
    answer = gateway.ask("POST", "/v1/jobs", json=spec)
    assert told(answer)[0] == 422 and answer.json()["errors"][0]["pointer"] == "/budget"
    enough = int(re.search(r"at least (\d+) are needed", answer.text)[1])
    assert gateway.ask("POST", "/v1/jobs", json=spec | {"budget": enough}).status_code == 202


def test_a_dataset_stays_as_long_as_a_comparison_names_it(gateway, worker):
    add_dataset(gateway.database, gateway.blobs, gateway.project_id, count=8)
    job = ask(gateway, **compare_spec())
    for _ in ("waiting", "cancelled"):
        refused = gateway.ask("DELETE", "/v1/datasets/rings?derived=true", "admin")
        assert told(refused) == (409, "conflict") and "used by 5 jobs" in refused.text
        assert gateway.ask("POST", f"/v1/jobs/{job}/cancel").status_code == 202
    assert gateway.ask("POST", f"/v1/jobs/{job}/resume").status_code == 202, "what it needs is there"
    assert gateway.ask("POST", f"/v1/jobs/{job}/cancel").status_code == 202
    for path in (f"/v1/jobs/{job}", "/v1/datasets/rings"):
        assert gateway.ask("DELETE", f"{path}?derived=true", "admin").status_code == 204


def test_a_full_disk_at_a_checkpoint_fails_the_training_and_nothing_stored_is_lost(gateway, worker):
    add_dataset(gateway.database, gateway.blobs, gateway.project_id, count=8)
    job = ask(gateway, **compare_spec(folds=[0]))
    set_behaviour(gateway)
    full = worker(QUICK_MODELS, min_free_bytes=2**60)
    full.drain("train")
    full.drain("quick")
    row, said = state_of(gateway, job), gateway.ask("GET", f"/v1/jobs/{job}/comparison").json()
    assert (row["state"], row["error"]["code"]) == ("failed", "baseline_failed")
    assert all(each["reason"].startswith("There is no room for the files of this job.") for each in said["trainings"])
    assert gateway.ask("POST", f"/v1/jobs/{job}/resume").status_code == 202
    enough = worker(QUICK_MODELS)
    enough.drain("train")
    enough.drain("quick")
    assert state_of(gateway, job)["state"] == "succeeded"


def test_images_smaller_than_the_patch_are_trained_on_beside_larger_ones(gateway, worker):
    masks = bars(4)
    masks[0] = masks[0][:24, :20]
    upload(gateway, masks)
    job = ask(gateway, kind="train", dataset="bars", model="m", **SMALL)
    worker().drain("train")
    row = state_of(gateway, job)
    assert row["state"] == "succeeded", row
    log = gateway.ask("GET", f"/v1/jobs/{job}/log").text
    assert "1 of 3 images are smaller than the patch" in log or "fewer" in log, log
