"""Topology errors by regions: critical exactly when they change Betti numbers."""

import numpy as np
import pytest
from scipy import ndimage

from tests.topology.masks import mask, random_masks
from topology.components import betti_numbers, euler_characteristic
from topology.matching import match
from topology.metrics import locate_errors
from topology.regions import region_graph, shared_cells


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


def test_contacts_count_components_of_the_shared_cells():
    """Against the shared cells as a complex of their own: its pieces, and its Euler characteristic in the sum."""
    random, several = np.random.default_rng(5), 0
    for reference in random_masks(200, seed=6, longest=(11, 6)):
        prediction = reference ^ (random.random(reference.shape) < 0.3)
        graph = region_graph(prediction, reference)
        for k, false in enumerate(graph.false):
            region, lacking = graph.labels == k + 1, reference if false else prediction
            shared = shared_cells(region, lacking)
            assert graph.contacts[k] == betti_numbers(shared, connectivity="open")[0]
            assert graph.euler[k] == euler_characteristic(region) - euler_characteristic(shared, connectivity="open")
            several += graph.contacts[k] > 1
    assert several > 100


def test_relevant_is_rejected_for_open_cubes():
    with pytest.raises(ValueError, match="closed"):
        _ = region_graph(BARS, JOINED, connectivity="open").relevant


HERE = mask("""
    .......
    .###...
    .#.#...
    .##....
    ....... """)
ELSEWHERE = mask("""
    .......
    .###...
    .####..
    .###.#.
    ....#.. """)


def test_region_that_moves_a_loop_is_relevant_though_no_number_changes():
    assert betti_numbers(HERE) == betti_numbers(ELSEWHERE) == (1, 1)
    for pair in ((ELSEWHERE, HERE), (HERE, ELSEWHERE)):
        graph = region_graph(*pair)
        assert graph.critical.tolist() == [False] and graph.relevant.tolist() == [True]


def test_relevant_in_2d_means_a_component_has_not_one_successor():
    """By the definition: components of the foreground and of the background, before and after."""
    random, moved = np.random.default_rng(3), 0
    for reference in random_masks(400, seed=4, ndims=(2,)):
        prediction = reference ^ (random.random(reference.shape) < random.random() / 2)
        graph = region_graph(prediction, reference)
        for k, false in enumerate(graph.false):
            lacking = reference if false else prediction
            whole = lacking | (graph.labels == k + 1)
            kept = one_to_one(lacking, whole, 8) and one_to_one(
                np.pad(~whole, 1, constant_values=True), np.pad(~lacking, 1, constant_values=True), 4
            )
            assert graph.relevant[k] == (not kept)
            moved += graph.relevant[k] and not graph.critical[k]
    assert moved > 0


def one_to_one(inner, outer, neighbours):
    """True when each component of the outer mask holds exactly one of the inner."""
    shape = np.ones((3, 3)) if neighbours == 8 else None
    (inside, count), (outside, places) = (ndimage.label(each, shape) for each in (inner, outer))
    pairs = {(outside[at], inside[at]) for at in zip(*np.nonzero(inner), strict=True)}
    return len(pairs) == count == places and len({pair[0] for pair in pairs}) == places


def test_masks_without_relevant_regions_have_all_features_matched_in_2d():
    """Random pairs that differ by harmless regions alone: Betti numbers are equal and every feature has its partner."""
    random, seen = np.random.default_rng(7), 0
    while seen < 200:
        smooth = ndimage.gaussian_filter(random.standard_normal((2, 12, 14)), (0, 1.2, 1.2))
        prediction, reference = smooth[0] > 0, smooth[0] + 0.4 * smooth[1] > 0
        graph = region_graph(prediction, reference)
        if len(graph.sizes) and not graph.relevant.any():
            seen += 1
            assert betti_numbers(prediction) == betti_numbers(reference)
            assert match(prediction.astype(np.float32), reference.astype(np.float32)).error == 0


def test_two_regions_that_fill_one_tunnel_together_are_relevant_in_3d():
    """A square tube; each of two hooks closes its mouth and brings a handle, so each alone leaves the numbers."""
    tube = np.zeros((15, 9, 9), bool)
    tube[5:10, 2:7, 2:7] = True
    tube[5:10, 3:6, 3:6] = False
    hook = np.zeros_like(tube)
    hook[5, 3:6, 3:6] = hook[2:5, 4, 4] = hook[2, 4, 4:7] = hook[2:5, 4, 6] = True
    both = tube | hook | hook[::-1]
    assert betti_numbers(tube) == betti_numbers(tube | hook) == (1, 1, 0) and betti_numbers(both) == (1, 2, 1)
    for pair in ((both, tube), (tube, both)):
        graph = region_graph(*pair)
        assert not graph.critical.any() and graph.relevant.tolist() == [True, True]
    # The limit in space: one hook alone moves the loop, which no number shows.
    assert not region_graph(tube | hook, tube).relevant.any()


@pytest.mark.parametrize("sides", [(11, 13), (5, 6, 7)])
def test_masks_without_relevant_regions_have_equal_betti_numbers(sides):
    random, seen = np.random.default_rng(9), 0
    for _ in range(3000):
        smooth = ndimage.gaussian_filter(random.standard_normal((2, *sides)), (0, *[0.8] * len(sides)))
        prediction, reference = smooth[0] > 0, smooth[0] + 0.4 * smooth[1] > 0
        graph = region_graph(prediction, reference)
        if len(graph.sizes) and not graph.relevant.any():
            seen += 1
            assert betti_numbers(prediction) == betti_numbers(reference)
    assert seen > 20
