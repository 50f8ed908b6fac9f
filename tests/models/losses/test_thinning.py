"""Array-based thinning equals the compiled kernel pixel for pixel."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from models.losses.skeletons import skeletons
from models.losses.thinning import thin
from tests.topology.masks import random_masks, shared_masks
from topology.skeleton import skeletonize, zhang_suen


def assert_equal_to_the_kernel(masks):
    """masks: (N, K, ...) bool array."""
    expected = np.stack([skeletonize(mask) for mask in masks.reshape(-1, *masks.shape[2:])]).reshape(masks.shape)
    answer = thin(torch.from_numpy(masks))
    assert answer.dtype == torch.bool and np.array_equal(answer.numpy(), expected)


@pytest.mark.parametrize("sides", [(3, 4), (2, 6), (2, 2, 3), (1, 3, 4)])
def test_all_small_images_and_volumes_are_thinned_exactly(sides):
    assert_equal_to_the_kernel((np.arange(4096)[:, None] >> np.arange(12) & 1).astype(bool).reshape(-1, 1, *sides))


def test_random_masks_of_any_shape_are_thinned_exactly():
    for mask in random_masks(200, seed=1, longest=(30, 12)):
        assert_equal_to_the_kernel(np.stack([[mask, ~mask]]))


@pytest.mark.parametrize("sides", [(90, 101), (22, 25, 28)])
def test_large_blobs_are_thinned_exactly(sides):
    rng = np.random.default_rng(3)
    assert_equal_to_the_kernel(np.stack([[gaussian_filter(rng.standard_normal(sides), 4) > 0] for _ in range(3)]))


@pytest.mark.parametrize("sides", [(41, 40), (20, 21, 19), (6, 1, 30), (1, 9), (1, 1, 1)])
@pytest.mark.parametrize("value", [False, True])
def test_full_and_empty_masks_are_thinned_exactly(sides, value):
    assert_equal_to_the_kernel(np.full((2, 1, *sides), value))


@pytest.mark.parametrize("folder, count", [("chase_db1", 2), ("isbi12", 2), ("msd_hippocampus", 4)])
def test_real_masks_are_thinned_exactly(folder, count):
    images = [image for _, image, _ in shared_masks(folder, {"mask"})][:count]
    assert len(images) == count
    for image in images:
        mask = image == 0 if folder == "isbi12" else image > 0
        assert mask.any()
        assert_equal_to_the_kernel(mask[None, None])


def test_zhang_and_suens_thinning_equals_the_kernel_and_volumes_stay_exact():
    random = np.random.default_rng(7)
    planes = np.stack([[random.random((33, 70)) < share for share in (0.4, 0.7, 0.95)]])
    planes[0, 0, 3:5, 3:5] = True
    expected = np.stack([[zhang_suen(mask) for mask in planes[0]]])
    assert not np.array_equal(expected, np.stack([[skeletonize(mask) for mask in planes[0]]]))
    for thinned in (thin(torch.from_numpy(planes), zhang_suen=True), skeletons(torch.from_numpy(planes), "zhang_suen")):
        assert np.array_equal(thinned.numpy(), expected)
    volume = torch.from_numpy(random.random((1, 1, 9, 10, 11)) < 0.7)
    for thinned in (thin(volume, zhang_suen=True), skeletons(volume, "zhang_suen")):
        assert torch.equal(thinned, skeletons(volume))


def test_thinning_does_not_modify_its_input():
    masks = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    thin(masks)
    skeletons(masks)
    assert masks.all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sides", [(64, 70), (20, 24, 22)])
def test_a_mask_on_a_device_is_thinned_there_and_as_on_the_host(sides):
    masks = torch.from_numpy(np.random.default_rng(5).random((3, 2, *sides)) < 0.7)
    answer = skeletons(masks.cuda())
    assert answer.is_cuda and torch.equal(answer.cpu(), skeletons(masks))
