"""Branches that a prediction has whole, shortened, in fragments, or not at all."""

import numpy as np
import pytest

from tests.topology.masks import mask
from topology.branches import compare_branches
from topology.metrics import measure

TREE = mask("""
    ...................
    .........#.........
    .........#.........
    .........#.........
    .........#.........
    .........#.........
    .........#.........
    .........#.........
    .#################.
    ................... """)
STEM, LEFT, RIGHT = (slice(1, 7), 9), (8, slice(1, 8)), (8, slice(11, 18))  # without the three pixels where they meet


def kinds(*missing):
    """Counts of the four kinds for the tree without some pixels."""
    prediction = TREE.copy()
    for where in missing:
        prediction[where] = False
    found = compare_branches(prediction, TREE)
    return tuple(found.count(kind) for kind in ("whole", "shortened", "fragmented", "missing"))


def test_gaps_are_distinguished_by_place():
    assert kinds() == (3, 0, 0, 0)
    assert kinds((4, 9)) == (2, 0, 1, 0)  # in the middle
    assert kinds((slice(1, 3), 9)) == (2, 1, 0, 0)  # at the free end
    assert kinds((6, 9)) == (2, 0, 1, 0)  # where the branch leaves the others
    assert kinds((7, 9)) == (0, 0, 3, 0)  # where all three meet
    assert kinds(STEM) == (2, 0, 0, 1)
    assert kinds((4, 9), RIGHT) == (1, 0, 1, 1)
    assert kinds(STEM, LEFT, RIGHT, (8, 9)) == (0, 0, 0, 3)


def test_a_closed_curve_with_a_gap_is_a_fragment():
    ring = np.zeros((7, 7), bool)
    ring[1:6, 1:6] = True
    ring[2:5, 2:5] = False
    broken = ring.copy()
    broken[1, 3] = False
    assert compare_branches(broken, ring).kinds == ("fragmented",)
    assert compare_branches(ring, ring).kinds == ("whole",)


def test_lengths_follow_the_spacing_and_a_tolerance_covers_what_is_near():
    bar = np.zeros((5, 5, 20), bool)
    bar[2, 2, 2:18] = True
    beside = np.roll(bar, 1, axis=1)
    found = compare_branches(beside, bar, spacing=(1, 2, 3))
    assert found.count("missing") == 1 and found.length("missing") == pytest.approx(15 * 3)
    assert found.covered == (0.0,)
    assert compare_branches(beside, bar, spacing=(1, 2, 3), tolerance=2).kinds == ("whole",)
    assert compare_branches(beside, bar, spacing=(1, 2, 3), tolerance=1.9).kinds == ("missing",)


def test_empty_masks_have_no_branch_and_an_empty_prediction_misses_all():
    empty = np.zeros_like(TREE)
    assert compare_branches(TREE, empty).kinds == ()
    assert compare_branches(empty, TREE).kinds == ("missing",) * 3
    values = measure(empty, TREE)
    assert (values["branches_missing"], values["branches_fragmented"]) == (3, 0)


def test_every_branch_of_a_prediction_turned_around_is_of_the_same_kind():
    prediction = TREE.copy()
    prediction[4, 9] = prediction[8, 12] = prediction[8, 1:7] = False
    counts = compare_branches(prediction, TREE).kinds
    for turn in (np.flipud, np.fliplr, np.transpose):
        assert sorted(compare_branches(turn(prediction), turn(TREE)).kinds) == sorted(counts)


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        compare_branches(TREE, TREE[1:])
