"""Training with unlabelled images: only reference-free losses use them."""

import itertools
import json

import numpy as np
import pytest
import torch

from models.data import read_dataset, split_items, unlabelled_for_training
from models.errors import InvalidInput, Stopped
from models.losses import LOSSES, REFERENCE_FREE
from models.losses.combine import Objective
from models.networks import build, learn
from models.sampling import PatchSampler
from tests.models.losses.every_loss import KINDS, noisy_tube, term_of
from tests.models.training_runs import run

PRIOR = {"terms": [{"name": "cross_entropy"}, {"name": "betti_prior", "weight": 0.05}]}


def without_labels(folder, numbers, **facts):
    """The same dataset whose items of these numbers have no label."""
    described = json.loads((folder / "dataset.json").read_text())
    for number in numbers:
        described["items"][number] |= {"label": None, **facts}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("name", sorted(set(LOSSES) - REFERENCE_FREE))
@pytest.mark.parametrize("penalty", [None, {"window": 3, "mode": "add"}])
def test_supervised_loss_ignores_unlabelled_samples(name, penalty):
    objective = Objective({"terms": [term_of(name)], "neighbour_penalty": penalty})
    logits, target = noisy_tube(*KINDS["softmax in the plane"], batch=3)
    target[1] = 255
    spacing = np.array([[1.0, 1.0], [9.0, 9.0], [1.0, 2.0]])
    leaf = logits.clone().requires_grad_()
    total, parts = objective(leaf, target, step=1, ignore=255, spacing=spacing)
    total.mean().backward()
    alone = logits[[0, 2]].clone().requires_grad_()
    expected, expected_parts = objective(alone, target[[0, 2]], step=1, ignore=255, spacing=spacing[[0, 2]])
    expected.mean().backward()
    torch.testing.assert_close(total.mean(), expected.mean())
    torch.testing.assert_close(leaf.grad[[0, 2]], alone.grad)
    assert total[1] == 0 and not leaf.grad[1].any()
    assert parts.keys() == expected_parts.keys()
    torch.testing.assert_close(parts[name].values, expected_parts[name].values)
    torch.testing.assert_close(parts[name].norm, expected_parts[name].norm)


@pytest.mark.parametrize("name", sorted(REFERENCE_FREE))
def test_reference_free_loss_uses_every_sample_equally(name):
    objective = Objective({"terms": [{"name": name}]})
    logits, target = noisy_tube(*KINDS["sigmoid in the plane"])
    totals = [objective(logits, labels, step=1, ignore=255)[0] for labels in (target, torch.full_like(target, 255))]
    assert torch.equal(*totals)
    leaf = logits.clone().requires_grad_()
    objective(leaf, torch.full_like(target, 255), step=1, ignore=255)[0].sum().backward()
    assert leaf.grad[0].any() and leaf.grad[1].any()


def test_unlabelled_batch_has_zero_supervised_loss():
    logits, target = noisy_tube(*KINDS["sigmoid in the plane"])
    total, parts = Objective({"terms": [{"name": "dice"}]})(
        logits.requires_grad_(), torch.full_like(target, 255), step=1, ignore=255
    )
    total.sum().backward()
    assert not total.any() and parts == {} and not logits.grad.any()


def test_network_terms_are_means_over_labelled_samples():
    torch.manual_seed(0)
    options = {"name": "unet_pdmt", "channels": [4, 6], "structure_from_step": 0}
    network = build(options, channels_in=1, channels_out=1).eval()
    image, target = torch.randn(2, 1, 16, 16), torch.randint(0, 2, (2, 16, 16))
    target[1] = 255
    torch.manual_seed(1)
    both = learn(network, image, target, ignore=255)[1]["network/structure"]
    torch.manual_seed(1)
    torch.testing.assert_close(
        both.mean(), learn(network, image[:1], target[:1], ignore=255)[1]["network/structure"].mean()
    )


def test_half_of_each_batch_is_unlabelled_and_all_images_are_used(make_dataset):
    dataset = read_dataset(without_labels(make_dataset(), [1, 3, 4]))
    assert [item.id for item in dataset.items] == ["item0", "item2", "item5"] and [
        item.id for item in dataset.unlabelled
    ] == ["item1", "item3", "item4"]
    sampler = PatchSampler(
        dataset.items,
        patch=(32, 32),
        batch=4,
        scaling={"kind": "image"},
        augment=True,
        seed=0,
        unlabelled=dataset.unlabelled,
        without=2,
        ignore=255,
    )
    for step in range(1, 7):
        images, labels, _ = sampler.draw(step)
        assert images.shape == (4, 1, 32, 32) and labels.dtype == np.uint8
        assert (labels[:2] < 2).all() and (labels[2:] == 255).all()
    for pool in (0, 1):
        turns = [sampler._item(draw, pool) for draw in range(9)]
        assert sorted(turns) == sorted(3 * [0 + 3 * pool, 1 + 3 * pool, 2 + 3 * pool])
    assert sampler.epoch(1) == 0 and sampler.epoch(4) == 2


def test_unlabelled_images_are_never_validated_on_and_validation_groups_never_trained_on(make_dataset):
    data = make_dataset(groups=["a", "b", "c", "a", "b", "d"], splits=["val", "train", None, None, None, None])
    dataset = read_dataset(without_labels(data, [3, 4, 5]))
    _train_items, val_items = split_items(dataset.items)
    assert [item.id for item in val_items] == ["item0"]
    assert [item.id for item in unlabelled_for_training(dataset.unlabelled, val_items)] == [
        "item4",
        "item5",
    ]  # item3 is of the validated group a
    kept = read_dataset(without_labels(data, [5], split="val"))
    assert [item.id for item in unlabelled_for_training(kept.unlabelled, val_items)] == ["item4"]


def test_prior_trains_on_unlabelled_images_also_after_resume(make_dataset, spec, tmp_path):
    data = without_labels(make_dataset(), [1, 3, 4])
    spec = {**spec, "loss": PRIOR}
    whole = run(spec, data, tmp_path / "whole")
    assert (whole[0]["train_items"], whole[0]["val_items"], whole[0]["unlabelled_items"]) == (2, 1, 3)
    asked = itertools.count()
    with pytest.raises(Stopped):
        run(spec, data, tmp_path / "parts", stopping=lambda: next(asked) >= 9)
    latest = [event for event in run.events if event["event"] == "checkpoint"][-1]
    assert 0 < latest["step"] < 8
    run(spec, data, tmp_path / "elsewhere", resume=tmp_path / "parts" / latest["path"])
    last = "checkpoints/000008.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "elsewhere" / last).read_bytes()
    none = run({**spec, "unlabelled_fraction": 0.0}, data, tmp_path / "none")
    assert none[0]["unlabelled_items"] == 0 and none[-1]["sha256"] != whole[-1]["sha256"]


def test_unlabelled_images_change_nothing_without_a_reference_free_loss(make_dataset, spec, tmp_path):
    data = without_labels(make_dataset(), [1, 3, 4])
    told = run(spec, data, tmp_path / "with")
    described = json.loads((data / "dataset.json").read_text())
    described["items"] = [item for item in described["items"] if item["label"] is not None]
    (data / "dataset.json").write_text(json.dumps(described))
    run(spec, data, tmp_path / "without")
    assert told[0]["unlabelled_items"] == 0
    assert (tmp_path / "with/best.safetensors").read_bytes() == (tmp_path / "without/best.safetensors").read_bytes()


def test_impossible_unlabelled_training_is_refused_with_a_message(make_dataset, spec, tmp_path):
    data = without_labels(make_dataset(), [1, 3, 4])
    with pytest.raises(InvalidInput, match="Set batch to 2 or more"):
        run({**spec, "loss": PRIOR, "batch": 1}, data, tmp_path)
    with pytest.raises(InvalidInput, match="unlabelled_fraction is 1"):
        run({**spec, "unlabelled_fraction": 1.0}, data, tmp_path)
    with pytest.raises(InvalidInput, match="no labelled items"):
        run(spec, without_labels(data, range(6)), tmp_path)
