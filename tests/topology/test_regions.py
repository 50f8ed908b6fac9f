"""Topology errors by regions: critical exactly when they change Betti numbers."""

import numpy as np
import pytest

from tests.topology.masks import mask, random_masks
from topology.components import betti_numbers
from topology.metrics import locate_errors
from topology.regions import region_graph


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_a_region_is_critical_exactly_when_adding_it_changes_a_betti_number(connectivity):
    random = np.random.default_rng(1)
    critical = harmless = 0
    for reference in random_masks(250, seed=1, longest=(13, 6)):
        prediction = reference ^ (random.random(reference.shape) < random.random() / 2)
        graph = region_graph(prediction, reference, connectivity=connectivity)
        for k, false in enumerate(graph.false):
            lacking = reference if false else prediction
            added = betti_numbers(lacking | (graph.labels == k + 1), connectivity=connectivity)
            change = np.subtract(added, betti_numbers(lacking, connectivity=connectivity))
            assert np.array_equal(change, graph.changes[k])
            critical += change.any()
            harmless += not change.any()
    assert critical > 100 and harmless > 100


def test_regions_cover_exactly_the_differing_pixels():
    for reference in random_masks(40, seed=2):
        prediction = np.roll(reference, 1, -1)
        graph = region_graph(prediction, reference)
        assert np.array_equal(graph.labels > 0, prediction ^ reference)
        assert graph.sizes.sum() == (prediction ^ reference).sum()
        for k, (place, box) in enumerate(zip(graph.places, graph.boxes, strict=True)):
            assert graph.labels[tuple(place)] == k + 1
            assert (box[0] <= place).all() and (place < box[1]).all()


def kinds(prediction, reference):
    return [
        (error["kind"], error["dimension"], tuple(error["position"])) for error in locate_errors(prediction, reference)
    ]


BARS = mask("""
    .........
    .###.###.
    .........
    .......#.
    ......... """)
JOINED = BARS | mask("""
    .........
    ....#....
    .........
    .........
    ......... """)
RING = mask("""
    .......
    .#####.
    .#...#.
    .#####.
    ....... """)


def without(image, *places):
    changed = image.copy()
    for place in places:
        changed[place] = not changed[place]
    return changed


def test_a_gap_in_a_bar_is_a_break_at_the_gap():
    assert kinds(BARS, JOINED) == [("break", 0, (1, 4))]


def test_a_bridge_between_two_bars_is_a_merge_at_the_bridge():
    assert kinds(JOINED, BARS) == [("merge", 0, (1, 4))]


def test_extra_component_is_spurious_and_absent_one_missing():
    assert kinds(BARS, without(BARS, (3, 7))) == [("spurious", 0, (3, 7))]
    assert kinds(without(BARS, (3, 7)), BARS) == [("missing", 0, (3, 7))]


def test_an_open_ring_is_a_break_of_a_loop_and_a_closed_one_a_merge():
    assert kinds(without(RING, (1, 3)), RING) == [("break", 1, (1, 3))]
    assert kinds(RING, without(RING, (1, 3))) == [("merge", 1, (1, 3))]


def test_a_pinhole_is_a_hole_and_a_filled_ring_misses_its_hole():
    solid = np.pad(np.ones((3, 5), bool), 1)
    assert kinds(without(solid, (2, 3)), solid) == [("hole", 1, (2, 3))]
    assert kinds(solid, RING) == [("missing", 1, (2, 3))]


def test_a_thicker_or_thinner_border_is_no_error():
    thick = np.pad(np.ones((3, 5), bool), 1)
    assert kinds(thick, without(thick, (1, 1))) == []
    assert kinds(without(thick, (1, 1)), thick) == []


def test_a_cavity_in_space_is_a_hole_of_dimension_two():
    solid = np.ones((3, 3, 3), bool)
    assert kinds(without(solid, (1, 1, 1)), solid) == [("hole", 2, (1, 1, 1))]


def test_handle_in_3d_is_a_merge_of_dimension_one():
    arch = np.zeros((3, 5, 5), bool)
    arch[1, 1:4, 1] = arch[1, 1:4, 3] = arch[1, 1, 1:4] = True
    closed = arch.copy()
    closed[1, 3, 2] = True
    assert kinds(closed, arch) == [("merge", 1, (1, 3, 2))]


def test_persistence_of_an_error_is_its_distance_to_the_threshold():
    soft = JOINED * 0.9
    soft[1, 4] = 0.3
    (error,) = locate_errors(soft, JOINED)
    assert error["kind"] == "break" and error["persistence"] == pytest.approx(0.2) and error["size"] == 1
    assert error["box"] == [[1, 4], [2, 5]]


def test_diagonal_chain_joining_two_bars_is_one_critical_region():
    apart = mask("""
        ##....
        .....#
        .....# """)
    chain = apart | mask("""
        ..#...
        ...#..
        ....#. """)
    assert [error[:2] for error in kinds(chain, apart)] == [("merge", 0)]


def test_errors_inside_ignored_pixels_are_not_reported():
    ignore = np.zeros(BARS.shape, bool)
    ignore[1, 4] = True
    assert locate_errors(BARS, JOINED, ignore=ignore) == []


def test_errors_are_sorted_by_severity():
    soft = JOINED * 0.9
    soft[1, 4], soft[3, 3] = 0.4, 0.95
    assert [error["kind"] for error in locate_errors(soft, JOINED)] == ["spurious", "break"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (4, 5), (1, 1, 1), (1, 3, 4), (3, 1, 4), (3, 4, 5)])
def test_empty_full_and_equal_masks_have_one_region_or_none(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    assert not len(region_graph(empty, empty).sizes) and not len(region_graph(full, full).critical)
    for prediction, reference in ((empty, full), (full, empty)):
        graph = region_graph(prediction, reference)
        assert (graph.sizes.tolist(), graph.false.tolist(), graph.critical.tolist()) == (
            [full.size],
            [bool(prediction.all())],
            [True],
        )
        assert graph.changes[0].tolist() == [1] + [0] * (full.ndim - 1)


def test_read_only_and_strided_masks_are_read_as_they_are():
    wide = np.random.default_rng(0).random((12, 20)) > 0.5
    wide.setflags(write=False)
    plain, seen = region_graph(wide[:, ::2].copy(), wide[:, 1::2].copy()), region_graph(wide[:, ::2], wide[:, 1::2])
    assert np.array_equal(plain.labels, seen.labels) and np.array_equal(plain.critical, seen.critical)


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_diagonal_runs_touch_according_to_their_connectivity(connectivity):
    """All pairs of masks of 2 x 3 pixels, against the Betti numbers of the whole: 4096 cases."""
    masks = [np.array([code >> k & 1 for k in range(6)], bool).reshape(2, 3) for code in range(64)]
    betti = {m.tobytes(): np.array(betti_numbers(m, connectivity=connectivity)) for m in masks}
    for prediction in masks:
        for reference in masks:
            graph = region_graph(prediction, reference, connectivity=connectivity)
            for k, false in enumerate(graph.false):
                lacking = reference if false else prediction
                assert np.array_equal(
                    betti[(lacking | (graph.labels == k + 1)).tobytes()] - betti[lacking.tobytes()], graph.changes[k]
                )
