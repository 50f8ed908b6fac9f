"""Simplified maps have the topology asked for, counted by other code; Morse ridges join what lasts."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from topology_pictures import random_maps

from topology.components import betti_numbers
from topology.morse import ridges
from topology.persistence import persistence
from topology.simplify import simplify_below, simplify_to


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_no_feature_below_the_bound_is_left_and_those_far_above_it_stay(connectivity):
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
def test_the_superlevel_set_gets_the_betti_numbers_asked_for(connectivity):
    for seed in range(8):
        values = gaussian_filter(np.random.default_rng(seed).standard_normal((40, 40)), 2)
        for betti in ((1, 0), (3, 2), (6, 1)):
            simple = simplify_to(values, betti, threshold=0.0, connectivity=connectivity)
            assert simple.certificate["betti"] == betti == betti_numbers(simple.values > 0, connectivity=connectivity)
            changed = np.count_nonzero(simple.values != values)
            assert changed <= sum(edit.pixels for edit in simple.edits)
            assert (changed == 0) == (betti_numbers(values > 0, connectivity=connectivity) == betti)


def test_the_edits_are_as_many_as_the_numbers_differ_when_each_can_be_changed_alone():
    values = np.zeros((9, 30))
    for k, height in enumerate((0.9, 0.8, 0.7, 0.6)):
        values[4, 3 + 7 * k] = height
    simple = simplify_to(values, (2, 0))
    assert [(edit.kind, edit.position) for edit in simple.edits] == [("erase", (4, 24)), ("erase", (4, 17))]
    assert [edit.change for edit in simple.edits] == pytest.approx([0.1, 0.2])


def test_a_gap_is_bridged_when_that_changes_less_than_erasing():
    values = np.zeros((5, 11))
    values[2, 1:10] = 0.9
    values[2, 5] = 0.45
    (edit,) = simplify_to(values, (1, 0)).edits
    assert (edit.kind, edit.position, edit.pixels) == ("bridge", (2, 5), 1) and edit.change == pytest.approx(0.05)


def test_a_loop_is_opened_or_filled_by_the_smaller_change():
    ring = np.zeros((7, 7))
    ring[1:6, 1:6] = 0.9
    ring[2:5, 2:5] = 0.1
    thin, shallow = ring.copy(), ring.copy()
    thin[1, 3] = 0.55
    shallow[2:5, 2:5] = 0.45
    assert [edit.kind for edit in simplify_to(thin, (1, 0)).edits] == ["open"]
    assert [edit.kind for edit in simplify_to(shallow, (1, 0)).edits] == ["fill"]


def test_in_space_components_and_cavities_are_steered():
    values = gaussian_filter(np.random.default_rng(3).standard_normal((14, 14, 14)), 1)
    simple = simplify_to(values, (1, None, 0), threshold=0.0)
    assert simple.certificate["betti"][0] == 1 and simple.certificate["betti"][2] == 0


@pytest.mark.parametrize("betti, sentence", [((1,), "2 axes"), ((-1, 0), "at least 0"), ((9, 0), "no edit brings them nearer")])
def test_betti_numbers_a_map_cannot_have_are_refused(betti, sentence):
    with pytest.raises(ValueError, match=sentence):
        simplify_to(np.eye(3) * 0.9, betti)


@pytest.mark.parametrize("connectivity", ["closed", "open"])
@pytest.mark.parametrize("bound", [0.0, 0.8])
def test_ridges_are_connected_and_pass_through_every_lasting_saddle_and_peak(connectivity, bound):
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


def test_the_ridge_of_a_drawn_ring_is_a_ring_and_goes_when_its_loop_is_cancelled():
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
