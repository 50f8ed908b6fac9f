"""Learning rates, stages, clipping, accumulation and averaged weights."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from app.job_kinds import JobSpec
from app.schemas.jobs import TRAIN_EXAMPLE
from models import checkpoints
from models.ahead import DrawnAhead
from models.errors import Stopped
from models.networks import build
from models.optimization import PLATEAU, SCHEDULES, Average, Stage
from models.spec import Spec
from tests.models.training_runs import run

TOPOLOGY = {"terms": [{"name": "dice"}, {"name": "skeleton_hard_pixels", "weight": 0.1}]}


def stage(**facts):
    return Stage(**{"steps": 10, "loss": {}, "optimizer": {"lr": 0.5}, **facts})


def rates(**facts):
    return [stage(**facts).learning_rate(step) for step in range(1, 11)]


def weights(folder):
    return checkpoints.load(folder / "best.safetensors")[0]


def apart(one, other):
    """Norm of the difference of two sets of weights."""
    trained = [name for name in one if "running" not in name and "num_batches" not in name]
    return torch.sqrt(sum(((one[name] - other[name]) ** 2).sum() for name in trained)).item()


def untrained(spec):
    torch.manual_seed(spec.get("seed", 0))
    return checkpoints.prefixed("model", build(spec["network"], channels_in=1, channels_out=1).state_dict())


def test_learning_rate_follows_its_schedule():
    assert rates(schedule="constant") == [0.5] * 10
    poly, cosine = rates(schedule="poly"), rates(schedule="cosine")
    assert poly[0] == 0.5 and poly[5] == pytest.approx(0.5 * 0.5**0.9) and 0 < poly[9] < 0.07
    assert cosine[0] == 0.5 and cosine[5] == pytest.approx(0.25) and cosine[9] == pytest.approx(0.0122, abs=1e-4)
    assert stage(schedule="plateau", plateau={"factor": 0.2}).learning_rate(7, drops=2) == pytest.approx(0.02)
    assert stage(schedule="poly").learning_rate(3, drops=2) == stage(schedule="poly").learning_rate(3)


def test_warm_up_rises_to_the_first_rate_and_the_schedule_follows():
    warm = rates(schedule="poly", warmup=4)
    assert warm[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
    assert warm[9] == pytest.approx(0.5 * (1 - 5 / 6) ** 0.9)


def test_job_and_trainer_have_the_same_schedules_and_plateau():
    from typing import get_args

    from app.schemas import optimization

    assert set(get_args(optimization.Schedule)) == set(SCHEDULES)
    assert optimization.Plateau().model_dump() == PLATEAU


def test_stages_of_a_job_are_read_by_the_trainer_and_add_up():
    stages = [{"steps": 30}, {"steps": 12, "loss": TOPOLOGY, "lr": 0.001, "schedule": "plateau"}]
    job = TypeAdapter(JobSpec).validate_python(TRAIN_EXAMPLE | {"stages": stages})
    spec, unknown = Spec.read(job.model_dump(mode="json"))
    assert not unknown and job.steps == spec.steps == 42
    first, second = spec.parts
    assert first.optimizer["lr"] == 0.01 and first.loss == spec.loss
    assert second.optimizer == {**first.optimizer, "lr": 0.001} and second.schedule == "plateau"
    assert [term["name"] for term in second.loss["terms"]] == ["dice", "skeleton_hard_pixels"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stages": [{"steps": 4, "warmup": 4}]}, "less than the 4 steps"),
        ({"warmup": 4000}, "less than the steps"),
        ({"stages": []}, "at least 1 item"),
        ({"stages": [{"steps": 4, "loss": {"terms": [{"name": "topology_layer", "dimension": 2}]}}]}, "only volumes"),
        ({"average": 1.0}, "less than 1"),
    ],
)
def test_impossible_stages_of_a_job_are_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(JobSpec).validate_python(TRAIN_EXAMPLE | change)


def test_stage_begins_with_its_loss_and_rate_and_steps_of_its_own(world, spec, tmp_path):
    late = {"terms": [{"name": "dice"}, {"name": "cross_entropy", "from_step": 2}]}
    stages = [{"steps": 2}, {"steps": 3, "loss": late, "lr": 0.25, "schedule": "constant"}]
    events = run({**spec, "stages": stages}, world, tmp_path)
    steps = [event for event in events if event["event"] == "step"]
    assert [set(step["terms"]) for step in steps] == [
        {"cross_entropy", "dice"},
        {"cross_entropy", "dice"},
        {"dice"},
        {"cross_entropy", "dice"},
        {"cross_entropy", "dice"},
    ]
    assert steps[0]["lr"] == 0.05 and [step["lr"] for step in steps[2:]] == [0.25] * 3 and steps[0]["steps"] == 5
    assert [event["message"] for event in events if event["event"] == "log"] == ["Stage 2 of 2 begins after step 2."]


@pytest.mark.parametrize("calls", [2, 3, 4, 5, 6])
def test_stages_averages_and_accumulation_resume_to_the_same_bits(world, spec, tmp_path, calls):
    stages = [
        {"steps": 3},
        {"steps": 3, "loss": TOPOLOGY, "lr": 0.01, "schedule": "plateau", "plateau": {"patience": 1}},
    ]
    change = {"stages": stages, "average": 0.8, "accumulate": 2, "clip_gradient": 0.5, "validate_every": 1}
    change = {**spec, **change, "checkpoint_every": 1, "optimizer": {"name": "adamw", "lr": 0.01}}
    whole = run(change, world, tmp_path / "whole")
    asked = itertools.count()
    with pytest.raises(Stopped):
        run(change, world, tmp_path / "part", stopping=lambda: next(asked) >= 4 * calls)
    left = max((tmp_path / "part/checkpoints").iterdir())
    again = run(change, world, tmp_path / "part", resume=left)
    assert again[-1]["sha256"] == whole[-1]["sha256"] and again[-1]["metrics"] == whole[-1]["metrics"]


def test_early_stopping_of_a_stage_leads_to_the_next(world, spec, tmp_path):
    stop = {"metric": "dice", "patience": 1}
    stages = [{"steps": 50, "lr": 1e-9, "early_stopping": stop}, {"steps": 2, "loss": TOPOLOGY}]
    events = run({**spec, "stages": stages, "validate_every": 1}, world, tmp_path)
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert len(steps) < 20 and events[-1]["step"] == steps[-1] and not events[-1]["stopped_early"]
    assert "skeleton_hard_pixels" in [event for event in events if event["event"] == "step"][-1]["terms"]


def test_plateau_lowers_the_rate_once_validation_stalls(world, spec, tmp_path):
    change = {"schedule": "plateau", "plateau": {"patience": 2, "factor": 0.5}, "validate_every": 1}
    events = run({**spec, **change, "optimizer": {"name": "sgd", "lr": 1e-12}}, world, tmp_path)
    told = [event["lr"] for event in events if event["event"] == "step"]
    assert told[:3] == [1e-12] * 3 and told[-1] < 1e-12 and sorted(told, reverse=True) == told


def test_clipped_gradient_moves_the_weights_no_further_than_its_norm(world, spec, tmp_path):
    change = {**spec, "steps": 1, "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0}}
    run(change, world, tmp_path / "free")
    run({**change, "clip_gradient": 0.01}, world, tmp_path / "held")
    free, held = (apart(weights(tmp_path / name), untrained(spec)) for name in ("free", "held"))
    assert free > 0.1 and held == pytest.approx(0.01, rel=1e-3)


def test_accumulated_step_sees_the_batches_of_as_many_steps(world, spec, tmp_path):
    change = {**spec, "optimizer": {"name": "sgd", "lr": 1e-12}, "schedule": "constant"}
    single = run({**change, "steps": 4}, world, tmp_path / "single")
    double = run({**change, "steps": 2, "accumulate": 2}, world, tmp_path / "double")
    one, two = ([e["loss"] for e in events if e["event"] == "step"] for events in (single, double))
    assert two == pytest.approx([(one[0] + one[1]) / 2, (one[2] + one[3]) / 2], rel=1e-5)


def test_average_of_weights_is_what_is_exported(world, spec, tmp_path):
    change = {**spec, "steps": 1}
    run(change, world, tmp_path / "plain")
    run({**change, "average": 0.999}, world, tmp_path / "average")
    run({**change, "average": 0.0}, world, tmp_path / "none")
    plain, average = weights(tmp_path / "plain"), weights(tmp_path / "average")
    name, start = "model.head.weight", untrained(spec)["model.head.weight"]
    expected = start + (1 - 2 / 11) * (plain[name] - start)  # the first step counts more than 1 - 0.999
    assert torch.allclose(average[name], expected, atol=1e-7) and not torch.equal(average[name], plain[name])
    assert all(torch.equal(plain[each], value) for each, value in weights(tmp_path / "none").items())


def test_average_follows_normalisation_too():
    network = torch.nn.BatchNorm2d(1)
    average = Average(network, 0.5)
    network(torch.full((2, 1, 3, 3), 10.0))
    average.follow(network, 1000)
    assert average.network.running_mean.item() == pytest.approx(network.running_mean.item() / 2)
    assert average.network.num_batches_tracked.item() == 1


def test_batches_are_drawn_ahead_in_order_and_no_further_than_the_last():
    drawn = []
    ahead = DrawnAhead(lambda number: drawn.append(number) or number * 10, last=5)
    assert [ahead(number) for number in range(2, 6)] == [20, 30, 40, 50]
    ahead.close()
    assert drawn == [2, 3, 4, 5]


def test_next_batch_is_drawn_while_the_step_is_computed():
    begun = threading.Event()
    ahead = DrawnAhead(lambda number: begun.set() if number == 2 else number, last=3)
    assert ahead(1) == 1
    assert begun.wait(30)  # nobody has asked for 2 yet
    ahead.close()


def test_error_of_drawing_is_raised_at_its_batch():
    def draw(number):
        time.sleep(0.01)
        if number == 2:
            raise MemoryError("no room for a batch")
        return number

    ahead = DrawnAhead(draw, last=9)
    assert ahead(1) == 1
    with pytest.raises(MemoryError, match="no room"):
        ahead(2)
    ahead.close()
