"""Grayscale thinning keeps the topology of every threshold, and is its definition, step by step."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tests.topology.masks import random_masks
from topology.components import betti_numbers
from topology.grayscale_thinning import grayscale_thinning
from topology.matching import match
from topology.persistence import persistence
from topology.simple import simple_points
from topology.skeleton import skeletonize
from topology.soft_thinning import continuous_skeleton

SHARED = Path(os.environ.get("TOPOSERVE_DATA_SHARED", Path(__file__).parents[2] / "../shared/data"))
both_connectivities = pytest.mark.parametrize("connectivity", ["closed", "open"])
with_and_without_ends = pytest.mark.parametrize("keep_ends", [True, False])


def tenths(text):
    return np.array([[int(value) for value in row.split()] for row in text.split("/")], np.float32)


def maps(count, *, seed, longest=(13, 6)):
    """Random maps of 0 or more: distinct values, few values, or smooth."""
    random = np.random.default_rng(seed)
    for number, mask in enumerate(random_masks(count, seed=seed, longest=longest)):
        values = random.random(mask.shape)
        if number % 3 == 1:
            values = np.round(values * 7) / 7
        if number % 3 == 2:
            values = gaussian_filter(values, 0.8)
        yield values.astype(np.float32)


def slow_thinning(values, connectivity, keep_ends, protect):
    """From the definition: one pixel after the other in the order of their keys, each question by `simple_points`."""
    current, donors = np.pad(values, 1), np.pad(np.arange(values.size).reshape(values.shape), 1, constant_values=-1)
    middle, steps = (1,) * values.ndim, [step for step in np.ndindex((3,) * values.ndim) if set(step) != {1}]

    def neighbours(place):
        return [tuple(np.add(place, step)) for step in steps]  # place is unframed, the answer framed

    def key(place, generation):
        parity = sum((coordinate % 2) << (values.ndim - 1 - axis) for axis, coordinate in enumerate(place))
        return current[tuple(np.add(place, 1))], generation, parity, place

    def falls(place):
        level, donor = current[tuple(np.add(place, 1))], donors[tuple(np.add(place, 1))]
        while level > 0:
            window = np.array([current[tuple(np.add(place, step))] >= level for step in np.ndindex((3,) * values.ndim)])
            window = window.reshape((3,) * values.ndim)
            window[middle] = True
            lower = [other for other in neighbours(place) if current[other] < level]
            end = keep_ends and window.sum() == 2
            if end or not lower or not simple_points(window, connectivity=connectivity)[middle]:
                break
            highest = max(lower, key=lambda other: current[other])  # of equal ones the first
            level, donor = current[highest], donors[highest]
        return level, donor

    def waits(place):
        return any(current[other] < current[tuple(np.add(place, 1))] for other in neighbours(place))

    queue = {place: key(place, 0) for place in np.ndindex(values.shape) if not protect[place] and waits(place)}
    while queue:
        place = min(queue, key=queue.get)
        before, generation, *_ = queue.pop(place)
        level, donor = falls(place)
        if level == before:
            continue
        current[tuple(np.add(place, 1))], donors[tuple(np.add(place, 1))] = level, donor
        for other in neighbours(place):
            inside = tuple(np.subtract(other, 1))
            free = all(0 <= c < side for c, side in zip(inside, values.shape, strict=True)) and not protect[inside]
            if free and level < current[other] <= before and inside not in queue:
                queue[inside] = key(inside, generation + 1)
    inner = (slice(1, -1),) * values.ndim
    return current[inner], donors[inner]


@both_connectivities
@with_and_without_ends
def test_grayscale_thinning_keeps_betti_numbers_at_every_threshold(connectivity, keep_ends):
    thinned = thresholds = 0
    for values in maps(90, seed=1):
        skeleton = grayscale_thinning(values, connectivity=connectivity, keep_ends=keep_ends).values
        assert (skeleton <= values).all()
        for threshold in np.unique(values[values > 0]):
            ours, theirs = (betti_numbers(each >= threshold, connectivity=connectivity) for each in (skeleton, values))
            assert ours == theirs, threshold
            thresholds += 1
        thinned += (skeleton < values).mean() > 0.2
    assert thinned > 60 and thresholds > 2000


@both_connectivities
@with_and_without_ends
def test_grayscale_thinning_equals_its_definition_in_values_and_donors(connectivity, keep_ends):
    random = np.random.default_rng(0)
    for values in maps(24, seed=2, longest=(9, 4)):
        protect = random.random(values.shape) < random.choice([0, 0.1])
        found = grayscale_thinning(values, connectivity=connectivity, keep_ends=keep_ends, protect=protect)
        skeleton, donors = slow_thinning(values, connectivity, keep_ends, protect)
        assert np.array_equal(found.values, skeleton) and np.array_equal(found.donors, donors)
        assert np.array_equal(found.values[protect], values[protect])


@pytest.mark.parametrize(
    "values, keep_ends, skeleton",
    [
        ("2 9 4 8 1", False, "0 9 4 8 0"),
        ("2 9 4 8 1", True, "2 9 4 8 1"),
        ("5 6 5 / 6 1 6 / 5 6 5", False, "0 6 0 / 6 1 6 / 0 6 0"),
        (
            "3 7 7 7 3 / 7 7 2 8 4 / 7 2 1 2 7 / 3 8 2 7 7 / 3 6 7 5 3",
            False,
            "0 0 7 0 0 / 0 7 1 8 0 / 7 1 1 1 7 / 0 8 1 7 0 / 0 0 7 0 0",
        ),
    ],
)
def test_grayscale_thinning_equals_hand_computed_values(values, keep_ends, skeleton):
    found = grayscale_thinning(tenths(values), keep_ends=keep_ends)
    assert np.array_equal(found.values, tenths(skeleton))
    assert np.array_equal(np.where(found.donors < 0, 0, tenths(values).ravel()[found.donors]), found.values)


def test_thick_bar_keeps_its_middle_row():
    bar = np.zeros((13, 40), np.float32)
    bar[2:11, 2:38] = 1
    skeleton = grayscale_thinning(bar).values
    assert (skeleton[:, 8:-8].sum(0) == 1).all() and skeleton[6, 8:-8].all()


@both_connectivities
def test_skeleton_and_map_have_the_same_matched_barcode(connectivity):
    for values in maps(40, seed=3):
        skeleton = grayscale_thinning(values, connectivity=connectivity).values
        matching = match(values, skeleton, connectivity=connectivity)
        codes = [persistence(each, connectivity=connectivity) for each in (values, skeleton)]
        bars = [sorted(zip(c.dimension, c.birth_values, np.maximum(c.death_values, 0), strict=True)) for c in codes]
        assert bars[0] == bars[1] and matching.error == 0
        assert all(
            matching.prediction.birth_values[a] == matching.reference.birth_values[b] for a, b in matching.matched
        )


def test_gradients_go_to_donors_and_equal_finite_differences():
    random = np.random.default_rng(4)
    for shape in ((9, 11), (4, 5, 6)):
        values, weight = random.permutation(np.prod(shape)).reshape(shape) + 1.0, random.standard_normal(shape)
        gradient = grayscale_thinning(values).back(weight)
        for place in np.ndindex(shape):
            bump = np.zeros(shape)
            bump[place] = 0.25
            up, down = ((weight * grayscale_thinning(values + sign * bump).values).sum() for sign in (1, -1))
            assert gradient[place] == pytest.approx((up - down) / 0.5, abs=1e-9)


@pytest.mark.parametrize("name", ["chase_db1/masks/Image_01L.png", "isbi12/masks/isbi12_00.png"])
def test_blurred_real_masks_keep_every_threshold_and_thin_to_lines(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is a real mask; set TOPOSERVE_DATA_SHARED to the folder that has it")
    mask = np.asarray(Image.open(SHARED / name))[:256, 100:356] > 0
    values = np.round(gaussian_filter(mask.astype(float), 2) * 255).astype(np.float32)
    protected = skeletonize(values >= 128)
    found = grayscale_thinning(values, protect=protected)
    assert all(betti_numbers(found.values >= level) == betti_numbers(values >= level) for level in range(1, 256))
    assert found.values[protected].tolist() == values[protected].tolist()
    assert (found.crests() & (found.values >= 128)).sum() < 0.15 * (values >= 128).sum()


def test_csp_keeps_one_threshold_and_grayscale_thinning_all():
    """The exact referee of continuous-tone simple points: equal numbers at 0.5, and elsewhere only here."""
    prob = gaussian_filter(np.random.default_rng(5).random((40, 44)), 1)
    prob = ((prob - prob.min()) / np.ptp(prob)).astype(np.float32)
    csp, ours = continuous_skeleton(prob), grayscale_thinning(prob).values
    kept = {
        level: [betti_numbers(skeleton > level) == betti_numbers(prob > level) for skeleton in (csp, ours)]
        for level in (0.3, 0.4, 0.5, 0.6, 0.7)
    }
    assert kept[0.5] == [True, True] and all(ours for _, ours in kept.values())
    assert not all(csp for csp, _ in kept.values())


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (1, 1, 1), (1, 4, 1), (3, 4, 5)])
@pytest.mark.parametrize("level", [0.0, 0.7])
def test_constant_maps_shrink_to_one_pixel_or_stay_empty(shape, level):
    found = grayscale_thinning(np.full(shape, level, np.float32), keep_ends=False)
    assert (found.values > 0).sum() == (level > 0) and found.values.max() == np.float32(level)
    assert ((found.donors < 0) == (found.values == 0)).all() or level == 0


def test_array_types_and_layouts_do_not_change_the_skeleton():
    values = np.round(gaussian_filter(np.random.default_rng(6).random((20, 24)), 1) * 255)
    single = grayscale_thinning(values.astype(np.float32))
    assert single.values.dtype == np.float32
    wide = np.repeat(values, 2, axis=1)
    wide.setflags(write=False)
    for other in (values, values.astype(np.uint8), np.asfortranarray(values), wide[:, ::2]):
        found = grayscale_thinning(other)
        assert np.array_equal(found.values, single.values) and np.array_equal(found.donors, single.donors)
    assert grayscale_thinning(values).values.dtype == np.float64


def test_crests_are_pixels_above_their_lowest_neighbour():
    found = grayscale_thinning(tenths("5 6 5 / 6 1 6 / 5 6 5"), keep_ends=False)
    assert np.array_equal(found.crests(), tenths("0 6 0 / 6 1 6 / 0 6 0") > 0)
    assert np.array_equal(found.crests(2), tenths("0 6 0 / 6 0 6 / 0 6 0") > 0)


def test_negative_nan_and_misshapen_maps_are_rejected():
    with pytest.raises(ValueError, match="0 or more"):
        grayscale_thinning(np.array([[0.5, -0.1]]))
    with pytest.raises(ValueError, match="1 NaN"):
        grayscale_thinning(np.array([[0.5, np.nan]]))
    with pytest.raises(ValueError, match="differ in shape"):
        grayscale_thinning(np.ones((3, 3)), protect=np.ones((3, 4)))
