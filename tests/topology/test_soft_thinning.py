"""Continuous simple points agree with the binary rule, and their gradients."""

import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.topology.masks import random_masks
from topology.components import betti_numbers
from topology.simple import pieces_in_space, simple_points, space_tables
from topology.soft_thinning import Thinning, continuous_skeleton, simple_score, soft_pieces


def test_the_score_exceeds_a_half_exactly_at_the_116_simple_neighbourhoods_of_the_plane():
    found = 0
    for code in range(512):
        window = (code >> np.arange(9) & 1).astype(bool).reshape(3, 3)
        score = simple_score(window.astype(float))[1, 1]
        window[1, 1] = True
        assert (score > 0.5) == simple_points(window)[1, 1]
        assert score > 0.98 or score < 1e-3
        found += score > 0.5
    assert found == 2 * 116  # the value of the pixel itself does not matter
    assert simple_score(np.ones((1, 1)))[0, 0] < 1e-5


def test_score_in_3d_exceeds_a_half_exactly_at_simple_points():
    random = np.random.default_rng(1)
    seen = set()
    for _ in range(2500):
        window = random.random((3, 3, 3)) < random.random()
        score = simple_score(window.astype(float))[1, 1, 1]
        window[1, 1, 1] = True
        assert (score > 0.5) == simple_points(window)[1, 1, 1]
        seen.add(bool(score > 0.5))
    assert seen == {True, False}


def test_soft_counts_are_binary_counts_averaged_over_thresholds():
    random = np.random.default_rng(2)
    tables = space_tables()
    for _ in range(300):
        window = random.random(27)
        levels = np.sort(np.concatenate([[0, 1], np.delete(window, 13)]))
        expected = np.zeros(2)
        for low, high in itertools.pairwise(levels):
            code = int(((window > (low + high) / 2).astype(np.int64) << np.arange(27)).sum())
            expected += (high - low) * np.array(pieces_in_space(code, tables))
        assert soft_pieces(window, np.empty(20, np.int64), np.empty(12, bool)) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("shape", [(30, 34), (11, 12, 13)])
@pytest.mark.parametrize("sigma", [0, 1.5])
def test_the_continuous_skeleton_keeps_the_betti_numbers_at_one_half(shape, sigma):
    for seed in range(6):
        values = np.random.default_rng(seed).standard_normal(shape)
        prob = 1 / (1 + np.exp(-2 * (gaussian_filter(values, sigma) if sigma else values) / 0.5))
        skeleton = continuous_skeleton(prob, iterations=6)
        assert betti_numbers(skeleton > 0.5) == betti_numbers(prob > 0.5)
        assert (skeleton <= prob).all() and (skeleton < prob).any()


def test_isolated_pixel_on_uneven_background_is_kept():
    """A block of four peels down to its last pixel within a sweep; the paper's score, without a gate, takes six steps
    of 0.47 for a piece of background.
    """
    prob = np.zeros((8, 8))
    prob[3:5, 3:5] = 0.9
    prob[[3, 5, 5], [5, 5, 3]] = 0.47
    skeleton = continuous_skeleton(prob, iterations=3)
    assert np.argwhere(skeleton > 0.5).tolist() == [[4, 4]] and simple_score(skeleton)[4, 4] == 0


@pytest.mark.parametrize("shape", [(9, 10), (5, 6, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_the_continuous_skeleton_are_those_of_finite_differences(shape, seed):
    random = np.random.default_rng(seed)
    noise = gaussian_filter(random.standard_normal(shape), 0.7)
    prob = 1 / (1 + np.exp(-3 * noise / noise.std()))
    weight = random.standard_normal(shape)
    thinned = Thinning(prob, iterations=3)
    gradient = thinned.back(weight)
    assert np.array_equal(gradient, thinned.back(weight))  # undone on a copy: the way back may be gone twice
    step = 1e-7
    for place in np.ndindex(shape):
        bump = np.zeros(shape)
        bump[place] = step
        up, down = ((weight * continuous_skeleton(prob + sign * bump, iterations=3)).sum() for sign in (1, -1))
        assert gradient[place] == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=2e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 5), (1, 1, 1), (2, 1, 5), (4, 5, 3)])
@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_constant_maps_stay_constant(shape, level, kind):
    thinned = Thinning(np.full(shape, level, kind), iterations=4)
    assert thinned.skeleton.dtype == kind and thinned.skeleton.shape == shape
    assert betti_numbers(thinned.skeleton > 0.5) == betti_numbers(np.full(shape, level > 0.5))
    assert np.isfinite(thinned.back(np.ones(shape))).all()


@pytest.mark.parametrize("shape", [(20, 21), (9, 8, 10)])
def test_single_precision_equals_rounded_double_precision(shape):
    prob = np.random.default_rng(5).random(shape).astype(np.float32)
    single, double = Thinning(prob, iterations=3), Thinning(prob.astype(np.float64), iterations=3)
    assert np.abs(single.skeleton - double.skeleton).max() < 1e-5
    assert np.allclose(single.back(prob), double.back(prob), rtol=1e-3, atol=1e-3)


def test_the_continuous_skeleton_of_a_thick_bar_is_one_pixel_wide():
    bar = np.zeros((11, 40))
    bar[3:8, 2:38] = 1
    assert ((continuous_skeleton(bar)[:, 8:-8] > 0.5).sum(0) == 1).all()


def test_a_line_of_one_pixel_is_its_own_continuous_skeleton():
    line = np.zeros((5, 12))
    line[2, 1:11] = 0.8
    assert np.allclose(continuous_skeleton(line), line, atol=0.01)


def test_scores_rotate_with_the_map():
    for image in random_masks(20, seed=3, longest=(10, 6)):
        prob = image * 0.6 + 0.2
        assert np.allclose(simple_score(np.flip(prob, 0)), np.flip(simple_score(prob), 0))
        assert np.allclose(simple_score(prob.T), simple_score(prob).T)


def test_values_outside_zero_to_one_are_refused():
    with pytest.raises(ValueError, match="Apply a sigmoid"):
        simple_score(np.array([[-1.0, 3.0]]))


def slow_published_skeleton(u, iterations):
    """The published rule from its formulas, pixel by pixel."""
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    side_of_corner = {0: 7, 2: 3, 4: 3, 6: 7}  # left and right are written last

    def score(framed, row, column):
        v = [1 - framed[row + 1 + dy, column + 1 + dx] for dy, dx in ring]
        w = [v[k] if v[side_of_corner.get(k, k)] > 0.5 else 0.0 for k in range(8)]
        steps = [w[(k + 1) % 8] - w[k] for k in range(8)]
        steps = [1 if (w[(k + 1) % 8] > 0.5) != (w[k] > 0.5) else abs(steps[k]) for k in range(8)]
        count = sum(1 / (1 + np.exp(-16 * (step - 0.5))) for step in steps) / 2
        return np.exp(-((count - 1) ** 2) / (2 * 0.2**2))

    u = u.copy()
    for _ in range(iterations):
        solid = np.pad(u > 0.5, 1)
        crowd = sum(np.roll(solid, step, (0, 1)) for step in ring)[1:-1, 1:-1]
        for first, second in ((1, 1), (0, 1), (1, 0), (0, 0)):
            framed = np.pad(u, 1)
            for row in range(first, u.shape[0], 2):
                for column in range(second, u.shape[1], 2):
                    if crowd[row, column] >= 2:
                        u[row, column] *= 1 - score(framed, row, column)
    return u


def test_published_rule_equals_its_formulas():
    differ = 0
    for seed in range(4):
        prob = gaussian_filter(np.random.default_rng(seed).random((17, 19)), 0.8)
        prob = np.clip((prob - prob.min()) / np.ptp(prob), 0, 1)
        published = continuous_skeleton(prob, iterations=3, rule="published")
        assert np.allclose(published, slow_published_skeleton(prob, 3), atol=1e-7)
        differ += np.abs(published - continuous_skeleton(prob, iterations=3)).max() > 0.1
    assert differ
    mask = (prob > 0.5).astype(float)
    exact, published = (continuous_skeleton(mask, rule=rule) for rule in ("exact", "published"))
    assert np.allclose(exact, published, atol=5e-3)  # on saturated maps nothing differs but crumbs


def test_published_rule_has_the_gradient_of_finite_differences():
    random = np.random.default_rng(1)
    noise = gaussian_filter(random.standard_normal((8, 9)), 0.7)
    prob, weight = 1 / (1 + np.exp(-3 * noise / noise.std())), random.standard_normal((8, 9))
    gradient = Thinning(prob, iterations=2, rule="published").back(weight)
    for place in np.ndindex(prob.shape):
        bump = np.zeros(prob.shape)
        bump[place] = 1e-7
        up, down = (
            (weight * continuous_skeleton(prob + sign * bump, iterations=2, rule="published")).sum() for sign in (1, -1)
        )
        assert gradient[place] == pytest.approx((up - down) / 2e-7, rel=1e-4, abs=2e-5)


def test_unknown_rule_and_published_rule_in_3d_are_rejected():
    with pytest.raises(ValueError, match="exact, published"):
        simple_score(np.zeros((3, 3)), rule="paper")
    with pytest.raises(ValueError, match="plane"):
        simple_score(np.zeros((3, 3, 3)), rule="published")
