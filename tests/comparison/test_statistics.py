"""Paired statistics against hand values, and against scipy where draws are random."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from app.comparison.statistics import holm, interval, mean_ranks, paired, sign_flip_p, smallest_p


def test_p_of_three_equal_signs_is_a_quarter():
    """Of the eight flips of 1, 2, 3 only two reach a sum of 6."""
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 0.25
    assert sign_flip_p(np.array([-1.0, -2.0, -3.0])) == 0.25


def test_p_by_hand_with_a_tie():
    """Sums of 1, 1, -1: 8 flips give 3, 1 (three times), -1 (three times), -3; all reach 1."""
    assert sign_flip_p(np.array([1.0, 1.0, -1.0])) == 1.0


def test_p_counts_flips_that_are_equal_on_paper():
    values = np.array([0.1, 0.2, 0.3, 0.1, 0.2])
    tenths = [1, 2, 3, 1, 2]
    sums = [sum(sign * each for sign, each in zip(flip, tenths, strict=True)) for flip in product((-1, 1), repeat=5)]
    exact = np.mean([abs(each) >= 9 for each in sums])
    assert sign_flip_p(values) == exact


@pytest.mark.parametrize("count", [5, 12])
def test_exact_p_is_scipys(count):
    values = np.random.default_rng(count).normal(0.4, 1, count)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_p_of_many_images_is_scipys_within_its_noise(shift):
    values = np.random.default_rng(5).normal(shift, 1, 40)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    )
    assert sign_flip_p(values) == pytest.approx(theirs.pvalue, abs=0.02)


@pytest.mark.parametrize("draw", ["normal", "exponential", "poisson"])
def test_interval_is_scipys_within_its_noise(draw):
    rng = np.random.default_rng(3)
    values = {"normal": rng.normal(1, 2, 30), "exponential": rng.exponential(2, 30), "poisson": rng.poisson(2, 30)}
    ours = interval(values[draw].astype(float))
    theirs = stats.bootstrap(
        (values[draw].astype(float),), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.06 * values[draw].std())


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(0.5, 1, 25)) for _ in range(400)]
    assert 0.90 < np.mean([low <= 0.5 <= high for low, high in found]) < 0.98


def test_differences_are_summed_up():
    told = paired([1.0, 2.0, 3.0])
    assert told is not None
    assert (told.images, told.mean, told.p) == (3, 2.0, 0.25)
    assert told.low is not None and told.high is not None and 1 <= told.low < 2 < told.high <= 3
    assert told.excludes_zero and paired([1.0, 2.0, 3.0]) == told, "the same figures give the same answer"


def test_one_image_tells_nothing_and_none_is_none():
    told = paired([2.0])
    assert told is not None
    assert (told.images, told.low, told.high, told.p, told.excludes_zero) == (1, None, None, 1.0, False)
    assert paired([]) is None


def test_equal_differences_have_an_interval_of_no_width():
    told = paired([0.0] * 6)
    assert told is not None and (told.low, told.high, told.p, told.excludes_zero) == (0.0, 0.0, 1.0, False)
    told = paired([0.1] * 6)
    assert told is not None and told.low == told.high == pytest.approx(0.1) and told.p == 2 / 64


def test_a_difference_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not a finite number"):
        paired([1.0, float("nan")])


def test_smallest_p_of_few_images():
    assert [smallest_p(count) for count in (1, 2, 5, 6)] == [1.0, 0.5, 0.0625, 0.03125]
    assert smallest_p(6, tests=8) == 0.25 and smallest_p(100) == 1 / 10_000
    for count in (2, 6, 20):
        assert sign_flip_p(np.ones(count)) >= smallest_p(count)


def test_holm_by_hand():
    """0.01, 0.02, 0.03 and 0.04: times 4, 3, 2, 1 and never falling."""
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([None, 0.01, None]) == [None, 0.01, None] and holm([]) == []


def test_ranks_by_hand():
    figures = np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 1.0], [np.nan, 0.0, 0.0]])
    assert mean_ranks(figures, lower_is_better=True) == [2.75, 1.75, 1.5]
    assert mean_ranks(figures, lower_is_better=False) == [1.25, 2.25, 2.5]
    assert mean_ranks(np.full((2, 3), np.nan), lower_is_better=True) is None


def test_ranks_are_scipys():
    figures = np.random.default_rng(2).integers(0, 5, (30, 6)).astype(float)
    assert mean_ranks(figures, lower_is_better=True) == pytest.approx(stats.rankdata(figures, axis=1).mean(0).tolist())
