"""Roundness against hand values, geometry and scikit-image."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import perimeter_crofton

from tests.topology.masks import random_masks
from topology.components import label_components, sizes_and_boxes
from topology.metrics import MetricSpec, report
from topology.roundness import perimeters, roundness

STEP = 1 + 1 / np.sqrt(2)


def ellipse(height, width):
    rows, columns = np.mgrid[-np.ceil(height) : np.ceil(height) + 1, -np.ceil(width) : np.ceil(width) + 1]
    return (rows / height) ** 2 + (columns / width) ** 2 <= 1


def framed(shape):
    return np.pad(np.ones(shape, bool), 2)


def blobs(seed, size=96):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 3) > 0.02


def outlines(image, connectivity="closed", spacing=None):
    return perimeters(*label_components(image, connectivity=connectivity), spacing=spacing)


@pytest.mark.parametrize("radius", [5.5, 6, 6.5, 8, 12, 20, 40, 100])
def test_disc_is_round_from_radius_five_and_a_half(radius):
    assert 0.9 < report(ellipse(radius, radius))["roundness"] <= 1
    assert outlines(ellipse(radius, radius))[0] == pytest.approx(2 * np.pi * radius, rel=0.05)


def test_squares_bars_and_pixels_equal_hand_computed_values():
    # n x m pixels leave 2n chord ends along rows, 2m along columns and 2(n + m - 1) on either diagonal, each worth pi /
    # 8.
    for n, m in [(1, 1), (20, 20), (3, 60), (60, 3)]:
        expected = np.pi / 8 * (2 * (n + m) + 4 * (n + m - 1) / np.sqrt(2))
        assert outlines(framed((n, m)))[0] == pytest.approx(expected)
        assert report(framed((n, m)))["roundness"] == pytest.approx(min(1, 4 * np.pi * n * m / expected**2))
    assert outlines(framed((1, 1)))[0] == pytest.approx(np.pi / 2 * STEP)
    assert report(framed((1, 1)))["roundness"] == 1
    assert report(framed((20, 20)))["roundness"] == pytest.approx(np.pi / 4, abs=0.12)
    assert report(framed((3, 60)))["roundness"] < 0.2


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_perimeter_equals_scikit_image_per_component(connectivity):
    for image in [*random_masks(20, seed=4), *map(blobs, range(4))]:
        if image.ndim == 3:
            continue
        labels, count = label_components(image, connectivity=connectivity)
        expected = [perimeter_crofton(labels == k, directions=4) for k in range(1, count + 1)]
        np.testing.assert_allclose(perimeters(labels, count), expected)
        parts = report(image, spec=MetricSpec(connectivity=connectivity))["components"]
        largest_first = np.argsort(-sizes_and_boxes(labels, count)[0], kind="stable")
        np.testing.assert_allclose(
            [part["roundness"] for part in parts],
            [min(1, 4 * np.pi * part["size"] / expected[k] ** 2) for part, k in zip(parts, largest_first, strict=True)],
        )


def test_rotation_and_reflection_keep_roundness():
    image = blobs(7)
    expected = sorted(part["roundness"] for part in report(image)["components"])
    for turns in range(4):
        for turned in (np.rot90(image, turns), np.rot90(image.T, turns)):
            facts = report(turned)
            np.testing.assert_allclose(sorted(part["roundness"] for part in facts["components"]), expected, rtol=1e-12)
            assert facts["roundness"] == pytest.approx(np.mean(expected))


def test_roundness_depends_on_spacing_ratio_not_unit():
    image = blobs(3)
    plain = report(image)["roundness"]
    assert report(image, spacing=(0.3, 0.3))["roundness"] == pytest.approx(plain)
    assert outlines(image, spacing=(3, 3)) == pytest.approx(3 * outlines(image))
    # A disc of radius 20 mm seen through pixels of 1 mm by 2 mm is an ellipse of pixels.
    seen = ellipse(20, 10)
    assert 0.9 < report(seen, spacing=(1, 2))["roundness"] <= 1
    assert 0.9 < report(seen.T, spacing=(2, 1))["roundness"] <= 1
    assert report(seen)["roundness"] < 0.87


def test_mean_roundness_is_unweighted_and_holes_lower_it():
    image = np.zeros((60, 90), bool)
    image[5:46, 5:46] = ellipse(20, 20)
    image[50:53, 10:80] = True
    facts = report(image)
    disc, bar = (part["roundness"] for part in facts["components"])
    assert disc > 0.9 and bar < 0.2 and facts["roundness"] == pytest.approx((disc + bar) / 2)
    image[20:30, 20:30] = False
    assert report(image)["components"][0]["roundness"] < 0.7 * disc


def test_roundness_is_undefined_without_components_and_in_3d():
    assert report(np.zeros((5, 5)))["roundness"] is None
    volume = report(np.ones((3, 3, 3)))
    assert volume["roundness"] is None and volume["components"][0]["roundness"] is None


def test_roundness_does_not_modify_its_input():
    labels, count = label_components(blobs(1))
    before = labels.copy()
    roundness(labels, count, sizes_and_boxes(labels, count)[0])
    np.testing.assert_array_equal(labels, before)
