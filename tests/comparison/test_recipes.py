"""`recipe` of a training: what it compares, what it chooses, and what it trains then; with the stand-in trainer."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select

from app import queue
from app.comparison import recipes
from app.comparison.recipes import SHORTLIST, comparison_of, stages
from app.errors import Invalid
from app.schemas.jobs import TrainSpec
from app.schemas.losses import TOPOLOGY
from app.store import children
from app.store.tables import Checkpoint, Job, ModelVersion
from tests.comparison.jobs import submit_training
from tests.records import add_dataset, job_now, states, story

sqlite_only = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
BEST = {"figures": {"beta0_error": 0, "beta1_error": 0}}
GOOD = {"figures": {"beta0_error": 2}}


FEW = ("CE + Dice", "+ SCNP", "+ Topograph", "+ Betti matching 0.5")


@pytest.fixture
def rings(database, blobs, project_id, monkeypatch):
    """Nine images; comparisons have four losses and two folds, which is as good and quicker."""
    monkeypatch.setattr(recipes, "SHORTLIST", [each for each in SHORTLIST if each.name in FEW])
    monkeypatch.setattr(recipes, "FOLDS", 2)
    return add_dataset(database, blobs, project_id, count=9)


def spec_of(**changes):
    return TrainSpec.model_validate({"kind": "train", "dataset": "d", "model": "m", "recipe": "auto", **changes})


def related(database, job):
    """(comparison, first stage) of a training."""
    with database.read() as session:
        rows = children.of(session, session.get_one(Job, job.id))
    return next(row for row in rows if row.kind == "compare"), next(row for row in rows if row.kind == "train")


def version_of(database, job):
    with database.read() as session:
        return session.scalars(select(ModelVersion).where(ModelVersion.job_id == job.id)).one()


def drain(worker):
    for lane in ("train", "quick", "train"):
        worker.drain(lane)


def test_the_best_loss_is_chosen_and_trained_from_the_first_stage(
    database, worker, settings, project_id, rings, tmp_path
):
    steps = tmp_path / "steps"
    told = {None: {"steps_file": str(steps)}, "+ Betti matching 0.5": BEST, "+ SCNP": GOOD}
    job = submit_training(database, settings, project_id, told, recipe="auto", steps=20)
    comparison, start = related(database, job)
    assert {job_now(database, each).state for each in (job, comparison)} == {"waiting"}
    with database.read() as session:
        trials = children.of(session, comparison)
    assert len(trials) == 2 * (1 + len(FEW)), "two folds, each with its shared start"
    drain(worker)
    row, said = job_now(database, job), job_now(database, comparison)
    assert (row.state, said.state, said.result["winner"]) == ("succeeded", "succeeded", "+ Betti matching 0.5")
    assert row.result["recipe"]["chosen"] == "+ Betti matching 0.5" and row.result["recipe"]["helped"]
    assert row.steps == 6 and start.spec["steps"] == 14, "70 % of 20 steps with the baseline, then the rest"
    version = version_of(database, job)
    assert version.spec["loss"]["terms"][-1] == {
        **version.spec["loss"]["terms"][-1],
        "name": "betti_matching",
        "weight": 0.5,
    }
    assert version.spec["chosen"]["comparison"] == str(comparison.id)
    lines = {line["name"]: line for line in version.spec["chosen"]["table"]}
    assert list(lines) == list(FEW) and lines["CE + Dice"]["difference"] is None
    assert lines["+ Betti matching 0.5"]["figures"]["betti_error"] < lines["+ SCNP"]["figures"]["betti_error"]
    assert version.manifest["chain"] and states(database, job) == ["waiting", "queued", "running", "succeeded"]
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(ModelVersion)) == 1
        assert session.scalar(select(func.count()).where(Checkpoint.job_id != job.id)) == 0


@sqlite_only
def test_none_helps_and_the_baseline_is_trained(database, worker, settings, project_id, rings):
    job = submit_training(database, settings, project_id, recipe="auto")
    drain(worker)
    result = job_now(database, job).result
    assert (result["recipe"]["chosen"], result["recipe"]["helped"]) == ("CE + Dice", False)
    assert result["recipe"]["verdict"].startswith("None of them helps here")
    assert [term["name"] for term in version_of(database, job).spec["loss"]["terms"]] == ["cross_entropy", "dice"]
    assert any(
        "Trained on with CE + Dice. None of them helps" in data.get("message", "") for _, data in story(database, job)
    )


@sqlite_only
def test_a_candidate_that_costs_dice_is_not_chosen(database, worker, settings, project_id, rings):
    lossy = {"figures": BEST["figures"] | {"dice": 0.88}}
    job = submit_training(database, settings, project_id, {"+ SCNP": lossy, "+ Topograph": GOOD}, recipe="auto")
    drain(worker)
    assert job_now(database, job).result["recipe"]["chosen"] == "+ Topograph"


@sqlite_only
def test_a_failed_comparison_fails_the_training_and_both_are_resumed(database, worker, settings, project_id, rings):
    diverged = {"error_at": 1, "error": {"code": "diverged", "message": "The loss became nan."}}
    job = submit_training(database, settings, project_id, {"CE + Dice": diverged}, recipe="auto")
    drain(worker)
    row = job_now(database, job)
    assert (row.state, row.error["code"]) == ("failed", "recipe_failed")
    assert "The loss became nan." in row.error["detail"]
    with database.write() as session:
        for each in session.scalars(select(Job).where(Job.state == "failed", Job.kind == "train")):
            each.spec = each.spec | {"behaviour": {"step_s": 0.0}}
        queue.request_resume(session, session.get_one(Job, job.id))
    assert job_now(database, job).state == "waiting"
    drain(worker)
    assert job_now(database, job).state == "succeeded"


@sqlite_only
def test_cancelling_a_training_cancels_everything_it_waits_for(database, worker, settings, project_id, rings):
    job = submit_training(database, settings, project_id, recipe="auto")
    with database.write() as session:
        queue.request_cancel(session, session.get_one(Job, job.id))
    with database.read() as session:
        assert set(session.scalars(select(Job.state))) == {"cancelled"}
    worker.drain("train")
    assert job_now(database, job).state == "cancelled"


@sqlite_only
def test_topology_is_a_loss_like_any_other(database, worker, settings, project_id, rings):
    job = submit_training(database, settings, project_id, recipe="topology")
    assert job.state == "queued" and job.spec["loss"] == TOPOLOGY.model_dump(mode="json")
    worker.drain("train")
    assert job_now(database, job).state == "succeeded"
    assert spec_of(recipe="topology", loss=job.spec["loss"]).loss == TOPOLOGY, "a spec that is shown can be sent again"


def test_budget_shortens_both_stages_alike():
    assert stages(1000) == (700, 300)
    whole = comparison_of(spec_of(steps=1000, budget=100_000), 12)
    assert (whole.pretraining.steps, whole.training.steps, whole.training.folds) == (700, 300, 3)
    assert whole.count == 30 and whole.training.optimizer.lr == 0.0025 and whole.pretraining.optimizer.lr == 0.01
    usual = comparison_of(spec_of(steps=1000), 12)
    assert 9900 < 3 * (usual.pretraining.steps + 9 * usual.training.steps) <= 10_000
    small = comparison_of(spec_of(steps=1000, budget=1000), 12)
    assert 3 * (small.pretraining.steps + 9 * small.training.steps) <= 1000
    assert comparison_of(spec_of(steps=1000), 2).training.folds == 2
    assert comparison_of(spec_of(steps=1000), 0).training.folds is None, "the split of the dataset decides"


def test_budget_that_is_too_small_is_refused_with_one_that_would_do():
    with pytest.raises(
        ValueError, match=r"budget is 100 steps for 9 losses on 3 folds.* at least (\d+) are needed"
    ) as refused:
        comparison_of(spec_of(steps=1000, budget=100), 12)
    enough = int(str(refused.value).split("at least ")[1].split()[0])
    assert comparison_of(spec_of(steps=1000, budget=enough), 12).training.steps >= 10


@sqlite_only
def test_refusals_name_the_field(database, settings, project_id, rings):
    with pytest.raises(Invalid, match=r"at least \d+ are needed") as refused:
        submit_training(database, settings, project_id, recipe="auto", steps=1000, budget=50)
    assert refused.value.errors[0]["pointer"] == "/budget"
    for changes, said in (
        ({"loss": {"terms": [{"name": "focal"}]}}, "loss is stated as well"),
        ({"start_from": "m:1"}, "leave start_from out"),
        ({"recipe": None, "budget": 5}, "leave it out"),
    ):
        with pytest.raises(ValidationError, match=said):
            spec_of(**changes)
