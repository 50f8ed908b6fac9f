"""Training runs: events, checkpoints, exit status, resumption."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import models.train
from models import checkpoints
from models.errors import Diverged, InvalidInput, OutOfMemory, Stopped
from models.evaluate import better, mean_metrics, predict
from models.events import Events
from models.export import load_network
from models.networks import NETWORKS
from models.train import Run
from tests.models.training_runs import run

ROOT = Path(__file__).parents[2]


def named(events, name):
    return [event for event in events if event["event"] == name]


def stop_after(calls):
    """A stopping function that says yes once it has been asked so often."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= calls


def command(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "models", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_run_reports_its_events_in_order(world, spec, tmp_path):
    events = run(spec, world, tmp_path)
    assert events[0] == {
        "event": "start",
        "steps": 8,
        "device": "cpu",
        "parameters": 1677,
        "train_items": 5,
        "val_items": 1,
        "unlabelled_items": 0,
        "resumed_from": None,
    }
    steps = named(events, "step")
    assert [e["step"] for e in steps] == list(range(1, 9))
    assert set(steps[0]["terms"]) == {"cross_entropy", "dice"} and steps[0]["loss"] == pytest.approx(
        sum(steps[0]["terms"].values())
    )
    assert [e["step"] for e in named(events, "checkpoint")] == [3, 6, 8]
    assert [e["step"] for e in named(events, "validation")] == [4, 8]
    assert {"dice", "cldice", "beta0_error", "beta1_error"} <= set(named(events, "validation")[0]["metrics"])
    done = events[-1]
    assert done["event"] == "done" and done["weights"] == "best.safetensors" and not done["stopped_early"]
    assert checkpoints.file_sha256(tmp_path / "best.safetensors") == done["sha256"]


def test_last_two_checkpoints_are_kept_with_digests(world, spec, tmp_path):
    told = named(run(spec, world, tmp_path), "checkpoint")
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["000006.safetensors", "000008.safetensors"]
    assert told[-1]["sha256"] == checkpoints.file_sha256(tmp_path / told[-1]["path"])
    assert told[-1]["bytes"] == (tmp_path / told[-1]["path"]).stat().st_size


def test_step_events_are_throttled_except_the_last():
    stream = io.StringIO()
    events = Events(stream, clock=iter([0, 0.1, 0.4, 0.6, 0.7]).__next__)
    for step in range(5):
        events.step(last=step == 4, step=step)
    assert [json.loads(line)["step"] for line in stream.getvalue().splitlines()] == [0, 3, 4]


def test_an_event_never_holds_nan():
    stream = io.StringIO()
    Events(stream)("validation", metrics={"hd95": float("nan"), "list": [float("inf")]})
    assert json.loads(stream.getvalue())["metrics"] == {"hd95": None, "list": [None]}


def test_training_learns_the_drawn_structures(world, spec, tmp_path):
    events = run({**spec, "steps": 60, "validate_every": 20, "checkpoint_every": 100}, world, tmp_path)
    assert events[-1]["metrics"]["dice"] > 0.85
    best = max(named(events, "validation"), key=lambda e: e["metrics"]["dice"])
    assert events[-1]["best_step"] == best["step"] and events[-1]["metrics"] == best["metrics"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("calls", [4, 9, 14])
def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(world, spec, tmp_path, optimizer, calls):
    spec = {**spec, "optimizer": {"name": optimizer, "lr": 0.01, "momentum": 0.9}}
    whole = run(spec, world, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(spec, world, tmp_path / "parts", stopping=stop_after(calls))
    latest = named(run.events, "checkpoint")[-1]
    assert 0 < latest["step"] < 8
    resumed = run(spec, world, tmp_path / "elsewhere", resume=tmp_path / "parts" / latest["path"])
    assert resumed[0]["resumed_from"] == latest["step"]
    assert (tmp_path / "whole/best.safetensors").read_bytes() == (tmp_path / "elsewhere/best.safetensors").read_bytes()
    assert (tmp_path / "whole/checkpoints/000008.safetensors").read_bytes() == (
        tmp_path / "elsewhere/checkpoints/000008.safetensors"
    ).read_bytes()
    assert resumed[-1] == whole[-1]


def test_interrupted_validation_is_repeated_on_resume(world, spec, tmp_path, monkeypatch):
    evaluating = []
    evaluate = models.train.evaluate
    monkeypatch.setattr(models.train, "evaluate", lambda *a, **k: evaluating.append(True) or evaluate(*a, **k))
    with pytest.raises(Stopped):
        run(spec, world, tmp_path, stopping=lambda: bool(evaluating))
    assert not named(run.events, "validation")
    latest = named(run.events, "checkpoint")[-1]
    resumed = run(spec, world, tmp_path, resume=tmp_path / latest["path"])
    assert latest["step"] == 4 and [e["step"] for e in named(resumed, "validation")] == [4, 8]


def test_resuming_a_finished_run_reports_done(world, spec, tmp_path):
    first = run(spec, world, tmp_path)
    again = run(spec, world, tmp_path, resume=tmp_path / named(first, "checkpoint")[-1]["path"])
    assert [e["event"] for e in again] == ["start", "memory", "done"] and again[-1] == first[-1]
    assert first[-1]["items"] and len(first[-1]["items"]) == first[0]["val_items"]
    for item in first[-1]["items"]:
        (figures,) = item["figures"].values()
        assert 0 <= figures["dice"] <= 1 and isinstance(figures["beta0_error"], int)


def test_sigterm_in_the_middle_leaves_a_checkpoint_and_status_3(world, spec, tmp_path):
    (tmp_path / "spec.json").write_text(
        json.dumps({**spec, "steps": 10**6, "validate_every": 10**6, "checkpoint_every": 10**6})
    )
    child = command("train", "--spec", tmp_path / "spec.json", "--data", world, "--out", tmp_path / "out")
    for line in child.stdout:
        if json.loads(line)["event"] == "step":
            break
    child.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    events = [json.loads(line) for line in child.communicate(timeout=60)[0].splitlines()]
    assert child.returncode == 3 and time.monotonic() - asked < 10
    saved = named(events, "checkpoint")[-1]
    tensors, facts = checkpoints.load(tmp_path / "out" / saved["path"])
    assert facts["progress"]["step"] == saved["step"] > 0 and tensors


def test_the_command_line_trains_and_prints_events_only(world, spec, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "steps": 2, "colour": "red"}))
    child = command("train", "--spec", tmp_path / "spec.json", "--data", world, "--out", tmp_path / "out")
    stdout, _ = child.communicate(timeout=120)
    events = [json.loads(line) for line in stdout.splitlines()]
    assert child.returncode == 0 and events[-1]["event"] == "done"
    assert any("colour" in e["message"] for e in named(events, "log"))


REFUSED = {
    "an unknown loss": ({"loss": {"terms": [{"name": "dicee"}]}}, "'dicee' is not known; the losses are"),
    "a misspelt option": ({"loss": {"terms": [{"name": "dice", "smoth": 1}]}}, "no option smoth"),
    "no terms": ({"loss": {"terms": []}}, "terms is empty"),
    "a term twice": ({"loss": {"terms": [{"name": "dice"}, {"name": "dice"}]}}, "more than once"),
    "an even window": (
        {"loss": {"terms": [{"name": "dice"}], "neighbour_penalty": {"window": 4, "mode": "add"}}},
        "window is odd",
    ),
    "negative steps": ({"steps": -4}, "steps is -4"),
    "no batch": ({"batch": 0}, "batch is 0"),
    "an unknown network": (
        {"network": {"name": "transformer"}},
        f"the networks are {', '.join(sorted(NETWORKS))}",
    ),
    "an unknown network option": ({"network": {"name": "unet", "depth": 3}}, "does not take these options"),
    "an unknown optimizer": ({"optimizer": {"name": "lion"}}, "sgd, adam, adamw"),
    "an unknown schedule": ({"schedule": "linear"}, "poly, cosine, plateau, constant"),
    "a warm-up as long as the run": ({"warmup": 8}, "less than the 8 steps"),
    "a plateau that never comes": ({"schedule": "plateau", "plateau": {"patience": 0}}, "1 or more validations"),
    "a stage without steps": ({"stages": [{"lr": 0.1}]}, "with its `steps`"),
    "a stage with a field of the whole": ({"stages": [{"steps": 2, "batch": 3}]}, "A stage has no batch"),
    "no stage": ({"stages": []}, "`stages` is empty"),
    "a stage with an unknown loss": ({"stages": [{"steps": 2, "loss": {"terms": [{"name": "dise"}]}}]}, "dise"),
    "a norm of 0": ({"clip_gradient": 0}, "above 0"),
    "an average that never moves": ({"average": 1.0}, "less than 1"),
    "no batch in a step": ({"accumulate": 0}, "accumulate is 0"),
    "a patch that the network cannot halve": ({"patch": [33, 32]}, r"multiples of 2. Use \[32, 32\]"),
    "a fraction above 1": ({"foreground_fraction": 1.5}, "give 0 to 1"),
    "places of an unknown kind": ({"foreground_places": "edges"}, "pixels, skeleton"),
    "a patch of three sides": ({"patch": [8, 8, 8]}, "give 2 positive sides"),
    "more dimensions than the images": (
        {"network": {"name": "unet", "dimensions": 3}, "patch": [8, 8, 8]},
        "set network.dimensions to 2",
    ),
    "a network option out of bounds": ({"network": {"name": "unet_tcsp", "iterations": 99}}, "give 1 to 20"),
    "an unknown rule": ({"network": {"name": "unet_tcsp", "rule": "paper"}}, "give exact, or in 2 published"),
    "a fold that does not exist": ({"folds": 3, "fold": 3}, "fold is 3 of 3"),
    "more folds than images": ({"folds": 9}, "at least 9 groups"),
    "a threshold of 1": ({"threshold": 1}, "between 0 and 1"),
    "half precision on a CPU": ({"precision": "float16", "devices": "cpu"}, "bfloat16"),
    "no pixel to normalise over": (
        {"network": {"name": "unet", "channels": [4, 8], "normalisation": "instance"}, "patch": [2, 2]},
        r"Use \[4, 4\], or fewer levels",
    ),
    "two devices": ({"devices": 2}, "one device"),
    "a metric that is not measured": ({"best_metric": "beauty"}, "choose one of"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_impossible_spec_is_refused_with_a_message(world, spec, tmp_path, fault):
    change, words = REFUSED[fault]
    with pytest.raises(InvalidInput, match=words):
        run({**spec, **change}, world, tmp_path)


def test_bad_input_ends_with_status_2_and_an_error_event(world, tmp_path):
    (tmp_path / "spec.json").write_text('{"steps": ')
    child = command("train", "--spec", tmp_path / "spec.json", "--data", world, "--out", tmp_path / "out")
    stdout, _ = child.communicate(timeout=60)
    error = json.loads(stdout)
    assert child.returncode == 2 and error["code"] == "input_invalid" and "not JSON" in error["message"]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_weights(world, spec, tmp_path):
    with pytest.raises(Diverged, match="learning rate below"):
        run({**spec, "optimizer": {"name": "sgd", "lr": 1e30}, "schedule": "constant"}, world, tmp_path)


class Crowded(models.train.Run):
    """A run on a device that holds `room` patches."""

    room = 2

    def _learn_part(self, images, labels, spacing, **of):
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 bytes.")
        return super()._learn_part(images, labels, spacing, **of)


def test_a_batch_that_does_not_fit_is_learnt_from_in_parts_with_the_same_gradients(world, spec, tmp_path, monkeypatch):
    """With instance normalisation a part is what the batch is, but for rounding."""
    network = spec["network"] | {"normalisation": "instance"}
    wide = {**spec, "network": network, "batch": 5, "steps": 6, "checkpoint_every": 3}
    run(wide, world, tmp_path / "whole")
    monkeypatch.setattr(models.train, "Run", Crowded)
    events = run(wide, world, tmp_path / "parts")
    warned = [each["message"] for each in events if each["event"] == "log" and each["level"] == "warning"]
    assert [message.split(" From here on ")[1][:40] for message in warned] == [
        "it is learnt from in 2 parts of up to 3,",
        "it is learnt from in 4 parts of up to 2,",
    ], "and not again at every step"
    (whole, _), (parts, _) = (checkpoints.load(tmp_path / name / "best.safetensors") for name in ("whole", "parts"))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-4) for name in whole)
    step = tmp_path / "parts/checkpoints/000003.safetensors"
    events = run(wide, world, tmp_path / "resumed", resume=step)
    assert not [each for each in events if each["event"] == "log"], "a resumed run knows that it needs parts"
    (again, _) = checkpoints.load(tmp_path / "resumed/best.safetensors")
    assert all(torch.equal(again[name], parts[name]) for name in parts)


def test_out_of_memory_is_reported_when_one_patch_does_not_fit(world, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(models.train, "Run", Crowded)
    monkeypatch.setattr(Crowded, "room", 0)
    with pytest.raises(OutOfMemory, match="batch of 2 patches of 32 x 32"):
        run(spec, world, tmp_path)


def test_out_of_memory_is_reported_with_a_suggestion(world, spec, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.setattr(Run, "_step", full)
    with pytest.raises(OutOfMemory, match="batch of 2 patches of 32 x 32"):
        run(spec, world, tmp_path)


def test_full_disk_at_a_checkpoint_ends_with_a_sentence_and_keeps_the_one_before(world, spec, tmp_path):
    """A limit on the size of a file stands for a full disk; the first checkpoint was written before it."""
    run({**spec, "steps": 4, "checkpoint_every": 4}, world, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "steps": 6, "checkpoint_every": 4}))
    limited = "import resource, sys; from models.__main__ import main; resource.setrlimit(resource.RLIMIT_FSIZE,"
    limited += " (4096, 4096)); sys.exit(main(sys.argv[1:]))"
    command = ["train", "--spec", tmp_path / "spec.json", "--data", world, "--out", tmp_path]
    ended = subprocess.run([sys.executable, "-c", limited, *command], check=False, capture_output=True, text=True)
    told = json.loads(ended.stdout.splitlines()[-1])
    assert (ended.returncode, told["code"]) == (1, "storage_full"), ended.stderr
    assert told["message"].startswith("There is no room on the disk for") and "resume" in told["message"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before


def test_flipped_byte_of_a_checkpoint_is_detected(world, spec, tmp_path):
    last = tmp_path / named(run({**spec, "steps": 2}, world, tmp_path), "checkpoint")[-1]["path"]
    good = last.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*rng.integers(8, len(good), 40), 8, len(good) - 1]:
        bad = bytearray(good)
        bad[place] ^= 0x10
        last.write_bytes(bad)
        with pytest.raises(InvalidInput, match=r"damaged|not one of our|belongs to another"):
            run({**spec, "steps": 2}, world, tmp_path, resume=last)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8 + b"{}", b"not a checkpoint at all"])
def test_a_file_that_is_no_checkpoint_is_refused(world, spec, tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InvalidInput, match="damaged or not a safetensors"):
        run(spec, world, tmp_path, resume=tmp_path / "x.safetensors")


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(world, spec, tmp_path):
    last = tmp_path / named(run({**spec, "steps": 2}, world, tmp_path), "checkpoint")[-1]["path"]
    with pytest.raises(InvalidInput, match="batch, seed, steps differ"):
        run({**spec, "batch": 1, "seed": 9}, world, tmp_path, resume=last)
    with pytest.raises(InvalidInput, match="holds weights"):
        run({**spec, "steps": 2}, world, tmp_path, resume=tmp_path / "best.safetensors")
    with pytest.raises(InvalidInput, match="no file"):
        run(spec, world, tmp_path, resume=tmp_path / "nowhere.safetensors")


def test_a_run_may_start_from_the_weights_of_another(world, spec, tmp_path):
    run({**spec, "steps": 40, "validate_every": 40}, world, tmp_path / "first")
    events = run(
        {**spec, "steps": 1, "validate_every": 1},
        world,
        tmp_path / "second",
        start_from=tmp_path / "first/best.safetensors",
    )
    fresh = run({**spec, "steps": 1, "validate_every": 1}, world, tmp_path / "third")
    assert named(events, "step")[0]["loss"] < 0.7 * named(fresh, "step")[0]["loss"]
    with pytest.raises(InvalidInput, match="do not fit this network"):
        run(
            {**spec, "network": {"name": "unet", "channels": [4, 9]}},
            world,
            tmp_path,
            start_from=tmp_path / "first/best.safetensors",
        )


def test_early_stopping_waits_for_its_patience(world, spec, tmp_path):
    frozen = {**spec, "steps": 20, "validate_every": 1, "optimizer": {"name": "sgd", "lr": 1e-12, "momentum": 0.0}}
    events = run(
        {**frozen, "early_stopping": {"metric": "beta0_error", "patience": 3}, "checkpoint_every": 100}, world, tmp_path
    )
    done = events[-1]
    assert done["stopped_early"] and done["step"] < 20
    assert named(events, "checkpoint")[-1]["step"] == done["step"]
    figures = [e["metrics"]["beta0_error"] for e in named(events, "validation")]
    assert min(figures[:-3]) <= min(figures[-3:])


@pytest.mark.parametrize(
    "change",
    [
        {"scaling": "dataset"},
        {"scaling": "percentile"},
        {"scaling": "min_max"},
        {"scaling": "clipped"},
        {"foreground_fraction": 0.5},
        {"augment": False},
        {"seed": 5},
        {"schedule": "constant"},
        {"schedule": "cosine"},
        {"warmup": 3},
        {"clip_gradient": 0.1},
        {"accumulate": 2},
        {"average": 0.9},
        {"stages": [{"steps": 2}, {"steps": 2, "lr": 0.5}]},
        {"batch": 3},
        {"precision": "bfloat16"},
    ],
)
def test_every_training_option_changes_the_weights(world, spec, tmp_path, change):
    plain, changed = (
        run({**spec, "steps": 4}, world, tmp_path / "a"),
        run({**spec, "steps": 4, **change}, world, tmp_path / "b"),
    )
    weights = [checkpoints.load(tmp_path / name / "best.safetensors")[0]["model.head.weight"] for name in "ab"]
    assert not torch.equal(*weights) and plain[-1]["event"] == changed[-1]["event"] == "done"


def test_training_works_with_classes_channels_and_ignored_pixels(make_dataset, spec, tmp_path):
    data = make_dataset(classes=("background", "left", "right"), channels=2, ignore=255)
    terms = [{"name": name} for name in ("cross_entropy", "dice", "soft_cldice", "skeleton_hard_pixels")]
    loss = {"terms": terms, "neighbour_penalty": {"window": 3, "mode": "add"}}
    events = run({**spec, "loss": loss, "steps": 3, "validate_every": 3}, data, tmp_path / "out")
    validation = named(events, "validation")[0]
    assert set(validation["per_class"]) == {"left", "right"} and "dice" in validation["metrics"]
    assert len(named(events, "step")[0]["terms"]) == 8


def test_images_smaller_than_the_patch_are_trained_on_with_every_term(make_dataset, spec, tmp_path):
    data = make_dataset(sides=(24, 64))
    terms = [{"name": name} for name in ("cross_entropy", "dice", "skeleton_hard_pixels", "betti_matching")]
    change = {"loss": {"terms": terms}, "steps": 4, "checkpoint_every": 2, "foreground_fraction": 0.5}
    events = run({**spec, **change}, data, tmp_path / "out")
    assert events[1]["message"].startswith("5 of 5 images are smaller than the patch")
    with pytest.raises(Stopped):
        run({**spec, **change}, data, tmp_path / "again", stopping=stop_after(4))
    (left,) = (tmp_path / "again/checkpoints").iterdir()
    assert run({**spec, **change}, data, tmp_path / "again", resume=left)[-1]["sha256"] == events[-1]["sha256"]


def test_labels_without_any_foreground_are_refused_before_training(make_dataset, spec, tmp_path):
    data = make_dataset()
    for index in range(6):
        np.save(data / f"labels/{index}.npy", np.zeros((48, 56), np.uint8))
    with pytest.raises(InvalidInput, match="None of the 5 training labels has a pixel of vessel"):
        run(spec, data, tmp_path / "out")
    assert run.events == []


def test_class_that_no_label_holds_is_told_before_training(make_dataset, spec, tmp_path):
    data = make_dataset(classes=("background", "vessel", "plaque"), splits=["val"] + ["train"] * 5)
    for index in range(1, 6):
        path = data / f"labels/{index}.npy"
        np.save(path, np.minimum(np.load(path), 1))
    told = [event["message"] for event in named(run({**spec, "steps": 1}, data, tmp_path / "out"), "log")]
    assert told == ["Class plaque is in no training label: it cannot be learnt."]


def test_volumes_are_trained_with_the_same_command(make_dataset, spec, tmp_path):
    data = make_dataset(sides=(8, 24, 32), count=3)
    network = {"name": "unet", "dimensions": 3, "channels": [2, 4]}
    events = run(
        {**spec, "network": network, "patch": [8, 16, 16], "steps": 2, "validate_every": 2}, data, tmp_path / "out"
    )
    assert "beta2_error" in events[-1]["metrics"]


def test_metric_comparison_uses_the_direction_of_each_metric():
    assert better("dice", 0.8, 0.7) and not better("dice", 0.7, 0.7)
    for metric in ("beta0_error", "betti_matching_error", "voi_split", "adapted_rand_error", "hd95"):
        assert better(metric, 1, 2) and not better(metric, 2, 1)
    assert better("dice", 0.0, None) and not better("dice", None, None)


def test_means_skip_undefined_values():
    means = mean_metrics([{"hd95": None, "dice": 1.0}, {"hd95": 4.0, "dice": 0.0}, {"hd95": float("nan"), "dice": 0.5}])
    assert means == {"hd95": 4.0, "dice": 0.5}
    assert mean_metrics([{"hd95": None}]) == {"hd95": None}


def test_tiled_validation_equals_the_whole_image(world, spec, tmp_path):
    run({**spec, "steps": 4, "network": {"name": "unet", "channels": [3, 4, 5]}}, world, tmp_path)
    network, _ = load_network(tmp_path / "best.safetensors")
    image = np.random.default_rng(0).standard_normal((1, 93, 110)).astype(np.float32)
    whole, tiled = predict(network, image, tile=256), predict(network, image, tile=32)
    assert whole.shape == (1, 93, 110) and np.abs(whole - tiled).max() < 1e-6


def test_process_ends_without_taking_the_interpreter_apart():
    slow_to_end = "import atexit, time; from models.__main__ import leave; atexit.register(time.sleep, 600)"
    command = [sys.executable, "-c", f"{slow_to_end}; print('said'); leave(3)"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (3, b"said\n")


def test_step_events_hold_gradient_norm_factor_and_cosine_per_term(world, spec, tmp_path):
    terms = [*spec["loss"]["terms"], {"name": "topograph", "weight": 1000.0}, {"name": "soft_cldice", "from_step": 6}]
    run({**spec, "loss": {"terms": terms}}, world, tmp_path)
    steps = named(run.events, "step")
    assert set(steps[0]["gradients"]) == {"cross_entropy", "dice", "topograph"}
    assert set(steps[-1]["gradients"]) == {"cross_entropy", "dice", "topograph", "soft_cldice"}
    for facts in steps[0]["gradients"].values():
        assert facts["norm"] > 0 and 0 < facts["factor"] <= 1 and -1 <= facts["cosine"] <= 1
    assert steps[0]["gradients"]["topograph"]["factor"] < 0.1 and steps[0]["gradients"]["dice"]["factor"] == 1


def test_auto_window_follows_the_width_of_the_training_labels(make_dataset, spec, tmp_path):
    """Lines and rings of three pixels; three times as large they are nine wide."""
    data = make_dataset()
    for factor, window in ((1, 3), (3, 9)):
        for path in (data / "labels").glob("*.npy"):
            np.save(path, np.kron(np.load(path), np.ones((factor, factor), np.uint8)))
        for path in (data / "images").glob("*.npy"):
            np.save(path, np.kron(np.load(path), np.ones((1, factor, factor), np.uint8)))
        loss = {**spec["loss"], "neighbour_penalty": {"window": "auto", "mode": "add"}}
        out = tmp_path / str(window)
        events = run({**spec, "loss": loss}, data, out)
        for event in (events[0], events[-1]):
            assert event["resolved"]["loss"]["neighbour_penalty"] == {"window": window, "mode": "add"}
        assert checkpoints.load(out / "best.safetensors")[1]["spec"]["loss"]["neighbour_penalty"]["window"] == window
        explicit = run({**spec, "loss": events[0]["resolved"]["loss"]}, data, tmp_path / f"{window} by hand")
        assert "resolved" not in explicit[-1] and explicit[-1]["sha256"] == events[-1]["sha256"]
