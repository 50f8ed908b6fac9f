"""Synthetic fundus images of the demo: reproducible, with known topology."""

from __future__ import annotations

import numpy as np
import pytest

from app.demo.vessels import FOVEA_FREE, LEAST_VESSELS, THINNEST, vessel_tree
from topology.components import betti_numbers, euler_characteristic, label_components

SCENES = [vessel_tree(seed) for seed in range(24)]


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
    again = vessel_tree(3)
    np.testing.assert_array_equal(again.image, SCENES[3].image)
    np.testing.assert_array_equal(again.mask, SCENES[3].mask)
    assert len({scene.image.tobytes() for scene in SCENES}) == len(SCENES)


def test_a_scene_is_an_rgb_photograph_with_its_mask():
    for scene in SCENES:
        assert scene.image.shape == (256, 256, 3) and scene.image.dtype == np.uint8 and scene.image.flags.c_contiguous
        assert scene.mask.shape == (256, 256) and scene.mask.dtype == bool


def test_betti_numbers_equal_two_independent_counts():
    from scipy.ndimage import label

    for scene in SCENES:
        parts = label(scene.mask, np.ones((3, 3)))[1]
        holes = label(np.pad(~scene.mask, 1, constant_values=True))[1] - 1
        assert scene.betti == (parts, holes) == betti_numbers(scene.mask)
        assert euler_characteristic(scene.mask) == parts - holes


def test_vessels_are_few_long_pieces_with_loops_where_they_cross():
    components = [scene.betti[0] for scene in SCENES]
    loops = [scene.betti[1] for scene in SCENES]
    assert np.median(components) <= 4 and max(components) <= 15
    assert sum(count > 0 for count in loops) > len(SCENES) / 2
    for scene in SCENES:
        assert LEAST_VESSELS <= scene.mask.mean() < 0.4
        labels, count = label_components(scene.mask)
        assert np.bincount(labels.reshape(-1))[1:].max() > 0.3 * scene.mask.sum() and count == scene.betti[0]


def test_vessels_are_darker_than_what_surrounds_them_most_of_all_in_green():
    from scipy.ndimage import binary_dilation

    contrast = []
    for scene in SCENES:
        inside = scene.image.max(axis=2) > 40
        around = binary_dilation(scene.mask, iterations=5) & ~binary_dilation(scene.mask, iterations=2) & inside
        vessels, tissue = scene.image[scene.mask].mean(axis=0), scene.image[around].mean(axis=0)
        contrast.append(1 - vessels / tissue)
    red, green, blue = np.mean(contrast, axis=0)
    assert 0.1 < green < 0.5 and green > blue > red > 0


def test_thin_vessels_keep_less_contrast_than_thick_ones():
    from scipy.ndimage import binary_opening, gaussian_filter

    thin, thick = [], []
    for scene in SCENES:
        green = scene.image[..., 1].astype(float)
        darkness = 1 - green / np.maximum(gaussian_filter(green, 12), 1)
        wide = binary_opening(scene.mask, iterations=2)
        thick.append(darkness[wide].mean() if wide.any() else np.nan)
        thin.append(darkness[scene.mask & ~wide].mean())
    assert np.nanmean(thin) < 0.8 * np.nanmean(thick)


def test_some_windows_show_the_black_rim_and_no_vessel_lies_in_it():
    black = [(scene.image.max(axis=2) < 12) for scene in SCENES]
    parts = [outside.mean() for outside in black]
    assert 0.2 < np.mean([part > 0.02 for part in parts]) < 0.9
    for scene, outside in zip(SCENES, black, strict=True):
        assert not (scene.mask & outside).any() or (scene.mask & outside).sum() < 20


def test_background_colour_is_that_of_a_retina():
    for scene in SCENES:
        red, green, blue = np.median(scene.image[scene.image.max(axis=2) > 40], axis=0)
        assert red > 1.3 * green > 1.1 * blue


def test_a_whole_retina_fits_a_window_of_its_size():
    scene = vessel_tree(1, 512, diameter=512)
    rows, columns = np.nonzero(scene.image.max(axis=2) > 40)
    assert rows.min() < 8 and rows.max() > 503 and columns.min() < 8 and columns.max() > 503
    middle = scene.mask[256 - 10 : 256 + 10, 256 - 10 : 256 + 10]
    assert FOVEA_FREE * 512 > 14 and not middle.any()


@pytest.mark.parametrize(("size", "diameter"), [(64, 600), (200, 1411), (96, 300)])
def test_size_and_scale_are_as_asked_for(size, diameter):
    scene = vessel_tree(5, size, diameter=diameter)
    assert scene.mask.shape == (size, size) and scene.image.shape == (size, size, 3)


def test_the_calibre_follows_the_scale():
    """Pixels across a vessel: area over half the length of its outline."""

    def width(mask: np.ndarray) -> float:
        edge = mask[1:-1, 1:-1] & ~(mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:])
        return 2 * mask.sum() / max(edge.sum(), 1)

    small, large = (
        [width(vessel_tree(seed, 200, diameter=diameter).mask) for seed in range(6)] for diameter in (500, 1400)
    )
    assert np.mean(large) > 1.3 * np.mean(small)
    assert THINNEST * 1400 > 1
