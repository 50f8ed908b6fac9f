"""Surface distances against MONAI, by hand and by their relations."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

from tests.topology.masks import random_masks
from topology.surfaces import surface, surface_distances


def pairs(count, *, seed):
    """Random masks with a second one of the same shape, which may be empty, and a spacing."""
    random = np.random.default_rng(seed)
    for mask in random_masks(count, seed=seed):
        yield mask, random.permutation(mask.ravel()).reshape(mask.shape), random.random(mask.ndim) + 0.3


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")  # MONAI warns of its own call
def test_surface_distances_agree_with_monai_in_every_spacing():
    compared = 0
    for prediction, reference, spacing in pairs(120, seed=1):
        if not prediction.any() or not reference.any() or 1 in prediction.shape:
            continue
        ours = surface_distances(prediction, reference, spacing=spacing)
        masks = [torch.as_tensor(mask.astype(np.float32))[None, None] for mask in (prediction, reference)]
        options = {"include_background": True, "spacing": spacing.tolist()}
        for tolerance in (0.0, 0.5, 1.2):
            assert ours.dice(tolerance) == pytest.approx(
                float(compute_surface_dice(*masks, class_thresholds=[tolerance], **options))
            )
        average = compute_average_surface_distance(*masks, symmetric=True, **options)
        assert ours.average == pytest.approx(float(average), rel=1e-5)
        for percentile in (100, 95, 40):
            theirs = compute_hausdorff_distance(*masks, percentile=percentile, **options)
            assert ours.hausdorff(percentile) == pytest.approx(float(theirs), rel=1e-5)
        compared += 1
    assert compared > 60


def test_two_parallel_walls_are_as_far_apart_as_their_rows():
    first, second = np.zeros((10, 20), np.uint8), np.zeros((10, 20), np.uint8)
    first[2], second[6] = 1, 1
    apart = surface_distances(first, second, spacing=(0.5, 3.0))
    assert apart.average == apart.hausdorff() == apart.hausdorff(95) == pytest.approx(2.0)
    assert apart.dice(1.99) == 0 and apart.dice(2.0) == 1


def test_a_longer_wall_costs_surface_dice_and_average_only_where_it_is_longer():
    first, second = np.zeros((3, 12), bool), np.zeros((3, 12), bool)
    first[1, :5], second[1, :8] = True, True
    apart = surface_distances(first, second)
    assert apart.dice(0) == 10 / 13 and apart.dice(1) == 11 / 13 and apart.dice(3) == 1
    assert apart.average == pytest.approx((1 + 2 + 3) / 13) and apart.hausdorff() == 3


def test_empty_masks_agree_with_each_other_and_are_far_from_any_other():
    empty, one = np.zeros((4, 5)), np.zeros((4, 5))
    one[1, 1] = 1
    both, single = surface_distances(empty, empty), surface_distances(empty, one, spacing=(2, 2))
    assert (both.dice(1), both.average, both.hausdorff()) == (1, 0, 0)
    assert (single.dice(1e9), single.average, single.hausdorff()) == (0, 10, 10)


def test_the_surface_of_a_solid_box_is_its_shell_also_at_the_border():
    box = np.ones((4, 5, 6), bool)
    shell = surface(box)
    assert not shell[1:-1, 1:-1, 1:-1].any() and shell.sum() == box.size - 2 * 3 * 4


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        surface_distances(np.ones((3, 3)), np.ones((3, 4)))
