"""Distances between diagrams against gudhi's hera and the definition."""

import numpy as np
import pytest
from gudhi.hera import bottleneck_distance as hera_bottleneck, wasserstein_distance as hera_wasserstein

from tests.topology.masks import random_maps
from topology.diagrams import bottleneck_distance, wasserstein_distance
from topology.persistence import persistence


def random_diagrams(count, *, seed, most=6):
    """Pairs of diagrams with births above deaths, coarse values included so that distances tie."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        both = []
        for _ in range(2):
            points = np.sort(np.round(random.random((random.integers(0, most + 1), 2)), random.integers(1, 4)), axis=1)
            both.append(points[points[:, 0] < points[:, 1]][:, ::-1])
        yield both


def every_matching(first, second):
    """Distances of each matching, straight from the definition: one value for each matched pair and each rest."""
    away = [np.abs(each[:, 0] - each[:, 1]) / 2 for each in (first, second)]

    def extend(k, free, costs):
        if k == len(first):
            yield [*costs, *away[1][sorted(free)]]
            return
        yield from extend(k + 1, free, [*costs, away[0][k]])
        for other in free:
            yield from extend(k + 1, free - {other}, [*costs, np.abs(first[k] - second[other]).max()])

    yield from extend(0, frozenset(range(len(second))), [])


def test_distances_are_the_least_over_all_matchings():
    for first, second in random_diagrams(60, seed=1, most=4):
        costs = [np.array(each) for each in every_matching(first, second)]
        assert bottleneck_distance(first, second) == pytest.approx(min(each.max(initial=0) for each in costs))
        for order in (1, 2.5):
            least = min((each**order).sum() for each in costs) ** (1 / order)
            assert wasserstein_distance(first, second, order=order) == pytest.approx(least)


def test_distances_agree_with_hera():
    for first, second in random_diagrams(60, seed=2, most=25):
        theirs = hera_bottleneck(first[:, ::-1].copy(), second[:, ::-1].copy(), delta=0)
        assert bottleneck_distance(first, second) == pytest.approx(theirs)
        for order in (1, 2):
            theirs = hera_wasserstein(first, second, order=order, internal_p=np.inf, delta=1e-4)
            assert wasserstein_distance(first, second, order=order) == pytest.approx(theirs, rel=2e-4, abs=1e-9)


def test_maps_that_differ_by_little_have_diagrams_no_further_apart():
    random = np.random.default_rng(3)
    for values in random_maps(20, seed=3):
        other = values + random.uniform(-0.1, 0.1, values.shape).astype(np.float32)
        for dimension in range(values.ndim):
            codes = [persistence(each).of(dimension) for each in (values, other)]
            assert bottleneck_distance(*codes) <= np.abs(values - other).max() + 1e-6
            assert bottleneck_distance(codes[0], codes[0]) == wasserstein_distance(codes[0], codes[0]) == 0
            assert wasserstein_distance(*codes) >= wasserstein_distance(*codes, order=3) - 1e-9


def test_a_bar_alone_is_half_its_length_away_and_endless_bars_meet_each_other():
    assert bottleneck_distance([(5, 2)], []) == wasserstein_distance([(5, 2)], []) == 1.5
    endless = [(5.0, -np.inf), (1.0, -np.inf)]
    assert bottleneck_distance(endless, [(1.5, -np.inf), (4.0, -np.inf)]) == 1
    assert wasserstein_distance(endless, [(1.5, -np.inf), (4.0, -np.inf)]) == 1.5
    assert bottleneck_distance(endless, endless[:1]) == wasserstein_distance(endless, []) == np.inf


@pytest.mark.parametrize(
    "first, second, sentence",
    [
        (np.zeros((3, 3)), [], r"\(3, 3\)"),
        ([(np.nan, 1.0)], [], "NaN"),
        (np.zeros((2**13, 2)), np.zeros((2**12, 2)), "min_persistence"),
        (persistence(np.arange(25.0).reshape(5, 5) % 7), [], "Select one"),
    ],
)
def test_what_is_no_diagram_of_one_dimension_is_refused(first, second, sentence):
    with pytest.raises(ValueError, match=sentence):
        bottleneck_distance(first, second)


def test_an_order_below_one_is_refused():
    with pytest.raises(ValueError, match=r"0\.5"):
        wasserstein_distance([(2, 1)], [], order=0.5)
