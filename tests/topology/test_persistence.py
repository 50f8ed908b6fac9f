"""Persistence against gudhi, cripser and Betti numbers of superlevel sets."""

import cripser
import gudhi
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.topology.masks import random_maps
from topology.components import betti_numbers
from topology.parallel import side_by_side
from topology.persistence import finite_bars, persistence


def bars(code, dimension):
    chosen = code.of(dimension)
    return sorted(zip(chosen.birth_values.astype(float), chosen.death_values.astype(float), strict=True))


def gudhi_bars(values, connectivity):
    """Bars of the superlevel filtration by gudhi: the sublevel filtration of the negated map."""
    cells = {"top_dimensional_cells" if connectivity == "closed" else "vertices": -values.astype(float)}
    complex_ = gudhi.CubicalComplex(**cells)
    complex_.compute_persistence(homology_coeff_field=2)
    intervals = (np.reshape(complex_.persistence_intervals_in_dimension(d), (-1, 2)) for d in range(values.ndim))
    return [sorted((-birth, -death) for birth, death in pairs if birth != death) for pairs in intervals]


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_bars_agree_with_gudhi_on_random_maps_with_and_without_plateaus(connectivity):
    for values in random_maps(150, seed=1):
        code = persistence(values, connectivity=connectivity)
        for dimension, expected in enumerate(gudhi_bars(values, connectivity)):
            assert np.allclose(bars(code, dimension), expected), (values.shape, dimension)


@pytest.mark.parametrize(
    "shape, kind", [((40, 50), "closed"), ((40, 50), "open"), ((12, 11, 13), "closed"), ((12, 11, 13), "open")]
)
def test_birth_and_death_pixels_equal_cripser_without_ties(shape, kind):
    values = np.random.default_rng(2).permutation(int(np.prod(shape))).reshape(shape).astype(np.float64)
    table = cripser.compute_ph(-values, filtration="T" if kind == "closed" else "V", maxdim=len(shape) - 1)
    code = persistence(values, connectivity=kind).finite()
    ours = {
        (int(d), *map(int, b), *map(int, e)) for d, b, e in zip(code.dimension, code.births, code.deaths, strict=True)
    }
    ndim = len(shape)
    theirs = {
        tuple(int(v) for v in (row[0], *row[3 : 3 + ndim], *row[6 : 6 + ndim])) for row in table if abs(row[2]) < 1e300
    }
    # Peers may name another voxel of the same cell; the values at both ends decide.
    by_value = [sorted((d[0], values[d[1 : 1 + ndim]], values[d[1 + ndim :]]) for d in side) for side in (ours, theirs)]
    assert by_value[0] == by_value[1]
    assert len(ours & theirs) == len(ours)


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_bars_alive_at_a_threshold_count_the_betti_numbers_there(connectivity):
    for values in random_maps(40, seed=3):
        code = persistence(values, connectivity=connectivity)
        for threshold in np.unique(values)[::5]:
            alive = (code.birth_values >= threshold) & (code.death_values < threshold)
            counts = tuple(np.bincount(code.dimension[alive], minlength=values.ndim).tolist())
            assert counts == betti_numbers(values >= threshold, connectivity=connectivity)


def test_bar_values_equal_the_map_at_their_pixels():
    for values in random_maps(40, seed=4):
        code = persistence(values)
        finite = code.finite()
        assert np.array_equal(values[tuple(code.births.T)], code.birth_values)
        assert np.array_equal(values[tuple(finite.deaths.T)], finite.death_values)
        assert len(code) - len(finite) == 1 and (code.deaths[~np.isfinite(code.death_values)] == -1).all()


def test_a_broken_ring_has_a_loop_from_its_gap_to_its_centre():
    ring = np.zeros((5, 5))
    ring[1:4, 1:4] = 0.9
    ring[2, 2] = 0.1
    ring[1, 2] = 0.4
    loop = persistence(ring).of(1)
    assert loop.births.tolist() == [[1, 2]] and loop.deaths.tolist() == [[2, 2]]
    assert loop.persistence.tolist() == pytest.approx([0.3])


def test_two_peaks_meet_at_their_pass():
    code = persistence(np.array([[0.9, 0.2, 0.8, 0.5]])).finite()
    assert code.births.tolist() == [[0, 2]] and code.deaths.tolist() == [[0, 1]]


def test_two_diagonal_pixels_are_one_closed_component_and_two_open_ones():
    diagonal = np.eye(2)
    assert len(persistence(diagonal, dimensions=[0])) == 1
    assert len(persistence(diagonal, dimensions=[0], connectivity="open")) == 2


def test_rotation_and_reflection_keep_bar_values():
    for values in random_maps(20, seed=5):
        expected = [bars(persistence(values), d) for d in range(values.ndim)]
        for moved in (values.T, values[::-1], np.flip(values)):
            assert [bars(persistence(moved), d) for d in range(values.ndim)] == expected


def test_a_monotone_change_of_values_keeps_every_birth_and_death():
    for values in random_maps(20, seed=6):
        code, changed = persistence(values), persistence(np.exp(values.astype(np.float64) / 3))
        assert np.array_equal(code.births, changed.births) and np.array_equal(code.deaths, changed.deaths)


def test_loops_of_the_complement_are_components_of_the_map():
    for values in random_maps(20, seed=7, ndims=(2,)):
        framed = np.pad(values.astype(float), 1, constant_values=values.max() + 1)
        closed_loops = bars(persistence(np.pad(values.astype(float), 1, constant_values=values.min() - 1)), 1)
        open_parts = bars(
            persistence(-np.pad(values.astype(float), 1, constant_values=values.min() - 1), connectivity="open"), 0
        )
        assert sorted((-death, -birth) for birth, death in closed_loops) == [
            bar for bar in open_parts if np.isfinite(bar[1])
        ]
        assert framed.shape == (values.shape[0] + 2, values.shape[1] + 2)


def test_short_bars_are_left_out_on_request():
    values = gaussian_filter(np.random.default_rng(8).standard_normal((60, 60)), 2)
    every, long = persistence(values), persistence(values, min_persistence=0.05)
    assert 1 < len(long) < len(every)
    assert np.array_equal(long.births, every[every.persistence > 0.05].births)


def test_batched_maps_equal_single_maps():
    maps = list(random_maps(6, seed=9))
    for together, values in zip(side_by_side(persistence, maps), maps, strict=True):
        alone = persistence(values)
        assert np.array_equal(together.births, alone.births) and np.array_equal(together.deaths, alone.deaths)


@pytest.mark.parametrize("connectivity", ["closed", "open"])
@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_finite_bars_are_sorted_by_persistence(connectivity, noise):
    for values in random_maps(60, seed=11):
        code = persistence(values, connectivity=connectivity, min_persistence=noise).finite()
        found = finite_bars(values, connectivity=connectivity, min_persistence=noise)
        assert [dimension for dimension, _, _ in found] == list(range(values.ndim))
        for dimension, births, deaths in found:
            bars = code.of(dimension)
            expected = [
                np.ravel_multi_index(tuple(ends.T), values.shape).tolist() for ends in (bars.births, bars.deaths)
            ]
            assert sorted(zip(births.tolist(), deaths.tolist(), strict=True)) == sorted(zip(*expected, strict=True))
            lengths = values.ravel()[births] - values.ravel()[deaths]
            assert (np.diff(lengths) <= 0).all()
        assert [part[0] for part in finite_bars(values, dimensions=[1])] == [1]


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_constant_map_and_a_single_pixel_have_one_component_and_nothing_else(ndim):
    for shape in ((1,) * ndim, (4,) * ndim):
        code = persistence(np.ones(shape))
        assert len(code) == 1 and code.births.tolist() == [[0] * ndim]


def test_dtype_and_layout_do_not_change_the_bars_or_the_input():
    values = np.random.default_rng(10).integers(0, 9, (14, 12))
    expected = bars(persistence(values), 1)
    for kind in (np.uint8, np.int64, ">f4", ">f8", np.float16):
        variant = np.asfortranarray(values.astype(kind))
        variant.flags.writeable = False
        assert bars(persistence(variant), 1) == expected


def test_negative_zero_equals_zero():
    assert len(persistence(np.array([[0.0, -0.0, 0.0]], np.float32))) == 1


def test_neighbouring_whole_numbers_up_to_two_to_the_53_are_distinguished():
    for kind in (np.int64, np.uint64, np.longdouble):
        bars = persistence(np.array([[2**53, 2**53 - 2, 2**53 - 1]], kind), dimensions=[0]).finite()
        assert bars.birth_values.tolist() == [2**53 - 1] and bars.death_values.tolist() == [2**53 - 2]


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: persistence(np.array([[np.nan, 1.0]])), "1 NaN"),
        (lambda: persistence(np.array([[np.inf, 1.0]])), "infinite"),
        (lambda: persistence(np.ones((3, 3), complex)), "complex"),
        (lambda: persistence(np.ones((3, 3)), dimensions=[2]), r"\[2\]"),
        (lambda: persistence(np.ones(5)), "1 axes"),
        (lambda: persistence(np.array([[2**53 + 1, 0]])), r"2\*\*53"),
        (lambda: persistence(np.array([[-(2**53) - 1, 0]])), r"2\*\*53"),
        (lambda: persistence(np.array([[2**64 - 1, 0]], np.uint64)), "uint64"),
        (lambda: persistence(np.array([[1, 1 + 2.0**-60]], np.longdouble) + np.longdouble(2) ** -62), "tell apart"),
    ],
)
def test_invalid_map_is_refused_with_a_reason(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
