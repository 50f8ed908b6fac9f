"""Betti numbers and Euler characteristic against SciPy, scikit-image and real data."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import euler_number

from tests.topology.masks import mask, random_masks, shared_masks
from topology.components import (
    betti_numbers,
    euler_characteristic,
    label_background,
    label_components,
    label_holes,
    sizes_and_boxes,
)
from topology.grids import Connectivity

RING = mask("""
    .###.
    .#.#.
    .###. """)

DIAGONAL = mask("""
    #.
    .# """)

HOLLOW_BOX = np.pad(np.pad(np.zeros((1, 2, 3), bool), 1, constant_values=True), 1)


def structure(ndim, full):
    return ndimage.generate_binary_structure(ndim, ndim if full else 1)


def referee(image, connectivity):
    """Betti numbers from SciPy's labels and scikit-image's Euler number."""
    closed, ndim = connectivity == "closed", image.ndim
    components = ndimage.label(image, structure(ndim, closed))[1]
    enclosed = ndimage.label(np.pad(~image, 1, constant_values=True), structure(ndim, not closed))[1] - 1
    euler = euler_number(np.pad(image, 1), ndim if closed else 1)
    return (components, enclosed) if ndim == 2 else (components, components + enclosed - euler, enclosed)


def test_a_ring_has_one_component_and_one_loop():
    assert betti_numbers(RING) == (1, 1)
    assert euler_characteristic(RING) == 0


def test_a_ring_broken_by_one_pixel_loses_its_loop():
    broken = RING.copy()
    broken[0, 2] = False
    assert betti_numbers(broken) == (1, 0)


def test_two_diagonal_pixels_are_one_closed_component_and_two_open_ones():
    assert betti_numbers(DIAGONAL) == (1, 0)
    assert betti_numbers(DIAGONAL, connectivity="4/8") == (2, 0)


def test_a_hollow_box_has_a_cavity_and_no_loop():
    assert betti_numbers(HOLLOW_BOX) == (1, 0, 1)
    assert label_holes(HOLLOW_BOX)[1] == 1


def test_component_at_the_border_is_counted():
    assert betti_numbers(mask("#..#")) == (2, 0)


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_random_masks_agree_with_scipy_and_scikit_image(connectivity):
    for image in random_masks(400, seed=1):
        assert betti_numbers(image, connectivity=connectivity) == referee(image, connectivity)
        labels, count = label_components(image, connectivity=connectivity)
        expected, n = ndimage.label(image, structure(image.ndim, connectivity == "closed"))
        assert count == n and np.array_equal(labels, expected)


@pytest.mark.parametrize("columns", [63, 64, 65, 128, 200])
def test_rows_longer_than_64_pixels_are_counted(columns):
    image = np.random.default_rng(columns).random((20, columns)) < 0.5
    assert betti_numbers(image) == referee(image, "closed")
    assert betti_numbers(image, connectivity="open") == referee(image, "open")


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_every_3x3_window_agrees_with_scipy(connectivity):
    for code in range(512):
        window = (code >> np.arange(9) & 1).astype(bool).reshape(3, 3)
        assert betti_numbers(window, connectivity=connectivity) == referee(window, connectivity)


def test_euler_characteristic_is_the_alternating_sum_of_betti_numbers():
    for image in random_masks(100, seed=2):
        betti = betti_numbers(image)
        assert euler_characteristic(image) == sum(b * (-1) ** k for k, b in enumerate(betti))


def test_rotation_reflection_and_padding_keep_betti_numbers():
    for image in random_masks(60, seed=3):
        expected = betti_numbers(image)
        assert betti_numbers(image.T) == expected
        assert betti_numbers(image[::-1]) == expected
        assert betti_numbers(np.pad(image, 2)) == expected


def test_the_padded_complement_has_one_component_more_than_the_mask_has_holes():
    for image in random_masks(60, seed=4):
        complement = np.pad(~image, 1, constant_values=True)
        assert betti_numbers(complement, connectivity="open")[0] == betti_numbers(image)[-1] + 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_empty_full_and_single_pixel_masks_have_known_betti_numbers(ndim):
    shape = (5, 4, 3)[:ndim]
    zeros = (0,) * (ndim - 1)
    assert betti_numbers(np.zeros(shape)) == (0, *zeros)
    assert betti_numbers(np.ones(shape)) == (1, *zeros)
    assert betti_numbers(np.ones((1,) * ndim)) == (1, *zeros)
    assert label_components(np.zeros(shape))[1] == 0


def test_memory_layout_and_dtype_do_not_change_the_result_or_the_input():
    image = np.random.default_rng(5).random((12, 14)) < 0.5
    expected = betti_numbers(image)
    frozen = image.astype(np.uint8) * 255
    frozen.flags.writeable = False
    wide = np.zeros((24, 28), bool)
    wide[::2, ::2] = image
    for variant in (frozen, np.asfortranarray(image), wide[::2, ::2], image.astype(">i4"), image.astype(np.float64)):
        before = variant.copy()
        assert betti_numbers(variant) == expected
        assert np.array_equal(before, variant)


@pytest.mark.parametrize(
    "bad, sentence",
    [
        (np.zeros(3), "1 axes"),
        (np.zeros((2, 2, 2, 2)), "4 axes"),
        (np.zeros((0, 4)), "at least 1 pixel"),
        (np.array([[np.nan, 1.0]]), "1 NaN of 2 pixels"),
    ],
)
def test_invalid_mask_is_refused_with_a_reason(bad, sentence):
    with pytest.raises(ValueError, match=sentence):
        betti_numbers(bad)


def test_an_unknown_connectivity_is_refused_with_the_valid_ones():
    assert Connectivity("26/6") is Connectivity.CLOSED and Connectivity("4/8").pair(3) == "6/26"
    with pytest.raises(ValueError, match="8/4"):
        betti_numbers(RING, connectivity="8/8")


def test_cells_between_membranes_are_labelled_also_at_the_border():
    labels, count = label_background(RING)
    assert count == 3 and labels[0, 0] == 1 and labels[0, 4] == 2 and labels[1, 2] == 3


def test_sizes_and_boxes_describe_each_label():
    labels, count = label_components(
        mask("""
        ##..
        ...#
        ...# """)
    )
    sizes, boxes = sizes_and_boxes(labels, count)
    assert sizes.tolist() == [2, 2]
    assert boxes.tolist() == [[[0, 0], [1, 2]], [[1, 3], [3, 4]]]


def foreground_of(folder, image, label):
    if folder == "isbi12":
        return image == 0
    return image > 127 if label is None else image == label


@pytest.mark.parametrize(
    "folder", ["axon_sem", "chase_db1", "dsb2018", "isbi12", "msd_hippocampus", "sunnybrook_lv", "topomortar"]
)
def test_every_labelled_image_has_the_betti_numbers_of_its_manifest(folder):
    seen = 0
    for file, image, betti in shared_masks(folder, {"mask", "mask_2nd", "mask_noisy", "mask_pseudo", "mask_endo_only"}):
        for entry in betti.split(";"):
            label, _, numbers = entry.rpartition(":")
            expected = tuple(int(number) for number in numbers.split("/"))
            assert betti_numbers(foreground_of(folder, image, int(label) if label else None)) == expected, file
            seen += 1
    assert seen > 0
