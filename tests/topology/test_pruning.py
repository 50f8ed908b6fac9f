"""Pruning takes short side branches and keeps the topology."""

import numpy as np

from tests.topology.masks import mask, random_masks
from topology.components import betti_numbers
from topology.graph import skeleton_graph
from topology.pruning import prune
from topology.skeleton import skeletonize

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
