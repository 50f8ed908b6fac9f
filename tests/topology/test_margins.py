"""Margins: how far the threshold can move before a feature changes."""

import gudhi
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.topology.masks import random_maps
from topology.components import betti_numbers
from topology.margins import margins


def told(found):
    """(dimension, present, rising, margin, place) of each feature, rounded."""
    rows = zip(
        found.bars.dimension.tolist(),
        found.present.tolist(),
        found.rising.tolist(),
        found.margins.round(6).tolist(),
        map(tuple, found.places.tolist()),
        strict=True,
    )
    return list(rows)


def test_a_bridge_a_gap_and_two_peaks_with_margins_by_hand():
    line = np.zeros((3, 11), np.float64)
    line[1, 1:10] = (0.9, 0.54, 0.8, 0.15, 0.7, 0.47, 0.95, 0.2, 0.44)
    assert told(margins(line, 0.5)) == [
        (0, True, False, 0.03, (1, 6)),  # two components, apart by a gap that a threshold lower by 0.03 closes
        (0, False, True, 0.04, (1, 2)),  # the bridge holds by 0.04
        (0, False, False, 0.06, (1, 9)),  # a component that nearly exists
        (0, True, False, 0.35, (1, 4)),
        (0, True, True, 0.45, (1, 7)),  # the oldest, which never merges
    ]


def test_ring_margin_is_its_weakest_or_deepest_pixel():
    ring = np.zeros((5, 5))
    ring[1:4, 1:4] = 0.9
    ring[2, 2] = 0.2
    ring[1, 2] = 0.57
    assert (1, True, True, 0.07, (1, 2)) in told(margins(ring, 0.5))
    ring[2, 2] = 0.46
    assert (1, True, False, 0.04, (2, 2)) in told(margins(ring, 0.5))
    ring[1, 2] = 0.48
    assert (1, False, False, 0.02, (1, 2)) in told(margins(ring, 0.5))
    ring[1, 2], ring[2, 2] = 0.9, 0.51
    assert (1, False, True, 0.01, (2, 2)) in told(margins(ring, 0.5))


def test_empty_map_has_no_margins_and_the_list_is_limited():
    found = margins(np.zeros((4, 4)), 0.5)
    assert len(found) == 0 and found.counts == (0, 0)
    noise = np.random.default_rng(0).random((40, 40))
    found, all_of_them = margins(noise, 0.5, most=10), margins(noise, 0.5)
    assert (
        told(found) == told(all_of_them)[:10]
        and found.counts == all_of_them.counts
        and sum(found.counts) == len(all_of_them) > 100
    )


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_present_features_equal_the_betti_numbers(connectivity):
    for values in random_maps(60, seed=3):
        level = float(np.median(values))
        found = margins(values, level, connectivity=connectivity)
        counted = np.bincount(found.bars.dimension[found.present], minlength=values.ndim)
        assert tuple(counted) == betti_numbers(values > level, connectivity=connectivity)


def test_feature_changes_exactly_at_its_margin():
    for seed in range(12):
        values = gaussian_filter(np.random.default_rng(seed).standard_normal((24, 24)), 1.5)
        found = margins(values, 0.0)
        for rising, step in ((True, 1), (False, -1)):
            least = found.margins[found.rising == rising].min()
            for before in (0.0, 0.5 * least, least * (1 - 1e-6)):
                assert betti_numbers(values > step * before) == betti_numbers(values > 0)
            assert betti_numbers(values > step * (least + 1e-9)) != betti_numbers(values > 0)


@pytest.mark.parametrize("shape", [(20, 20), (7, 7, 7)])
def test_margins_equal_bars_of_gudhi(shape):
    values = np.random.default_rng(5).integers(0, 50, shape).astype(np.float64)
    complex_ = gudhi.CubicalComplex(top_dimensional_cells=-np.pad(values, 1, constant_values=-1000.0))
    theirs = sorted(
        (d, -b, -e)
        for d, (b, e) in complex_.persistence(homology_coeff_field=2, min_persistence=0)
        if -b > 25.5 >= -e and -b > -1000
    )
    found = margins(values, 25.5)
    ours = sorted(
        zip(
            found.bars.dimension[found.present].tolist(),
            found.bars.birth_values[found.present].tolist(),
            found.bars.death_values[found.present].tolist(),
            strict=True,
        )
    )
    assert ours == theirs


def test_only_requested_dimensions_are_reported():
    values = np.random.default_rng(4).random((7, 8, 9))
    both = margins(values, 0.5, dimensions=[0, 2])
    assert set(both.bars.dimension.tolist()) == {0, 2}
    assert told(both) == [each for each in told(margins(values, 0.5)) if each[0] != 1]


def test_shifting_map_and_threshold_keeps_margins():
    values = np.random.default_rng(2).integers(0, 64, (30, 30)) / 64
    assert told(margins(values, 0.5)) == told(margins(values + 8, 8.5))


def test_negating_the_map_swaps_rising_and_falling_features():
    """Alexander duality: holes of the closed mask are components of its open complement; the outermost component has no
    partner.
    """
    for seed in range(5):
        values = np.pad(np.random.default_rng(seed).random((12, 12)), 1)
        holes = margins(values, 0.5, near=0.3)
        parts = margins(1 - values, 0.5, near=0.3, connectivity="open")
        ours = sorted(holes.margins[holes.bars.dimension == 1].round(9).tolist())
        finite = (parts.bars.dimension == 0) & np.isfinite(parts.bars.death_values)
        assert ours == sorted(parts.margins[finite].round(9).tolist())
