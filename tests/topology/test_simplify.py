"""Simplified maps have the requested topology; ridges follow persistent features."""

from functools import partial

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.topology.masks import random_maps
from topology import simplify
from topology.components import betti_numbers
from topology.margins import margins
from topology.morse import ridge_presence, ridges, structure_uncertainty
from topology.persistence import persistence
from topology.simplify import Unreachable, simplify_below

simplify_to = partial(simplify.simplify_to, time_limit_s=None)  # no clock decides a test
simplify_firm = partial(simplify.simplify_firm, time_limit_s=None)


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_features_below_the_bound_are_removed_and_persistent_ones_kept(connectivity):
    for values in random_maps(60, seed=1):
        simple = simplify_below(values, 0.4, connectivity=connectivity)
        code = persistence(simple.values, connectivity=connectivity)
        ends = (code.dimension == 0) | (code.dimension == values.ndim - 1)
        assert (code.persistence[ends] > 0.4).all()
        before = persistence(values, connectivity=connectivity, dimensions=[0])
        assert np.isfinite(before.death_values).sum() >= np.isfinite(code.of(0).death_values).sum()
        assert not simple.edits or max(edit.change for edit in simple.edits) <= 0.4 + 1e-6


def test_a_map_without_short_features_is_returned_unchanged():
    ramp = np.add.outer(np.arange(8.0), np.arange(9.0))
    simple = simplify_below(ramp, 0.5)
    assert simple.edits == () and np.array_equal(simple.values, ramp)


def test_a_low_peak_is_cut_at_its_pass_and_a_shallow_pit_filled():
    values = np.zeros((5, 9))
    values[2, 1:8] = (0.9, 0.5, 0.6, 0.5, 0.9, 0.5, 0.9)
    simple = simplify_below(values, 0.2)
    assert [(edit.kind, edit.position) for edit in simple.edits] == [("cut", (2, 3))]
    assert simple.values[2, 3] == np.float32(0.5) or simple.values[2, 3] == 0.5


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_superlevel_set_has_the_requested_betti_numbers(connectivity):
    for seed in range(8):
        values = gaussian_filter(np.random.default_rng(seed).standard_normal((40, 40)), 2)
        for betti in ((1, 0), (3, 2), (6, 1)):
            simple = simplify_to(values, betti, threshold=0.0, connectivity=connectivity)
            assert simple.certificate["betti"] == betti == betti_numbers(simple.values > 0, connectivity=connectivity)
            changed = np.count_nonzero(simple.values != values)
            assert changed <= sum(edit.pixels for edit in simple.edits)
            assert (changed == 0) == (betti_numbers(values > 0, connectivity=connectivity) == betti)


def test_number_of_edits_is_minimal_for_independent_features():
    values = np.zeros((9, 30))
    for k, height in enumerate((0.9, 0.8, 0.7, 0.6)):
        values[4, 3 + 7 * k] = height
    simple = simplify_to(values, (2, 0))
    assert [(edit.kind, edit.position) for edit in simple.edits] == [("erase", (4, 17)), ("erase", (4, 24))]
    assert [edit.change for edit in simple.edits] == pytest.approx([0.2, 0.1])  # the dearest first


def test_gap_is_bridged_when_cheaper_than_erasing():
    values = np.zeros((5, 11))
    values[2, 1:10] = 0.9
    values[2, 5] = 0.45
    (edit,) = simplify_to(values, (1, 0)).edits
    assert (edit.kind, edit.position, edit.pixels) == ("bridge", (2, 5), 1) and edit.change == pytest.approx(0.05)


def test_loop_is_opened_or_filled_whichever_is_cheaper():
    ring = np.zeros((7, 7))
    ring[1:6, 1:6] = 0.9
    ring[2:5, 2:5] = 0.1
    thin, shallow = ring.copy(), ring.copy()
    thin[1, 3] = 0.55
    shallow[2:5, 2:5] = 0.1
    shallow[2:5, 2:4] = 0.9
    shallow[3, 4] = 0.45
    shallow[[2, 4], 4] = 0.9
    assert [edit.kind for edit in simplify_to(thin, (1, 0)).edits] == ["open"]
    assert [edit.kind for edit in simplify_to(shallow, (1, 0)).edits] == ["fill"]


def test_components_and_cavities_in_3d_can_be_set():
    values = gaussian_filter(np.random.default_rng(3).standard_normal((14, 14, 14)), 1)
    simple = simplify_to(values, (1, None, 0), threshold=0.0)
    assert simple.certificate["betti"][0] == 1 and simple.certificate["betti"][2] == 0


@pytest.mark.parametrize(
    "betti, sentence", [((1,), "2 axes"), ((-1, 0), "at least 0"), ((9, 0), "no edit brings them nearer")]
)
def test_impossible_betti_numbers_are_refused(betti, sentence):
    with pytest.raises(ValueError, match=sentence):
        simplify_to(np.eye(3) * 0.9, betti)


@pytest.mark.parametrize("connectivity", ["closed", "open"])
@pytest.mark.parametrize("bound", [0.0, 0.8])
def test_ridges_connect_all_persistent_saddles_and_peaks(connectivity, bound):
    for values in random_maps(60, seed=4):
        found = ridges(values, min_persistence=bound, connectivity=connectivity)
        assert betti_numbers(found.mask, connectivity=connectivity)[0] == 1
        code = persistence(values, connectivity=connectivity, min_persistence=bound)
        peaks = {tuple(place) for place in code.of(0).births.tolist()}
        assert {tuple(place) for place in found.peaks.tolist()} == peaks
        for places in (found.saddles, found.peaks):
            assert found.mask[tuple(places.T)].all()
        passes = {tuple(p) for p in (*code.of(0).finite().deaths.tolist(), *code.of(1).births.tolist())}
        assert passes == {tuple(place) for place in found.saddles.tolist()}


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_pixels_of_one_ridge_share_owner_and_persistence(connectivity):
    for values in random_maps(60, seed=5):
        found = ridges(values, connectivity=connectivity)
        peaks = np.zeros(values.shape, bool)
        peaks[tuple(found.peaks.T)] = True
        assert ((found.owners >= 0) <= found.mask).all() and (peaks | (found.owners >= 0) == found.mask).all()
        for owner in np.unique(found.owners[found.owners >= 0]):
            ridge = found.owners == owner
            assert len(np.unique(found.persistence[ridge & ~peaks])) <= 1
            place = tuple(found.saddles[owner])
            assert found.persistence[place] >= found.persistence[ridge & ~peaks].max(initial=0)


def test_ridge_of_a_ring_is_a_ring_until_its_loop_is_cancelled():
    y, x = np.indices((41, 41)) - 20
    values = np.exp(-((np.hypot(y, x) - 12) ** 2) / 8) + 1e-6 * x
    assert betti_numbers(ridges(values, min_persistence=0.2).mask) == (1, 1)
    assert betti_numbers(ridges(values, min_persistence=2.0).mask) == (1, 0)
    thick = ridges(values, min_persistence=0.2).mask.sum()
    assert 60 < thick < 110


def test_a_higher_bound_gives_fewer_ridges():
    values = gaussian_filter(np.random.default_rng(5).standard_normal((60, 60)), 2)
    sizes = [ridges(values, min_persistence=bound).mask.sum() for bound in (0.0, 0.1, 0.3)]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def walked(values, bound):
    """Pixels of the ridges above a bound, from the definition: 8-connected, one walk after the other, nothing
    remembered.
    """
    flat = values.ravel()
    order = {int(at): place for place, at in enumerate(np.lexsort((np.arange(flat.size), -flat)))}  # 0 is the highest
    rows, columns = np.unravel_index(np.arange(flat.size), values.shape)

    def higher(at):
        near = np.flatnonzero((abs(rows - rows[at]) <= 1) & (abs(columns - columns[at]) <= 1))
        return [int(other) for other in near if order[int(other)] < order[at]]

    def feet(at):
        """The highest pixel of each piece of the higher neighbours."""
        rest, found = sorted(higher(at), key=order.get), []
        while rest:
            piece = [rest[0]]
            for pixel in piece:
                piece += [
                    o
                    for o in rest
                    if o not in piece and max(abs(rows[o] - rows[pixel]), abs(columns[o] - columns[pixel])) <= 1
                ]
            found.append(rest[0])
            rest = [pixel for pixel in rest if pixel not in piece]
        return found

    code = persistence(values).finite()
    places = [np.ravel_multi_index(tuple(side.T), values.shape) for side in (code.births, code.deaths)]
    dies = {
        int(birth): (int(death), length)
        for birth, death, length, k in zip(*places, code.persistence, code.dimension, strict=True)
        if k == 0
    }
    waiting = [
        int(death if k == 0 else birth)
        for birth, death, length, k in zip(*places, code.persistence, code.dimension, strict=True)
        if length > bound
    ]
    mask, done = np.zeros(flat.size, bool), set()
    mask[[np.argmax(flat), *(peak for peak, (_, length) in dies.items() if length > bound)]] = True
    while waiting:
        saddle = waiting.pop()
        if saddle in done:
            continue
        done.add(saddle)
        mask[saddle] = True
        for foot in feet(saddle):
            at = foot
            while True:
                mask[at] = True
                if not higher(at):
                    break
                at = min(higher(at), key=order.get)
            if at in dies and dies[at][1] <= bound:
                waiting.append(dies[at][0])
    return mask.reshape(values.shape)


@pytest.mark.parametrize("bound", [0.0, 0.2, 0.6])
def test_ridges_equal_ascending_paths_from_persistent_saddles(bound):
    rng = np.random.default_rng(7)
    for values in (
        rng.random((9, 11)),
        gaussian_filter(rng.random((14, 12)), 1),
    ):  # no ties: `persistence` leaves out pairs of no length
        assert np.array_equal(ridges(values, min_persistence=bound).mask, walked(values, bound))


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_one_sweep_holds_the_ridges_of_every_bound(connectivity):
    for values in random_maps(40, seed=6):
        lasting = ridges(values, connectivity=connectivity).persistence
        assert np.isinf(lasting).sum() == 1 and np.argmax(lasting) == np.argmax(values)
        for bound in (0.1, 0.5, 1.0):
            assert np.array_equal(
                lasting > bound, ridges(values, min_persistence=bound, connectivity=connectivity).mask
            )


def test_ridge_probability_equals_its_frequency_in_samples():
    values = gaussian_filter(np.random.default_rng(8).standard_normal((30, 34)), 1.5)
    values = 1 / (1 + np.exp(-4 * values / values.std()))
    present, draws = ridge_presence(values, 0.3, 0.15), np.random.default_rng(9).normal(0.3, 0.15, 2000)
    lasting = ridges(values).persistence
    assert len(np.unique(lasting)) > 10
    sampled = np.mean([lasting > max(draw, 0) for draw in draws], axis=0)
    assert np.abs(present - sampled).max() < 4 * 0.5 / np.sqrt(2000)
    some = ridges(values, min_persistence=draws[0]).mask
    assert np.array_equal(some, lasting > draws[0])


def test_uncertainty_is_per_branch_and_largest_at_probability_one_half():
    values = np.full((9, 40), 0.0)
    values[4, :18], values[4, 18:22], values[4, 22:] = 0.9, 0.5, 0.8  # two pieces over a saddle: the lesser lasts 0.3
    values += 1e-6 * np.arange(values.size).reshape(values.shape)
    assert 0.29 < ridges(values).persistence[4, 19] < 0.31
    uncertain = structure_uncertainty(values, 0.3, 0.1)
    assert uncertain.dtype == np.float32 and uncertain[4, 19] > 0.999 and uncertain[0, 0] == 0
    assert structure_uncertainty(values, 0.1, 0.01)[4, 19] < 1e-6 > structure_uncertainty(values, 0.9, 0.01)[4, 19]
    one_deviation = 0.8413447
    expected = -(one_deviation * np.log2(one_deviation) + (1 - one_deviation) * np.log2(1 - one_deviation))
    assert abs(structure_uncertainty(values, 0.2, 0.1)[4, 19] - expected) < 1e-3
    with pytest.raises(ValueError, match="above 0"):
        structure_uncertainty(values, 0.3, 0.0)


def test_noisy_map_needs_no_more_edits_than_its_numbers_differ():
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    before = betti_numbers(values > 0.5)
    simple = simplify_to(values, (1, 0))
    assert betti_numbers(simple.values > 0.5) == (1, 0) == simple.certificate["betti"]
    assert 200 < len(simple.edits) <= sum(before) - 1


def test_every_edit_names_the_box_of_its_pixels():
    values = gaussian_filter(np.random.default_rng(3).standard_normal((40, 40)), 2)
    simple = simplify_to(values, (2, 0), threshold=0.0)
    touched = np.zeros(values.shape, bool)
    for edit in simple.edits:
        touched[tuple(slice(start, stop) for start, stop in zip(*edit.box, strict=True))] = True
        sides = np.subtract(edit.box[1], edit.box[0])
        assert edit.pixels <= sides.prod() and (sides > 0).all()
    assert len(simple.edits) > 1 and not (simple.values != values)[~touched].any()


def test_only_features_above_the_margin_are_kept():
    values = np.zeros((5, 23))
    values[2, 1:22] = (
        0.9,
        0.9,
        0.9,
        0.46,
        0.9,
        0.9,
        0.9,
        0.1,
        0.1,
        0.55,
        0.1,
        0.1,
        0.8,
        0.8,
        0.3,
        0.9,
        0.9,
        0.1,
        0.1,
        0.7,
        0.7,
    )
    simple = simplify_firm(values, 0.1)
    assert {(edit.kind, edit.position) for edit in simple.edits} == {("bridge", (2, 4)), ("erase", (2, 10))}
    assert betti_numbers(simple.values > 0.5) == (4, 0)
    assert len(simplify_firm(values, 0.0).edits) == 0


@pytest.mark.parametrize("shape", [(48, 48), (14, 14, 14)])
def test_stable_features_are_counted_and_kept(shape):
    for seed in range(6):
        values = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
        found, simple = margins(values, 0.0), simplify_firm(values, 0.05, threshold=0.0)
        firm = [
            int((found.present & (found.margins >= 0.05) & (found.bars.dimension == k)).sum())
            for k in range(len(shape))
        ]
        now = betti_numbers(simple.values > 0)
        assert (now[0], now[-1]) == (firm[0], firm[-1]) and now == simple.certificate["betti"]


def test_unreachable_target_reports_the_closest_result():
    peak = np.zeros((5, 5))
    peak[2, 2] = 0.9
    with pytest.raises(Unreachable) as refused:
        simplify_to(peak, (3, 0))
    assert refused.value.reached[1] == 0 and refused.value.asked == (3, 0) and refused.value.reached[0] < 3
