"""Augmentation: each change does what it says, within its bounds, and the same again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from app.schemas.augmentation import Augmentation as Schema
from models.augmentation import BOUNDS, KEEPS_TOPOLOGY, PRESETS, RANGES, Augmentation, hide_pieces, recolour
from models.data import read_dataset
from models.errors import InvalidInput, Stopped
from models.sampling import PatchSampler
from tests.models.training_runs import run

FIELDS = {field.name for field in dataclasses.fields(Augmentation)}


def tube():
    """A bright tube of 3 rows on dark ground: image (1, 40, 40) and label."""
    label = np.zeros((40, 40), np.uint8)
    label[18:21] = 1
    return label[None].astype(np.float32), label


def drawn(items, facts, *, step=1, batch=16, patch=(32, 32), **options):
    sampler = PatchSampler(
        items,
        patch=patch,
        batch=batch,
        scaling={"kind": "image"},
        augment=Augmentation.read(facts),
        seed=3,
        ignore=255,
        **options,
    )
    return sampler.draw(step)


def test_job_and_trainer_know_the_same_fields_presets_and_bounds():
    assert set(Schema.model_fields) == FIELDS | {"preset"} and set(KEEPS_TOPOLOGY) == FIELDS - {"chance", "hidden_side"}
    schema = Schema.model_json_schema()["properties"]
    assert set(schema["preset"]["enum"]) == set(PRESETS)
    for name, bounds in {**BOUNDS, **RANGES}.items():
        stated = schema[name]["anyOf"][0]
        stated = stated.get("items", stated)
        assert (stated["minimum"], stated["maximum"]) == bounds, name


def test_what_the_service_sends_is_read_as_the_preset_with_its_changes():
    sent = Schema(preset="colour", hue=0.1, gamma=[0.9, 1.1]).model_dump(mode="json")
    assert Augmentation.read(sent) == dataclasses.replace(PRESETS["colour"], hue=0.1, gamma=(0.9, 1.1))
    assert Augmentation.read(True) == PRESETS["default"] and Augmentation.read(False) == Augmentation()
    for preset in PRESETS.values():
        preset.check()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"preset": "wild"}, "none, default, colour"),
        ({"flip": True}, "has no flip"),
        ({"blur": 99}, "give 0 to 10"),
        ({"scale": [2, 1]}, "the smaller and the larger"),
        ({"gamma": [0, 1]}, "in 0.1 to 10"),
    ],
)
def test_augmentation_out_of_bounds_is_refused(facts, words):
    with pytest.raises(InvalidInput, match=words):
        Augmentation.read(facts)


def test_default_draws_the_patches_that_it_always_drew(world):
    """The sums of the first batch at the commit before this file."""
    images, labels, _ = drawn(read_dataset(world).items, True, batch=2)
    assert labels.sum() == 331 and float(images.astype(np.float64).sum()) == pytest.approx(620.445956, rel=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_same_step_gives_the_same_patches(make_dataset, preset):
    items = read_dataset(make_dataset(channels=3, count=2)).items
    first, again = (drawn(items, {"preset": preset, "chance": 1}, step=4) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    assert first[0].dtype == np.float32 and first[0].shape == (16, 3, 32, 32) and np.isfinite(first[0]).all()


@pytest.mark.parametrize("name", ["contrast", "brightness", "gamma", "hue", "saturation", "blur", "low_resolution"])
def test_change_of_appearance_leaves_the_label_alone(make_dataset, name):
    items = read_dataset(make_dataset(channels=3, count=1, sides=(32, 32))).items
    image = np.load(items[0].image_path)
    np.save(items[0].image_path, np.stack([image[0], image[0] // 2, image[0] // 3 + np.arange(32, dtype=np.uint8)]))
    value = {"brightness": 1.0, "hue": 0.5, "blur": 2.0, "low_resolution": 4.0}.get(name, [0.3, 0.5])
    plain, changed = (drawn(items, {"preset": "none", "chance": 1, **more}) for more in ({}, {name: value}))
    assert np.array_equal(plain[1], changed[1])
    assert np.abs(plain[0] - changed[0]).max() > 0.05


def test_colour_turns_about_grey_and_keeps_the_mean():
    image = np.random.default_rng(0).standard_normal((3, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(recolour(image, 1 / 3, 1.0), image[[2, 0, 1]], atol=1e-5)
    np.testing.assert_allclose(recolour(image, 0.2, 3.0).mean(0), image.mean(0), atol=1e-5)
    np.testing.assert_allclose(recolour(image, 0.0, 0.0), np.broadcast_to(image.mean(0), image.shape), atol=1e-5)
    np.testing.assert_allclose(recolour(image, 1.0, 1.0), image, atol=1e-5)


def test_rotated_patch_is_the_image_turned_about_its_middle(make_dataset):
    items = read_dataset(make_dataset(count=1, sides=(33, 33))).items
    augmentation = Augmentation(rotation=90, chance=1)
    places = augmentation.places((33, 33), None, np.random.default_rng(1))
    middle = places[:, 16, 16]
    np.testing.assert_allclose(middle, [16, 16], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(places[:, 0, 16] - middle), 16, atol=1e-9)
    images, labels, _ = drawn(items, {"preset": "none", "rotation": 45, "chance": 1}, patch=(32, 32))
    assert (labels == 255).any() and (labels == 1).any()  # corners lie outside of the image
    correlation = [
        np.corrcoef(image[0][label < 255], label[label < 255])[0, 1]
        for image, label in zip(images, labels, strict=True)
    ]
    assert min(correlation) > 0.85
    assert augmentation.places((33, 33), (2.0, 1.0), np.random.default_rng(1))[0, 0, 0] == 0  # not square: no turn


def test_scale_enlarges_structures_by_its_factor():
    places = Augmentation(scale=(2, 2), chance=1).places((9, 9), None, np.random.default_rng(0))
    np.testing.assert_allclose(places[0, :, 4], np.linspace(2, 6, 9))


def test_elastic_shifts_are_smooth_and_as_large_as_stated():
    rng = np.random.default_rng(0)
    shifts = Augmentation(elastic=3, chance=1).places((128, 128), None, rng) - np.indices((128, 128))
    assert 1 < shifts.std() < 5
    assert np.abs(np.diff(shifts, axis=1)).max() < 1  # never folds over


def test_hidden_pieces_take_the_place_of_the_background_in_the_image_only():
    image, label = tube()
    hidden = hide_pieces(image, label, 2, 9, np.random.default_rng(0))
    assert image.sum() == 120  # the original is kept
    lost = image[0] - hidden[0]
    assert 0 < (lost > 0.5).sum() < 60 and (lost[label == 0] == 0).all()
    assert ndimage.label(hidden[0] > 0.5)[1] >= 2  # the tube looks cut
    assert np.array_equal(hide_pieces(image, np.zeros_like(label), 3, 9, np.random.default_rng(0)), image)
    assert np.array_equal(hide_pieces(image, np.ones_like(label), 3, 9, np.random.default_rng(0)), image)


def test_pieces_of_volumes_are_hidden_too():
    label = np.zeros((12, 20, 20), np.uint8)
    label[:, 9:12, 9:12] = 1
    image = label[None].astype(np.float32)
    hidden = hide_pieces(image, label, 1, 5, np.random.default_rng(2))
    assert (hidden < image).any() and (hidden <= image).all()


def test_topology_of_labels_is_kept_or_the_run_says_that_it_may_not_be(world, spec, tmp_path):
    assert Augmentation.read({"preset": "strong"}).may_change_topology == ["rotation", "scale"]
    assert not any(PRESETS[name].may_change_topology for name in ("none", "default", "colour", "tubes"))
    loss = {"terms": [{"name": "dice"}, {"name": "topograph"}]}
    events = run({**spec, "steps": 1, "augment": {"preset": "strong"}, "loss": loss}, world, tmp_path / "out")
    (told,) = [event for event in events if event["event"] == "log"]
    assert told["level"] == "warning" and "rotation, scale, which may cut thin structures" in told["message"]


def test_augmented_run_resumes_to_the_same_bits(world, spec, tmp_path):
    change = {**spec, "augment": {"preset": "strong", "hidden_pieces": 2, "elastic": 2.0, "chance": 1}, "steps": 4}
    whole = run({**change, "checkpoint_every": 2}, world, tmp_path / "whole")
    asked = iter(range(100))
    with pytest.raises(Stopped):
        run({**change, "checkpoint_every": 2}, world, tmp_path / "part", stopping=lambda: next(asked) >= 4)
    left = max((tmp_path / "part/checkpoints").iterdir())
    again = run({**change, "checkpoint_every": 2}, world, tmp_path / "part", resume=left)
    assert again[-1]["sha256"] == whole[-1]["sha256"]
