"""Homotopy warping: topology is kept on the way, and what is left says where it differs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from topology.components import betti_numbers
from topology.warping import unreached


def blobs(sides, seed):
    """A random mask of soft blobs, about half foreground."""
    noise = np.random.default_rng(seed).standard_normal(sides)
    return ndimage.gaussian_filter(noise, 1) > 0


@pytest.mark.parametrize("sides", [(17, 19), (7, 8, 9)])
def test_warped_mask_keeps_its_betti_numbers(sides):
    for seed in range(60):
        mask, goal = blobs(sides, seed), blobs(sides, 1000 + seed)
        left = unreached(mask, goal)
        warped = goal ^ left
        assert betti_numbers(warped) == betti_numbers(mask)
        assert not (left & (mask == goal)).any()  # only wrong pixels were touched


@pytest.mark.parametrize("sides", [(13, 14), (6, 7, 8)])
def test_something_is_left_exactly_where_topology_differs_or_no_simple_way_leads(sides):
    for seed in range(40):
        mask, goal = blobs(sides, seed), blobs(sides, 500 + seed)
        left = unreached(mask, goal)
        assert left.any() or betti_numbers(mask) == betti_numbers(goal)
        assert not unreached(mask, mask).any()


def test_moved_line_is_reached_and_a_broken_one_is_not():
    line, higher, broken = (np.zeros((6, 9), bool) for _ in range(3))
    line[3], higher[2], broken[3] = True, True, True
    broken[3, 4] = False
    assert not unreached(line, higher).any() and not unreached(higher, line).any()
    assert np.argwhere(unreached(broken, line)).tolist() == [[3, 4]]
    assert unreached(line, broken).sum() == 1


def test_border_thickness_and_bulges_are_reached():
    thin, thick = np.zeros((9, 20), bool), np.zeros((9, 20), bool)
    thin[4, 1:19], thick[3:7, 0:20] = True, True
    assert not unreached(thin, thick).any() and not unreached(thick, thin).any()


def test_empty_masks_have_nowhere_to_go_and_other_shapes_are_refused():
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    assert not unreached(empty, empty).any()
    assert unreached(empty, full).all()
    assert unreached(full, empty).sum() == 1  # the last pixel is not simple
    with pytest.raises(ValueError, match="Mask and goal differ in shape"):
        unreached(empty, full[:, :-1])
