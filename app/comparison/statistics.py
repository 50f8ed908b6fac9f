"""Paired statistics: intervals, permutation tests, Holm's correction and ranks.

Everything is for the mean of differences between two things that were measured on the same images, so an image is the
unit that is drawn again, and whose sign is flipped. Random draws have a fixed seed: the same figures give the same
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 9999
"""Random draws of the bootstrap and of a permutation test that is not exact."""
EXACT_TO = 13
"""Most images for which all 2^n flips of signs are tried: 8192."""
CONFIDENCE = 0.95
NORMAL = NormalDist()


@dataclass(frozen=True)
class Difference:
    """What paired differences say.

    images     how many there are
    mean       their mean
    low, high  95 % interval of the mean; None of fewer than two images
    p          of the two-sided permutation test that their signs are arbitrary
    """

    images: int
    mean: float
    low: float | None
    high: float | None
    p: float

    @property
    def excludes_zero(self) -> bool:
        """The interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired(differences: Sequence[float] | NDArray[np.float64]) -> Difference | None:
    """Mean, interval and p of differences (n,), one for each image; None where there is none.

    Raises ValueError when one of them is not a finite number.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("A difference is not a finite number; leave out the images that were not measured twice.")
    if not values.size:
        return None
    low, high = interval(values) if values.size > 1 else (None, None)
    return Difference(int(values.size), float(values.mean()), low, high, sign_flip_p(values))


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval (BCa) of the mean of two values or more, at 95 %.

    Of values that are all equal it is that value, twice. Of fewer than about ten values it is narrower than it says.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, equations 14.9, 14.14 and 14.15.
    """
    mean = float(values.mean())
    if np.ptp(values) <= 1e-12 * max(1.0, abs(mean)):
        return mean, mean
    means = np.sort(_draws(values.size) @ values)
    below = (np.searchsorted(means, mean, "left") + np.searchsorted(means, mean, "right")) / (2 * means.size)
    bias = NORMAL.inv_cdf(min(max(float(below), 0.5 / means.size), 1 - 0.5 / means.size))
    spread = mean - (values.sum() - values) / (values.size - 1)
    acceleration = float((spread**3).sum() / (6 * (spread**2).sum() ** 1.5))

    def quantile(probability: float) -> float:
        wanted = bias + NORMAL.inv_cdf(probability)
        return float(np.quantile(means, NORMAL.cdf(bias + wanted / (1 - acceleration * wanted))))

    return quantile((1 - CONFIDENCE) / 2), quantile((1 + CONFIDENCE) / 2)


def sign_flip_p(values: NDArray[np.float64]) -> float:
    """Two-sided p of the permutation test on the mean: how often it is as far from 0 when signs are arbitrary.

    Exact, over all 2^n flips, of up to 13 values; of more from 9999 random ones, the observed one counted with them.
    """
    observed = abs(values.sum()) * (1 - 1e-12)  # what is equal on paper must not differ by rounding
    if values.size <= EXACT_TO:
        return float(np.mean(np.abs(_flips(values.size) @ values) >= observed))
    flips = np.abs(_random_flips(values.size) @ values)
    return float((1 + np.count_nonzero(flips >= observed)) / (1 + flips.size))


def smallest_p(images: int, tests: int = 1) -> float:
    """The smallest p that this many images can give, after Holm's correction for so many tests."""
    exact = 2 / 2**images if images <= EXACT_TO else 1 / (1 + RESAMPLES)
    return min(1.0, exact * max(tests, 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values that hold for all tests together, in their order; None stays None and counts as no test.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    known = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    worst = 0.0
    for done, (p, position) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - done)))
        corrected[position] = worst
    return corrected


def mean_ranks(figures: NDArray[np.float64], *, lower_is_better: bool) -> list[float] | None:
    """Mean rank of each column, 1 is best; equal figures share a rank. None where no row is whole.

    figures  (images, candidates) float; a row with a NaN is left out
    """
    whole = figures[~np.isnan(figures).any(axis=1)]
    if not whole.size:
        return None
    whole = whole if lower_is_better else -whole
    mine, others = whole[:, :, None], whole[:, None, :]
    ranks = (others < mine).sum(2) + (1 + (others == mine).sum(2)) / 2
    return [float(rank) for rank in ranks.mean(0)]


@lru_cache(maxsize=4)
def _draws(count: int) -> NDArray[np.float64]:
    """(RESAMPLES, count): how often each value is drawn, as a share, so that a product gives the means."""
    drawn = np.random.default_rng([count, 1]).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn / count


@lru_cache(maxsize=4)
def _random_flips(count: int) -> NDArray[np.float64]:
    return np.random.default_rng([count, 2]).choice(np.array([-1.0, 1.0]), size=(RESAMPLES, count))


@lru_cache(maxsize=4)
def _flips(count: int) -> NDArray[np.float64]:
    """(2^count, count): every way to flip signs."""
    bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    return (1 - 2 * bits).astype(np.float64)
