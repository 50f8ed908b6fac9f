"""Predict, evaluate and analyse jobs in a worker."""

from __future__ import annotations

import hashlib
import uuid

import numpy as np
import pytest
from sqlalchemy import func, select

from app import imaging, queue
from app.store.tables import Image, Measurement, ModelVersion, Prediction
from tests.records import add_dataset, add_model, job_now, ring_and_line, states, story, submit
from tests.services import wait_for


@pytest.fixture
def bright(database, blobs, project_id) -> ModelVersion:
    """A model version that segments by brightness."""
    return add_model(database, blobs, project_id)


@pytest.fixture
def image_ids(database, rings) -> list[str]:
    with database.read() as session:
        return [str(image_id) for image_id in session.scalars(select(Image.id).order_by(Image.name))]


@pytest.fixture
def run(database, worker, project_id):
    """Submit a spec, run it, and give the row back."""

    def run(**spec):
        job = submit(database, project_id, spec)
        worker.drain("quick")
        return job_now(database, job)

    return run


def predict_spec(bright, images=None, rings=None, **changes):
    source = (
        {"images": images, "dataset": None}
        if images
        else {"images": None, "dataset": "rings@1", "dataset_version_id": str(rings.id)}
    )
    return (
        {
            "kind": "predict",
            "model": "bright:1",
            "model_version_id": str(bright.id),
            "threshold": None,
            "topology": True,
        }
        | source
        | changes
    )


def evaluate_spec(bright, rings, **changes):
    return {
        "kind": "evaluate",
        "model": "bright:1",
        "model_version_id": str(bright.id),
        "dataset": "rings@1",
        "dataset_version_id": str(rings.id),
        "split": None,
        "threshold": None,
    } | changes


def add_image(database, blobs, project_id, content: bytes, **columns) -> str:
    sha256, size = blobs.put(project_id, content)
    facts = {
        "name": "x",
        "format": "png",
        "dimensions": 2,
        "channels": 1,
        "shape": [48, 48],
        "dtype": "uint8",
        "spacing_mm": None,
    } | columns
    with database.write() as session:
        image = Image(project_id=project_id, sha256=sha256, bytes=size, **facts)
        session.add(image)
        session.flush()
        return str(image.id)


def rows_of(database, table):
    with database.read() as session:
        return session.scalars(select(table).order_by(table.id)).all()


@pytest.mark.parametrize("source", ["images", "dataset"])
def test_every_image_is_predicted_once_with_the_network_mask(
    database, blobs, project_id, run, bright, rings, image_ids, source
):
    row = run(
        **(predict_spec(bright, images=image_ids * 2) if source == "images" else predict_spec(bright, rings=rings))
    )
    assert (row.state, row.result, row.step, row.steps) == ("succeeded", {"items": 4, "failed": []}, 4, 4)
    predictions = rows_of(database, Prediction)
    assert [str(each.image_id) for each in predictions] == image_ids and {each.job_id for each in predictions} == {
        row.id
    }
    picture, _ = ring_and_line(0)
    mask = imaging.decode_mask(blobs.read(project_id, predictions[0].artifacts["mask"]["sha256"]), imaging_limits())
    assert np.array_equal(mask > 0, picture > picture.mean())
    assert predictions[0].report["line"]["beta0"] >= 1 and predictions[0].threshold == 0.5


def imaging_limits():
    from app.settings import Settings

    return Settings(_env_file=None)


def test_job_threshold_overrides_model_threshold(database, run, bright, image_ids):
    run(**predict_spec(bright, images=image_ids[:1], topology=False))
    run(**predict_spec(bright, images=image_ids[:1], topology=False, threshold=0.9))
    low, high = rows_of(database, Prediction)
    assert (low.threshold, high.threshold) == (0.5, 0.9) and low.artifacts["mask"]["sha256"] != high.artifacts["mask"][
        "sha256"
    ]
    assert low.report is None


def test_bad_image_is_recorded_and_others_are_predicted(database, blobs, project_id, run, bright, image_ids):
    tiny = add_image(database, blobs, project_id, imaging.encode_png(np.zeros((4, 4), np.uint8)), shape=[4, 4])
    damaged = add_image(database, blobs, project_id, b"\x89PNG\r\n\x1a\n broken")
    gone = str(uuid.uuid4())
    row = run(**predict_spec(bright, images=[tiny, image_ids[0], damaged, gone, image_ids[1]]))
    assert row.state == "succeeded" and row.result["items"] == 2
    assert {each["image"]: each["code"] for each in row.result["failed"]} == {
        tiny: "image_too_small",
        damaged: "corrupt_image",
        gone: "not_found",
    }
    assert all(each["detail"].endswith(".") for each in row.result["failed"])
    assert len([1 for event, data in story(database, row) if event == "log"]) == 3


def test_rerun_job_predicts_only_missing_images(database, worker, project_id, bright, image_ids):
    job = submit(database, project_id, predict_spec(bright, images=image_ids))
    claim = queue.claim(database, worker="killed", lane="quick")
    with database.write() as session:
        session.add(
            Prediction(
                project_id=project_id,
                job_id=job.id,
                model_version_id=bright.id,
                image_id=uuid.UUID(image_ids[2]),
                threshold=0.5,
                artifacts={},
                timings_ms={},
            )
        )
    queue.give_back(database, claim, "the worker was killed")
    worker.drain("quick")
    assert job_now(database, job).result == {"items": 4, "failed": []}
    by_image = {str(each.image_id): each.artifacts for each in rows_of(database, Prediction)}
    assert len(by_image) == 4 and by_image[image_ids[2]] == {}, "what the first attempt stored is left as it is"


def test_unloadable_network_fails_the_job_not_each_image(database, blobs, project_id, run, bright, image_ids):
    path = blobs.local_path(project_id, bright.onnx_sha256)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    row = run(**predict_spec(bright, images=image_ids))
    assert (row.state, row.error["code"]) == ("failed", "input_corrupt")


def test_a_batch_can_be_cancelled_between_its_images(
    database, worker, project_id, bright, image_ids, in_background, monkeypatch
):
    from workers import predict

    real = predict._predict
    monkeypatch.setattr(
        predict,
        "_predict",
        lambda work, *rest: (
            real(work, *rest),
            wait_for(lambda: work.heartbeat.instruction != "continue", seconds=10, what="a wish"),
        ),
    )
    job = submit(database, project_id, predict_spec(bright, images=image_ids))
    in_background(worker.drain, "quick")
    wait_for(lambda: job_now(database, job).state == "running", what="the job to run")
    with database.write() as session:
        queue.request_cancel(session, job)
    wait_for(lambda: job_now(database, job).state == "cancelled", seconds=5, what="the job to be stopped")
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Prediction)) == 1


def test_evaluation_measures_every_item_and_reports_means(database, run, bright, rings):
    from topology.metrics import EXACT, measure

    row = run(**evaluate_spec(bright, rings))
    assert row.state == "succeeded" and row.result["items"] == 4
    measured = rows_of(database, Measurement)
    assert [(each.item_name, each.class_name) for each in measured] == [
        (f"item-{number}", "line") for number in range(4)
    ]
    picture, mask = ring_and_line(1)
    expected = measure(picture > picture.mean(), mask > 0)
    second = measured[1]
    assert second.dice == pytest.approx(expected["dice"]) and second.adapted_rand_error == pytest.approx(
        expected["adapted_rand_error"]
    )
    assert (second.beta0_error, second.beta1_error) == (expected["beta0_error"], expected["beta1_error"])
    assert second.metric_digest == EXACT.digest() and second.model_version_id == bright.id and second.job_id == row.id
    assert row.result["means"]["dice"] == pytest.approx(np.mean([each.dice for each in measured]))


def test_evaluation_counts_and_locates_broken_rules(database, run, bright, rings):
    """A line of foreground in background touches it all along: one place, which the reference has too."""
    from topology.containment import Rule, violations

    asked = {"rule": "must_not_touch", "subject": 1, "others": [0], "contact": "sides", "border": "unknown"}
    row = run(**evaluate_spec(bright, rings, rules=[asked]))
    measured = rows_of(database, Measurement)
    picture, mask = ring_and_line(0)
    expected = violations(np.uint8(picture > picture.mean()), Rule("must_not_touch", 1, (0,)))
    (found,) = measured[0].broken_rules
    assert measured[0].rule_violations == found["count"] == len(expected.sizes) > 0
    assert found["pixels"] == expected.pixels and found["reference_count"] == len(
        violations(mask // 255, Rule("must_not_touch", 1, (0,))).sizes
    )
    assert {tuple(map(tuple, each["box"])) for each in found["places"]} == {
        tuple(map(tuple, box)) for box in expected.boxes.tolist()
    }
    assert row.result["means"]["rule_violations"] == np.mean([each.rule_violations for each in measured])


def test_evaluation_stores_its_predictions_and_references(database, blobs, project_id, run, bright, rings):
    run(**evaluate_spec(bright, rings))
    predictions = rows_of(database, Prediction)
    assert [each.prediction_id for each in rows_of(database, Measurement)] == [each.id for each in predictions]
    reference = imaging.decode_mask(blobs.read(project_id, predictions[0].reference_sha256), imaging_limits())
    assert np.array_equal(reference, ring_and_line(0)[1] // 255)


def test_rerun_evaluation_measures_nothing_twice(database, worker, project_id, bright, rings, monkeypatch):
    from workers import evaluate

    job = submit(database, project_id, evaluate_spec(bright, rings))
    real, count = evaluate._measure, []

    def crash_at_the_third(*arguments):
        count.append(1)
        if len(count) == 3:
            raise MemoryError
        real(*arguments)

    monkeypatch.setattr(evaluate, "_measure", crash_at_the_third)
    worker.drain("quick")
    row = job_now(database, job)
    assert (row.state, row.error["code"]) == ("failed", "resource_exhausted")
    with database.write() as session:
        queue.request_resume(session, job)
    worker.drain("quick")
    assert job_now(database, job).result["items"] == 4 and len(count) == 5
    assert len(rows_of(database, Measurement)) == 4


def test_only_the_split_that_was_asked_for_is_measured(database, blobs, project_id, run, bright):
    held_out = add_dataset(database, blobs, project_id, name="held-out", count=2, split="test")
    assert run(**evaluate_spec(bright, held_out, split="test")).result["items"] == 2


def test_an_item_whose_bytes_are_damaged_fails_the_evaluation_with_its_name(
    database, blobs, project_id, run, bright, rings
):
    with database.read() as session:
        path = blobs.local_path(project_id, session.scalars(select(Image.sha256).where(Image.name == "2.png")).one())
    path.write_bytes(b"broken")
    row = run(**evaluate_spec(bright, rings))
    assert (row.state, row.error["code"]) == ("failed", "input_corrupt") and "item-2" in row.error["detail"]


def test_evaluation_with_different_classes_is_refused(database, blobs, project_id, run, rings):
    three = add_model(database, blobs, project_id, name="three", classes=("background", "a", "b"))
    row = run(**evaluate_spec(three, rings))
    assert (row.state, row.error["code"]) == ("failed", "input_invalid") and "background, a, b" in row.error["detail"]


def test_an_analysis_counts_and_measures_against_references(database, blobs, project_id, run):
    ring = np.zeros((48, 48), np.uint8)
    ring[10:20, 10:20] = 255
    ring[12:18, 12:18] = 0
    broken = ring.copy()
    broken[10:12, 15] = 0
    whole_id, broken_id = (add_image(database, blobs, project_id, imaging.encode_png(mask)) for mask in (ring, broken))
    photograph = imaging.encode_png(np.arange(192, dtype=np.uint8).reshape(3, 8, 8))
    bad = add_image(database, blobs, project_id, photograph, channels=3)
    row = run(kind="analyse", images=[whole_id, broken_id, bad], references=[None, whole_id, None], threshold=0.5)
    assert row.state == "succeeded" and row.result["items"] == 2
    whole, cut = row.result["reports"]
    assert (whole["topology"]["beta0"], whole["topology"]["beta1"]) == (1, 1) and "metrics" not in whole
    assert (cut["topology"]["beta0"], cut["topology"]["beta1"]) == (1, 0)
    assert (cut["metrics"]["beta1_error"], cut["reference"]) == (1, whole_id)
    assert row.result["failed"][0]["image"] == bad and row.result["failed"][0]["code"] == "unsupported_color"
    measured = rows_of(database, Measurement)
    assert [(str(each.image_id), each.beta1_error) for each in measured] == [(broken_id, 1)]


def test_analysis_of_a_damaged_blob_alone_fails(database, blobs, project_id, run):
    content = imaging.encode_png(np.zeros((8, 8), np.uint8))
    image_id = add_image(database, blobs, project_id, content)
    path = next(path for path in blobs.fs.find(blobs.root) if path.endswith(hashlib.sha256(content).hexdigest()))
    blobs.fs.pipe_file(path, content[:-1] + b"x")
    row = run(kind="analyse", images=[image_id], references=None, threshold=0.5)
    assert (row.state, row.error["code"]) == ("failed", "input_corrupt")


def test_the_threshold_of_an_analysis_is_a_fraction_of_the_range(run, database, blobs, project_id):
    grey = np.full((16, 16), 100, np.uint8)
    grey[0, 0] = 50  # two values besides 0: a map, not a mask
    image = add_image(database, blobs, project_id, imaging.encode_png(grey))
    counts = [
        run(kind="analyse", images=[image], references=None, threshold=threshold).result["reports"][0]["topology"][
            "beta0"
        ]
        for threshold in (100 / 255, 99 / 255)
    ]
    assert counts == [0, 1], "foreground is above the threshold, not at it"


def test_a_quick_job_never_waits_behind_a_training(
    database, worker, submit_training, project_id, bright, image_ids, in_background
):
    training = submit_training(steps=10_000, checkpoint_every=10_000)
    in_background(worker.drain, "train")
    wait_for(lambda: job_now(database, training).state == "running", what="the training to run")
    job = submit(database, project_id, predict_spec(bright, images=image_ids[:1]))
    worker.drain("quick")
    assert states(database, job)[-1] == "succeeded" and job_now(database, training).state == "running"
    worker.stop()
