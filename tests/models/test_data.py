"""Training data: sampling, augmentation, scaling, splits, refusals."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from models.data import common_spacing, read_dataset, split_items
from models.errors import InvalidInput
from models.sampling import Oversampling, PatchSampler
from models.scaling import fit_scaling, scale


def sampler(items, **options):
    defaults = {"patch": (16, 16), "batch": 2, "scaling": {"kind": "image"}, "augment": True, "seed": 3}
    return PatchSampler(items, **{**defaults, **options})


def test_batch_depends_only_on_seed_and_step(world):
    items = read_dataset(world).items
    first, again, other = sampler(items).draw(5), sampler(items).draw(5), sampler(items, seed=4).draw(5)
    assert all(np.array_equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], sampler(items).draw(6)[0])


def test_each_image_is_drawn_once_per_epoch_in_new_order(world):
    drawing = sampler(read_dataset(world).items)
    epochs = [[drawing._item(epoch * 6 + place) for place in range(6)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert [drawing.epoch(step) for step in (1, 3, 4, 6, 7)] == [0, 0, 1, 1, 2]


def test_augmentation_moves_image_and_label_together(make_dataset):
    items = read_dataset(make_dataset(count=1, sides=(40, 40))).items
    label = items[0].label()
    drawing = sampler(items, patch=(40, 40), batch=32)
    drawing.images[0] = np.array(label[None], np.float32)  # an image that is its own label
    drawing.scales[0] = lambda part: part
    images, labels, _ = drawing.draw(1)
    correlation = [np.corrcoef(i.ravel(), y.ravel())[0, 1] for i, y in zip(images, labels, strict=True)]
    assert min(correlation) > 0.95
    assert len({y.tobytes() for y in labels}) == 8  # all symmetries of the square, and no other


def test_without_augmentation_patches_are_crops_of_the_scaled_image(world):
    items = read_dataset(world).items[:1]
    images, labels, _ = sampler(items, augment=False, batch=1).draw(2)
    whole = scale(items[0].image(), {"kind": "image"})
    found = [
        (r, c)
        for r in range(48 - 15)
        for c in range(56 - 15)
        if np.array_equal(whole[:, r : r + 16, c : c + 16], images[0])
        and np.array_equal(items[0].label()[r : r + 16, c : c + 16], labels[0])
    ]
    assert len(found) == 1


def test_oblong_patch_is_never_rotated_by_90_degrees(world):
    images, labels, _ = sampler(read_dataset(world).items, patch=(16, 24), batch=8).draw(1)
    assert images.shape == (8, 1, 16, 24) and labels.shape == (8, 16, 24)


def test_patches_carry_spacing_and_anisotropic_ones_are_not_rotated(make_dataset):
    items = read_dataset(make_dataset(count=2, sides=(40, 40))).items
    assert sampler(items).draw(1)[2] is None
    tall = [dataclasses.replace(item, spacing_mm=(2.0, 1.0)) for item in items]
    drawing = sampler(tall, patch=(40, 40), batch=64)
    assert drawing.draw(1)[2].tolist() == [[2.0, 1.0]] * 64
    assert len({label.tobytes() for label in drawing.draw(1)[1]}) == 2 * 4  # two images, flips only


def test_image_scaling_has_mean_zero_and_deviation_one_per_channel():
    image = np.random.default_rng(0).integers(0, 65535, (2, 31, 17)).astype(np.uint16)
    scaled = scale(image, {"kind": "image"})
    assert scaled.dtype == np.float32
    assert np.allclose(scaled.mean((1, 2)), 0, atol=1e-5) and np.allclose(scaled.std((1, 2)), 1, atol=1e-5)
    assert np.array_equal(scale(np.full((1, 4, 4), 7), {"kind": "image"}), np.zeros((1, 4, 4)))


def test_dataset_scaling_is_fitted_on_the_training_items_only(world):
    items = read_dataset(world).items
    fitted = fit_scaling("dataset", items[:4])
    pixels = np.concatenate([item.image().ravel() for item in items[:4]]).astype(float)
    assert fitted["mean"] == pytest.approx([pixels.mean()]) and fitted["std"] == pytest.approx([pixels.std()])
    assert np.allclose(scale(items[5].image(), fitted), (items[5].image() - pixels.mean()) / pixels.std(), atol=1e-4)


def test_group_is_never_in_both_training_and_validation(make_dataset):
    items = read_dataset(make_dataset(count=12, groups=list("aabbccddeeff"))).items
    for seed in range(5):
        train, val = split_items(items, validation_fraction=0.3, seed=seed)
        assert len(val) == 4 and not {i.group for i in train} & {i.group for i in val}


def test_folds_part_the_items_and_each_is_validated_once(make_dataset):
    items = read_dataset(make_dataset(count=7)).items
    parts = [split_items(items, folds=3, fold=fold, seed=1) for fold in range(3)]
    assert sorted(i.id for _, val in parts for i in val) == sorted(i.id for i in items)
    assert all({i.id for i in train} == {i.id for i in items} - {i.id for i in val} for train, val in parts)


def test_items_with_a_given_split_keep_it(make_dataset):
    splits = ["train", "val", None, None, "train", None]
    items = read_dataset(make_dataset(splits=splits)).items
    train, val = split_items(items, validation_fraction=0.9)
    assert [i.id for i in val] == ["item1"] and len(train) == 5


def test_single_image_is_used_for_training(make_dataset):
    train, val = split_items(read_dataset(make_dataset(count=1)).items)
    assert len(train) == 1 and not val


def test_group_in_both_splits_is_refused(make_dataset):
    items = read_dataset(make_dataset(groups=list("aabbcc"), splits=["train", "val", None, None, None, None])).items
    with pytest.raises(InvalidInput, match="Group a"):
        split_items(items)


def break_array(folder, name, array):
    np.save(folder / name, array)


DAMAGES = {
    "a label of another size": (lambda f: break_array(f, "labels/0.npy", np.zeros((9, 9), np.uint8)), "must be equal"),
    "a class that is not named": (
        lambda f: break_array(f, "labels/0.npy", np.full((48, 56), 7, np.uint8)),
        r"holds \[7\]",
    ),
    "a missing channel": (lambda f: break_array(f, "images/0.npy", np.zeros((48, 56))), "1 channels and 2 image axes"),
    "NaN": (lambda f: break_array(f, "images/0.npy", np.full((1, 48, 56), np.nan)), "not finite"),
    "complex pixels": (lambda f: break_array(f, "images/0.npy", np.zeros((1, 48, 56), complex)), "real number"),
    "a truncated image": (
        lambda f: (f / "images/0.npy").write_bytes((f / "images/0.npy").read_bytes()[:200]),
        "cannot be read",
    ),
    "a missing image": (lambda f: (f / "images/0.npy").unlink(), "cannot be read"),
    "no items": (
        lambda f: (f / "dataset.json").write_text(json.dumps({"classes": ["a", "b"], "items": []})),
        "no labelled items",
    ),
    "one class": (lambda f: (f / "dataset.json").write_text(json.dumps({"classes": ["a"], "items": []})), "at least 2"),
    "no description": (lambda f: (f / "dataset.json").unlink(), "no dataset.json"),
    "half a description": (lambda f: (f / "dataset.json").write_text('{"classes": '), "not a dataset"),
    "pickled objects": (
        lambda f: np.save(f / "images/0.npy", np.array([{}], object), allow_pickle=True),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_invalid_dataset_is_refused_with_a_message(make_dataset, damage):
    folder = make_dataset()
    hurt, words = DAMAGES[damage]
    hurt(folder)
    with pytest.raises(InvalidInput, match=words):
        read_dataset(folder)


def test_what_a_small_image_lacks_is_filled_up_and_not_labelled(world):
    items = read_dataset(world).items[:1]
    drawing = sampler(items, patch=(64, 32), augment=False, batch=16, ignore=255)
    images, labels, _ = drawing.draw(1)
    rows = (labels != 255).all(2)
    assert images.shape == (16, 1, 64, 32) and (rows.sum(1) == 48).all()  # all of its 48 rows are in each patch
    assert len({int(row.argmax()) for row in rows}) > 4  # anywhere in it
    first = rows[0].argmax()
    assert (images[0, 0, :first] == images[0, 0, first]).all()  # filled up by the nearest pixels


def test_a_patch_larger_than_an_image_is_refused_where_no_value_means_unlabelled(world):
    with pytest.raises(InvalidInput, match="64 x 32 is larger than image item0, 48 x 56"):
        sampler(read_dataset(world).items, patch=(64, 32))


@pytest.mark.parametrize("places", ["pixels", "skeleton"])
def test_oversampled_patches_hold_a_pixel_of_a_class_in_their_middle(make_dataset, places):
    items = read_dataset(make_dataset(sides=(64, 64), classes=("background", "a", "b"))).items
    oversampling = Oversampling(1.0, places)
    _, labels, _ = sampler(items, patch=(8, 8), batch=64, augment=False, oversampling=oversampling).draw(1)
    inside = [label for label in labels if label[4, 4]]
    assert len(inside) > 48  # the others were moved off the border
    assert {label[4, 4] for label in inside} == {1, 2}
    _, anywhere, _ = sampler(items, patch=(8, 8), batch=64, augment=False).draw(1)
    assert sum(bool(label[4, 4]) for label in anywhere) < 32


def test_clipped_scaling_is_fitted_on_labelled_pixels_of_the_training_items(world):
    items = read_dataset(world).items[:3]
    fitted = fit_scaling("clipped", items)
    pixels = np.concatenate([item.image()[0][item.label() == 1] for item in items]).astype(float)
    low, high = np.percentile(pixels, [0.5, 99.5])
    kept = pixels.clip(low, high)
    assert (fitted["low"], fitted["high"]) == ([low], [high]) and fitted["dtype"] == "uint8"
    assert fitted["mean"] == pytest.approx([kept.mean()]) and fitted["std"] == pytest.approx([kept.std()])
    expected = (items[0].image().clip(low, high) - kept.mean()) / kept.std()
    assert np.allclose(scale(items[0].image(), fitted), expected, atol=1e-4)


def test_percentile_scaling_reaches_from_0_to_1_of_each_channel():
    image = np.stack([np.arange(400.0), 7 - np.arange(400.0)]).reshape(2, 20, 20)
    image[0, 0, 0] = -1e6  # one wild pixel
    scaled = scale(image, fit_scaling("percentile", []))
    assert scaled.min() == 0 and scaled.max() == pytest.approx(1)
    assert scaled[0, 5, 0] == pytest.approx((100 - 1.995) / (397.005 - 1.995), abs=1e-5)
    assert scale(image, {"kind": "min_max"})[0, 5, 0] > 0.999


def test_common_spacing_is_the_median_of_sizes_that_are_alike(make_dataset):
    alike = read_dataset(make_dataset(count=3, spacing_mm=[(1.0, 2.0), (1.05, 2.0), (1.02, 2.1)]))
    assert common_spacing(alike.items) == [1.02, 2.0]
    for sizes in ([(1.0, 2.0), (1.0, 2.0), (1.0, 2.5)], [(1.0, 2.0), None, (1.0, 2.0)], [None] * 3):
        assert common_spacing(read_dataset(make_dataset(count=3, spacing_mm=sizes)).items) is None


@pytest.mark.parametrize("kind", ["image", "percentile", "clipped"])
def test_warped_patches_are_those_of_the_scaled_image_also_at_its_border(make_dataset, kind):
    items = read_dataset(make_dataset(count=1, channels=2)).items
    scaling = fit_scaling(kind, items)
    drawing = PatchSampler(items, patch=(16, 16), batch=1, scaling=scaling, augment=False, seed=0, ignore=255)
    whole, label = scale(items[0].image(), scaling), np.asarray(items[0].label())
    for shift in (np.array([20.3, 9.7]), np.array([-12.4, 50.5]), np.array([-99.0, 3.0])):
        places = np.indices((16, 16)) * 1.3 + shift.reshape(2, 1, 1)
        image, _ = drawing._warped(drawing.images[0], label, places, drawing.scales[0])
        expected = [ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in whole]
        np.testing.assert_allclose(image, np.stack(expected), atol=1e-5)


def test_memory_does_not_grow_with_the_set(make_dataset):
    """Sixteen images of 512 x 512 would take 16 MiB as float32 and 4 MiB as they are."""
    items = read_dataset(make_dataset(count=16, sides=(512, 512))).items
    tracemalloc.start()
    try:
        options = {"patch": (32, 32), "batch": 4, "scaling": {"kind": "image"}, "augment": True, "seed": 0}
        drawing = PatchSampler(items, **options)
        for step in range(1, 9):
            drawing.draw(step)
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()
