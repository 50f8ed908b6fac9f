"""Centred skeletons and pruning: topology, thinness, position, orientation."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.topology.masks import mask, random_masks
from topology.centred import centred_skeleton, prune
from topology.components import betti_numbers
from topology.graph import skeleton_graph
from topology.simple import simple_points
from topology.skeleton import skeletonize


def agreement(thin, image):
    """Share of skeleton pixels that are found again when the mask is mirrored or transposed first."""
    skeleton = thin(image)
    others = [np.flip(thin(np.flip(image, 0)), 0), thin(image.T).T]
    return np.mean([(other & skeleton).sum() / skeleton.sum() for other in others])


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_centred_skeletons_keep_the_topology_and_are_thin(connectivity):
    for image in random_masks(120, seed=1, longest=(30, 11)):
        skeleton = centred_skeleton(image, connectivity=connectivity)
        assert betti_numbers(skeleton, connectivity=connectivity) == betti_numbers(image, connectivity=connectivity)
        assert not (skeleton & ~image).any()
        ends = skeleton & ~simple_points(skeleton, connectivity=connectivity)
        assert not (skeletonize(skeleton, connectivity=connectivity) ^ skeleton).any() and (ends <= skeleton).all()


def test_skeleton_of_a_bar_is_its_centre_line():
    bar = np.zeros((13, 60), bool)
    bar[2:11, 2:58] = True
    assert (centred_skeleton(bar)[6, 12:48]).all()


def test_skeleton_of_a_tube_is_its_centre_line_in_any_unit():
    tube = np.zeros((9, 9, 40), bool)
    tube[2:7, 2:7] = True
    skeleton = centred_skeleton(tube)
    assert skeleton[4, 4, 8:32].all()
    assert np.array_equal(centred_skeleton(tube, spacing=(0.5, 0.5, 0.5)), skeleton)


def test_spacing_decides_the_centre_line_at_a_corner():
    corner = np.zeros((30, 30), bool)
    corner[2:28, 2:28] = True
    assert (centred_skeleton(corner, spacing=(1.0, 3.0)) != centred_skeleton(corner)).any()


def test_centred_skeletons_depend_less_on_orientation_than_scanned_ones():
    image = gaussian_filter(np.random.default_rng(2).standard_normal((120, 120)), 4) > 0
    assert agreement(centred_skeleton, image) > 0.85 > agreement(skeletonize, image)


COMB = mask("""
    .............
    .############
    ...#...#.....
    ...#...#.....
    .......#.....
    .......#.....
    .......#..... """)


def test_pruning_removes_the_short_twig_and_keeps_the_long_one():
    pruned = prune(skeletonize(COMB), shorter_than=4)
    assert not pruned[3, 3] and pruned[6, 7] and pruned[1, 1] and pruned[1, 12]
    assert skeleton_graph(pruned).end_points == 3


def test_the_length_of_a_twig_is_in_the_unit_of_the_spacing():
    assert prune(skeletonize(COMB), shorter_than=4, spacing=(5.0, 5.0))[3, 3]


def test_pruning_keeps_betti_numbers_and_never_shortens_a_single_line():
    for image in random_masks(60, seed=3, longest=(30, 10)):
        skeleton = skeletonize(image)
        pruned = prune(skeleton, shorter_than=6)
        assert betti_numbers(pruned) == betti_numbers(skeleton) and not (pruned & ~skeleton).any()
    line = mask("#####")
    assert np.array_equal(prune(line, shorter_than=99), line)
