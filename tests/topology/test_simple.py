"""Simple points against their definition: removal keeps Betti numbers."""

import numpy as np
import pytest
from numba import njit
from scipy import ndimage

from tests.topology.masks import mask, random_masks
from topology.bits import lowest_one
from topology.components import betti_numbers
from topology.simple import (
    BACKGROUND,
    CRITICAL,
    INTERIOR,
    ISOLATED,
    SIMPLE,
    pieces_in_space,
    plane_tables,
    point_kinds,
    simple_in_space,
    simple_points,
    space_tables,
)


def windows(codes, ndim):
    return (np.asarray(codes)[:, None] >> np.arange(3**ndim) & 1).astype(bool).reshape(-1, *(3,) * ndim)


def test_a_point_is_simple_exactly_when_removing_it_changes_no_betti_number():
    simple = 0
    for window in windows(range(512), 2):
        if window[1, 1]:
            without = window.copy()
            without[1, 1] = False
            for connectivity in ("closed", "open"):
                kept = betti_numbers(window, connectivity=connectivity) == betti_numbers(
                    without, connectivity=connectivity
                )
                assert simple_points(window, connectivity=connectivity)[1, 1] == kept
            simple += int(simple_points(window)[1, 1])
    assert simple == 116


def slow_pieces(code):
    """Components of foreground in N26* and of background in N18 touching N6, by SciPy's labels (Bertrand and
    Malandain).
    """
    window = windows([code], 3)[0]
    ring = window.copy()
    ring[1, 1, 1] = False
    full, cross = np.ones((3, 3, 3)), ndimage.generate_binary_structure(3, 1)
    background = ~window & ndimage.generate_binary_structure(3, 2)
    background[1, 1, 1] = False
    labels, _ = ndimage.label(background, cross)
    touching = set(labels[cross & background].tolist())
    return ndimage.label(ring, full)[1], len(touching)


def test_rule_in_3d_equals_the_two_component_counts():
    random = np.random.default_rng(0)
    tables = space_tables()
    for density in np.linspace(0, 1, 1500):
        code = int(((random.random(27) < density).astype(np.int64) << np.arange(27)).sum()) | 1 << 13
        inside, outside = slow_pieces(code)
        assert simple_in_space(code, tables) == (inside == 1 and outside == 1)
        if outside:
            assert pieces_in_space(code, tables) == (inside, outside)


def neighbourhood(reach, near):
    """Bits of the voxels within a reach of the centre, and for each the bits of those that touch it (26 or 6)."""
    steps = np.argwhere(np.ones((3, 3, 3))) - 1
    inside = (np.abs(steps).sum(1) > 0) & (np.abs(steps).sum(1) <= reach)
    apart = np.abs(steps[:, None] - steps[None])
    touch = (apart.max(2) <= 1 if near == 26 else apart.sum(2) <= 1) & inside[:, None] & inside[None]
    bits = 1 << np.arange(27, dtype=np.uint64)
    return np.uint64((bits * inside).sum()), (touch * bits).sum(1).astype(np.uint64)


@njit(cache=True)
def count_components(code, seeds, touching):
    """Components of a set of bits that hold a seed, by flooding."""
    count = 0
    rest = code & seeds
    while rest != 0:
        piece = np.uint64(1) << lowest_one(rest)
        grown = np.uint64(0)
        while grown != piece:
            grown = piece
            todo = piece
            while todo != 0:
                piece |= touching[lowest_one(todo)] & code
                todo &= todo - np.uint64(1)
        rest &= ~piece
        count += 1
    return count


@njit(cache=True)
def disagreements(windows, tables, all26, touch26, all18, touch6, faces):
    """How many of so many random windows of all densities the rule and the two component counts judge differently; and
    how many are simple.
    """
    state = np.uint64(88172645463325252)
    wrong = simple = 0
    for k in range(windows):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        high, low = state >> np.uint64(32), state & np.uint64(2**32 - 1)
        code = (high & low if k % 3 == 0 else high | low if k % 3 == 1 else high) & np.uint64(2**27 - 1)
        expected = (
            count_components(code & all26, all26, touch26) == 1 and count_components(~code & all18, faces, touch6) == 1
        )
        wrong += simple_in_space(np.int64(code), tables) != expected
        simple += expected
    return wrong, simple


def test_ten_million_windows_in_3d_match_the_definition():
    all26, touch26 = neighbourhood(3, 26)
    all18, touch6 = neighbourhood(2, 6)
    faces, _ = neighbourhood(1, 6)
    wrong, simple = disagreements(10_000_000, space_tables(), all26, touch26, all18, touch6, faces)
    assert wrong == 0 and 500_000 < simple < 9_000_000


def test_closed_point_in_3d_is_simple_exactly_when_removal_keeps_betti_numbers():
    random = np.random.default_rng(1)
    for _ in range(1500):
        window = random.random((3, 3, 3)) < random.random()
        window[1, 1, 1] = True
        without = window.copy()
        without[1, 1, 1] = False
        assert simple_points(window)[1, 1, 1] == (betti_numbers(window) == betti_numbers(without))


def test_an_open_point_is_simple_exactly_when_it_is_simple_in_the_complement():
    for image in random_masks(40, seed=2, longest=(12, 7)):
        simple = simple_points(image, connectivity="open")
        for place in np.argwhere(image)[:20]:
            complement = np.pad(~image, 1, constant_values=True)
            complement[tuple(place + 1)] = True
            assert simple[tuple(place)] == simple_points(complement)[tuple(place + 1)]


def test_removing_a_simple_point_keeps_betti_numbers_of_the_mask():
    for image in random_masks(60, seed=3, longest=(10, 6)):
        for place in np.argwhere(simple_points(image))[:10]:
            without = image.copy()
            without[tuple(place)] = False
            assert betti_numbers(without) == betti_numbers(image)


def test_the_pixel_that_closes_a_ring_and_a_bridge_are_not_simple():
    ring = mask("""
        .###.
        .#.#.
        .###. """)
    assert not simple_points(ring)[0, 2] and simple_points(ring)[0, 1]
    assert not simple_points(mask("##.##") | mask("..#.."))[0, 2]


def test_an_isolated_pixel_and_an_inner_pixel_are_not_simple():
    assert not simple_points(np.ones((1, 1))).any()
    assert not simple_points(np.ones((3, 3)))[1, 1]
    assert not simple_points(np.ones((1, 1, 1))).any()
    assert not simple_points(np.ones((3, 3, 3)))[1, 1, 1]


@pytest.mark.parametrize("ndim", [2, 3])
def test_simple_points_rotate_with_the_mask(ndim):
    for image in random_masks(30, seed=4, ndims=(ndim,)):
        for axis in range(ndim):
            assert np.array_equal(simple_points(np.flip(image, axis)), np.flip(simple_points(image), axis))
        assert np.array_equal(simple_points(image.T), simple_points(image).T)


def test_the_tables_of_closed_and_open_pixels_mirror_each_other():
    closed, opened, eight, four = plane_tables()
    assert np.array_equal(closed, opened[::-1]) and closed.sum() == 2 * 116
    assert eight[0b111101111] == 8 and four[0b010111010] == 4


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_point_type_describes_the_effect_of_removal(connectivity):
    for image in random_masks(60, seed=8, longest=(12, 6)):
        kinds, before = (
            point_kinds(image, connectivity=connectivity),
            np.array(betti_numbers(image, connectivity=connectivity)),
        )
        assert ((kinds > 0) == image).all()
        for place in np.argwhere(image):
            without = image.copy()
            without[tuple(place)] = False
            change = np.array(betti_numbers(without, connectivity=connectivity)) - before
            kind = kinds[tuple(place)]
            # In space a pixel may end one tunnel and begin another, so that not every point that changes no number is
            # simple.
            assert not change.any() if kind == SIMPLE else change.any() or image.ndim == 3
            if kind == INTERIOR:
                assert change[-1] == 1
            if kind == ISOLATED:
                assert tuple(change) == (-1,) + (0,) * (image.ndim - 1)


def test_a_bridge_is_critical_between_two_blocks():
    blocks = np.zeros((5, 9), bool)
    blocks[1:4, 1:4] = blocks[1:4, 5:8] = blocks[2, 4] = True
    kinds = point_kinds(blocks)
    assert kinds[2, 4] == CRITICAL and kinds[2, 2] == INTERIOR and kinds[1, 1] == SIMPLE and kinds[0, 0] == BACKGROUND
    assert point_kinds(np.ones((1, 1))) == ISOLATED
