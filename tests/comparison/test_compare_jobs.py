"""Comparisons from the queue to the table, with the stand-in trainer."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, update

from app import queue
from app.comparison.table import compared
from app.errors import Conflict, Invalid
from app.store import deletion
from app.store.datasets import require
from app.store.tables import FINISHED, Checkpoint, Job, Measurement, Model
from tests.comparison.jobs import LOSSES, submit_comparison, trainings
from tests.records import add_dataset, job_now, states, story, versions_made, wait_until_ended
from workers.sweep import requeue_expired

sqlite_only = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
"""For what does not depend on the database."""
BETTER = {"figures": {"beta0_error": 0, "beta1_error": 1}}

CLDICE = {"name": "cl", "loss": {"terms": [{"name": "dice"}, {"name": "soft_cldice"}]}}
UNFIT = {
    "shifted": ("rings", "All images of rings@1 are in rings@1 too"),
    "second_observer": ("far", "far@1 has no mask of any labelled image of rings@1"),
}


@pytest.fixture
def rings(database, blobs, project_id):
    """Ten images, enough for a difference to be beyond chance."""
    return add_dataset(database, blobs, project_id, count=10)


@pytest.fixture
def submit(database, settings, project_id, rings):
    """Queue a comparison; keyword arguments change the spec, `behaviours` the children."""
    return lambda *behaviours, **changes: submit_comparison(database, settings, project_id, *behaviours, **changes)


def table(database, job):
    with database.read() as session:
        return compared(session, session.get_one(Job, job.id))


def test_comparison_trains_every_candidate_on_every_fold_and_tells_which_helps(database, worker, submit, project_id):
    job = submit({"scnp": BETTER})
    assert job_now(database, job).state == "waiting" and len(trainings(database, job)) == 4
    worker.drain("quick")
    assert job_now(database, job).state == "waiting", "it is nobody's before its trainings have ended"
    worker.drain("train")
    assert job_now(database, job).state == "queued"
    worker.drain("quick")
    row = job_now(database, job)
    assert (row.state, row.fraction) == ("succeeded", 1.0)
    assert row.result == {
        "verdict": row.result["verdict"],
        "baseline": "plain",
        "winner": "scnp",
        "helps": ["scnp"],
        "trainings": 4,
        "failed": 0,
        "images": 10,
    }
    assert row.result["verdict"].startswith("scnp lowers the Betti error of plain, 7.8 an image, by 5 (-64 %")
    assert states(database, job) == ["waiting", "queued", "running", "succeeded"]
    said = table(database, job)
    contrast = said.candidates[1].figures["betti_error"].contrast
    assert (contrast.images, contrast.mean, contrast.low, contrast.high) == (10, -5.0, -5.0, -5.0)
    assert contrast.p == contrast.p_holm == 2 / 2**10 and (contrast.better, contrast.worse) == (10, 0)
    assert [row.figures["betti_error"].rank for row in said.candidates] == [2.0, 1.0]
    assert said.candidates[0].figures["dice"].spread.mean == 0.9 and said.candidates[0].peak_bytes == 10**8
    assert versions_made(database, project_id) == 0
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Model)) == 0, "no model of a comparison is listed"
        assert session.scalar(select(func.count()).select_from(Checkpoint)) == 0, "nobody resumes them any more"
        assert session.scalar(select(func.count()).select_from(Measurement)) == 20


@sqlite_only
def test_none_helps_when_figures_are_equal(database, worker, submit):
    job = submit(losses=[*LOSSES, CLDICE])
    worker.drain("train")
    worker.drain("quick")
    row = job_now(database, job)
    assert row.result["winner"] is None and row.result["helps"] == []
    assert row.result["verdict"].startswith("None of them helps here: no candidate has a lower Betti error than plain")


@sqlite_only
def test_a_loss_that_makes_it_worse_is_named(database, worker, submit):
    job = submit({"scnp": {"figures": {"beta0_error": 9}}})
    worker.drain("train")
    worker.drain("quick")
    assert job_now(database, job).result["verdict"].endswith("scnp: higher, beyond chance.")


@sqlite_only
def test_a_winner_must_keep_dice(database, worker, submit):
    """It is told that the loss lowers the error, and it is not chosen."""
    job = submit({"scnp": {"figures": BETTER["figures"] | {"dice": 0.89}}})
    worker.drain("train")
    worker.drain("quick")
    result = job_now(database, job).result
    assert result["helps"] == ["scnp"] and result["winner"] is None
    assert "It loses more than 0.5 % of Dice, as do all that help." in result["verdict"]


@sqlite_only
def test_verdict_names_the_best_loss_that_keeps_dice(database, worker, submit):
    better = {"figures": {"beta0_error": 2.0}}
    behaviours = {"scnp": {"figures": BETTER["figures"] | {"dice": 0.89}}, CLDICE["name"]: better}
    job = submit(behaviours, losses=[*LOSSES, CLDICE])
    worker.drain("train")
    worker.drain("quick")
    result = job_now(database, job).result
    assert result["helps"] == ["scnp", CLDICE["name"]] and result["winner"] == CLDICE["name"]
    assert f"Of those that lose no more than 0.5 % of Dice {CLDICE['name']} is best" in result["verdict"]


def test_two_workers_share_the_trainings(database, worker, submit, settings, in_background):
    from tests.workers.conftest import QUICK_MODELS
    from workers.worker import Worker

    other = Worker(settings, models=QUICK_MODELS)
    job = submit({"plain": {"step_s": 0.05}, "scnp": {"step_s": 0.05}})
    threads = [in_background(each.drain, "train") for each in (worker, other)]
    for thread in threads:
        thread.join(60)
    worker.drain("quick")
    other.installation.database.dispose()
    assert job_now(database, job).state == "succeeded"
    ran = {
        data["worker"] for child in trainings(database, job) for _, data in story(database, child) if "worker" in data
    }
    assert ran == {worker.id, other.id}


def test_a_failed_training_is_a_row_with_its_reason(database, worker, submit):
    diverged = {"error_at": 3, "error": {"code": "diverged", "message": "The loss became nan at step 3."}}
    job = submit({"scnp": diverged})
    worker.drain("train")
    worker.drain("quick")
    row = job_now(database, job)
    assert (row.state, row.result["failed"], row.result["winner"]) == ("succeeded", 2, None)
    said = table(database, job)
    assert said.candidates[1].failures == ["The loss became nan at step 3."] and said.candidates[1].measured == 0
    assert [each.state for each in said.trainings] == ["succeeded", "failed"] * 2
    assert any("The loss became nan" in data.get("message", "") for _, data in story(database, job))


def test_resuming_a_comparison_queues_what_has_not_succeeded_and_nothing_else(database, worker, submit):
    diverged = {"error_at": 3, "error": {"code": "diverged", "message": "The loss became nan at step 3."}}
    job = submit({"scnp": diverged})
    worker.drain("train")
    worker.drain("quick")
    with database.write() as session:
        for child in session.scalars(select(Job).where(Job.parent_id == job.id, Job.state == "failed")):
            child.spec = child.spec | {"behaviour": {"step_s": 0.0, **BETTER}}
        queue.request_resume(session, session.get_one(Job, job.id))
    assert job_now(database, job).state == "waiting"
    assert [child.state for child in trainings(database, job)] == ["succeeded", "queued"] * 2
    worker.drain("train")
    worker.drain("quick")
    row = job_now(database, job)
    assert (row.state, row.result["helps"], row.result["failed"]) == ("succeeded", ["scnp"], 0)
    assert [child.attempt for child in trainings(database, job)] == [1, 2, 1, 2]
    with pytest.raises(Conflict, match="nothing left to resume"), database.write() as session:
        queue.request_resume(session, session.get_one(Job, job.id))


def test_a_comparison_without_its_baseline_fails_with_the_reason(database, worker, submit):
    job = submit({"plain": {"error_at": 1, "error": {"code": "diverged", "message": "The loss became nan."}}})
    worker.drain("train")
    worker.drain("quick")
    row = job_now(database, job)
    assert (row.state, row.error["code"]) == ("failed", "baseline_failed")
    assert row.error["detail"].endswith("nothing to compare with. The loss became nan.")


@pytest.mark.parametrize("keep", [False, True])
def test_cancelling_a_comparison_cancels_its_trainings(database, worker, submit, in_background, keep):
    job = submit({"plain": {"step_s": 0.1}}, training={"steps": 60})
    thread = in_background(worker.drain, "train")
    first = trainings(database, job)[0]
    from tests.records import wait_until_step

    wait_until_step(database, first, 3)
    with database.write() as session:
        queue.request_cancel(session, session.get_one(Job, job.id), keep=keep)
    ended = "interrupted" if keep else "cancelled"
    assert job_now(database, job).state == ended
    thread.join(30)
    assert {child.state for child in trainings(database, job)} == {ended}
    assert states(database, job) == ["waiting", ended], "the last training does not wake it"
    with database.read() as session:
        kept = session.scalar(select(func.count()).where(Checkpoint.job_id == first.id))
    assert bool(kept)
    with database.write() as session:
        for child in session.scalars(select(Job).where(Job.parent_id == job.id)):
            child.spec = child.spec | {"behaviour": {"step_s": 0.0}}
        queue.request_resume(session, session.get_one(Job, job.id))
    worker.drain("train")
    worker.drain("quick")
    assert job_now(database, job).state == "succeeded"


def test_one_training_may_be_cancelled_and_resumed_alone(database, worker, submit):
    job = submit()
    last = trainings(database, job)[-1]
    with database.write() as session:
        queue.request_cancel(session, session.get_one(Job, last.id))
    worker.drain("train")
    worker.drain("quick")
    assert job_now(database, job).result["failed"] == 1
    assert table(database, job).trainings[-1].reason == "It was cancelled."
    with database.write() as session:
        queue.request_resume(session, session.get_one(Job, last.id))
    assert job_now(database, job).state == "waiting", "the comparison waits for what was resumed"
    worker.drain("train")
    worker.drain("quick")
    row = job_now(database, job)
    assert (row.state, row.result["failed"]) == ("succeeded", 0)


def test_candidates_start_from_a_shared_pre_training(database, worker, submit, tmp_path):
    steps = tmp_path / "steps"
    told = {"steps_file": str(steps)}
    job = submit({None: told, "plain": told, "scnp": told}, pretraining={"steps": 9}, training={"folds": None})
    assert [child.state for child in trainings(database, job)] == ["queued", "waiting", "waiting"]
    worker.drain("train")
    worker.drain("quick")
    assert job_now(database, job).state == "succeeded"
    assert [int(line) for line in steps.read_text().split()] == [*range(1, 10), *range(1, 7), *range(1, 7)]
    said = table(database, job)
    assert [each.candidate for each in said.trainings] == [None, "plain", "scnp"] and len(said.candidates) == 2
    assert said.images == 10


def test_candidates_of_a_failed_pre_training_fail_with_its_reason(database, worker, submit):
    job = submit(
        {None: {"error_at": 1, "error": {"code": "diverged", "message": "The loss became nan."}}},
        pretraining={"steps": 4},
    )
    worker.drain("train")
    worker.drain("quick")
    assert job_now(database, job).state == "failed"
    reasons = {child.error["detail"] for child in trainings(database, job)}
    assert reasons == {"The loss became nan.", "The training that it was to start from failed: The loss became nan."}
    with database.write() as session:
        for child in session.scalars(select(Job).where(Job.parent_id == job.id)):
            child.spec = child.spec | {"behaviour": {"step_s": 0.0}}
        queue.request_resume(session, session.get_one(Job, job.id))
    assert sorted(child.state for child in trainings(database, job)) == ["queued"] * 2 + ["waiting"] * 4
    worker.drain("train")
    worker.drain("quick")
    assert job_now(database, job).state == "succeeded"


def test_a_training_whose_worker_died_is_queued_again_and_the_comparison_ends(database, worker, submit, settings):
    job = submit()
    claim = queue.claim(database, worker="dead", lane="train")
    with database.write() as session:
        session.execute(update(Job).where(Job.id == claim.id).values(heartbeat_at=0.0))
    assert requeue_expired(database, settings) == 1
    assert job_now(database, job).state == "waiting", "it has no lease that could run out"
    worker.drain("train")
    claim = queue.claim(database, worker="dead", lane="quick")
    with database.write() as session:
        session.execute(update(Job).where(Job.id == claim.id).values(heartbeat_at=0.0))
    assert requeue_expired(database, settings) == 1
    worker.drain("quick")
    (row,) = wait_until_ended(database, job)
    assert row.state == "succeeded" and row.result["failed"] == 0


@sqlite_only
def test_progress_and_time_left_follow_from_the_trainings(database, worker, submit):
    from app.representations.jobs import describe

    job = submit({"plain": {"step_s": 0.02}})

    def progress():
        with database.read() as session:
            return describe(session, session.get_one(Job, job.id)).progress

    before = progress()
    assert (before.phase, before.fraction, before.step, before.steps, before.eta_s) == ("compare", 0.0, 0, 4, None)
    worker._run_one("train")
    one = progress()
    assert (one.fraction, one.step) == (0.25, 1) and one.eta_s > 0
    assert job_now(database, job).state == "waiting"
    told = [data for event, data in story(database, job) if event == "progress"]
    assert [(data["step"], data["steps"]) for data in told] == [(1, 4)]


@sqlite_only
def test_a_dataset_is_kept_while_a_comparison_needs_it(database, worker, submit, project_id):
    job = submit()
    with database.write() as session:
        planned = deletion.of_dataset(session, require(session, project_id, "rings"))
        with pytest.raises(Conflict, match="used by 5 jobs"):
            deletion.carry_out(session, planned, derived=True)
    worker.drain("train")
    worker.drain("quick")
    assert job_now(database, job).state == "succeeded"


@sqlite_only
def test_an_image_deleted_after_a_comparison_leaves_its_table(database, worker, submit):
    from app.store.tables import Image

    job = submit({"scnp": BETTER})
    worker.drain("train")
    worker.drain("quick")
    with database.write() as session:
        image = session.scalars(select(Image).limit(1)).one()
        deletion.carry_out(session, deletion.of_image(session, image), derived=True)
    said = table(database, job)
    assert said.images == 9 and said.helps == ["scnp"]


def test_deleting_a_comparison_takes_its_trainings_along(database, worker, submit):
    job = submit()
    child = trainings(database, job)[0]
    with database.write() as session, pytest.raises(Conflict, match="waiting; cancel it first"):
        deletion.carry_out(session, deletion.of_job(session, session.get_one(Job, job.id)), derived=True)
    worker.drain("train")
    worker.drain("quick")
    with database.write() as session, pytest.raises(Conflict, match="whose table needs it"):
        deletion.carry_out(session, deletion.of_job(session, session.get_one(Job, child.id)), derived=True)
    with database.write() as session:
        gone = deletion.carry_out(session, deletion.of_job(session, session.get_one(Job, job.id)), derived=True)
    assert gone["jobs"] == 5 and gone["measurements"] == 20
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


@sqlite_only
def test_two_images_are_too_few_to_tell(database, blobs, worker, settings, project_id):
    add_dataset(database, blobs, project_id, count=2)
    job = submit_comparison(database, settings, project_id, {"scnp": BETTER})
    worker.drain("train")
    worker.drain("quick")
    row = job_now(database, job)
    assert row.state in FINISHED and row.result["winner"] is None
    assert row.result["verdict"].startswith("2 images are too few to tell")


@sqlite_only
def test_one_image_is_refused(database, blobs, settings, project_id):
    add_dataset(database, blobs, project_id, count=1)
    with pytest.raises(Invalid, match="1 pairs to train and validate on; 2 are needed"):
        submit_comparison(database, settings, project_id)


@sqlite_only
def test_a_loss_that_matches_features_no_better_than_random_repair_does_not_help(database, worker, submit):
    edited = {"edited": {"beta0_error": 0, "beta1_error": 1, "betti_matching_error": 5}}
    better = {"figures": {**BETTER["figures"], "betti_matching_error": 4}}
    job = submit({"plain": edited, "scnp": BETTER, "cl": better}, losses=[*LOSSES, CLDICE])
    worker.drain("train")
    worker.drain("quick")
    row, said = job_now(database, job), table(database, job)
    (control,) = said.controls
    assert (control.name, control.figures["betti_matching_error"].contrast.mean) == ("random_repair", -1.0)
    assert row.result["helps"] == ["cl"] and row.result["winner"] == "cl", "scnp matches as the baseline does: 6"
    assert "scnp: lower, but with features matched no better than after edits at random places" in said.verdict
    assert all(not each.spec["trial"]["controls"] for each in trainings(database, job)[1:3])


@sqlite_only
def test_a_shifted_set_has_a_table_of_its_own(database, blobs, worker, submit, project_id):
    add_dataset(database, blobs, project_id, name="other-site", count=8, side=64)
    job = submit({"scnp": {**BETTER, "shifted": {"beta0_error": 9}}}, shifted="other-site")
    assert job.spec["shifted"] == "other-site@1"
    worker.drain("train")
    worker.drain("quick")
    said = table(database, job)
    assert said.helps == ["scnp"] and said.images == 10
    assert (said.shifted.dataset, said.shifted.images, said.shifted.helps) == ("other-site@1", 8, [])
    contrast = said.shifted.candidates[1].figures["betti_error"].contrast
    assert (contrast.images, contrast.mean) == (8, 5.0) and "scnp: higher, beyond chance" in said.shifted.verdict
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Measurement)) == 20, "of the held-out images only"


@sqlite_only
def test_masks_of_a_second_person_are_the_annotation_floor(database, blobs, worker, submit, project_id, rings):
    """The second person drew the first eight images alike, and of those only the first four count for a fold."""
    add_dataset(database, blobs, project_id, name="second", count=8)
    job = submit(second_observer="second", folds=[0])
    worker.drain("train")
    worker.drain("quick")
    (control,) = table(database, job).controls
    figures = control.figures
    assert (control.name, figures["dice"].spread.mean, figures["betti_error"].spread.mean) == ("second_observer", 1, 0)
    assert figures["dice"].contrast.images == 4, "items 0, 2, 4 and 6 of the fold, without item 8"


@sqlite_only
def test_augmentations_are_an_axis_with_a_shared_start_each(database, worker, submit):
    named = [{"name": "none", "augment": False}, {"name": "flips", "augment": True}]
    job = submit(augmentations=named, folds=[0], pretraining={"steps": 4})
    rows = trainings(database, job)
    assert [each.spec["trial"]["candidate"] for each in rows] == [
        *(None, "plain / none", "scnp / none"),
        *(None, "plain / flips", "scnp / flips"),
    ]
    assert [each.spec["augment"] for each in rows] == [False] * 3 + [True] * 3
    assert [bool(each.spec["trial"].get("controls")) for each in rows] == [False, True, *[False] * 4]
    assert rows[4].after_id == rows[3].id
    worker.drain("train")
    worker.drain("quick")
    said = table(database, job)
    assert said.baseline == "plain / none" and said.trainings[4].augmentation == "flips"


@sqlite_only
@pytest.mark.parametrize("field", ["shifted", "second_observer"])
def test_sets_beside_a_comparison_must_fit(database, blobs, settings, project_id, rings, field):
    add_dataset(database, blobs, project_id, name="far", count=2, side=32)
    for name, said in (("nothing", "No dataset is named nothing"), UNFIT[field]):
        with pytest.raises(Invalid, match=said) as refused:
            submit_comparison(database, settings, project_id, **{field: name})
        assert refused.value.errors[0]["pointer"] == f"/{field}"
