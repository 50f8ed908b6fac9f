"""Edits by hand change the intended pixels at the least cost; Betti numbers are recounted by other code."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import euler_number

from tests.topology.masks import mask
from topology.components import betti_numbers
from topology.cuts import cheapest_cut
from topology.edits import NoEdit, changed, connect, cut, fill, remove
from topology.paths import steps_of


def recount(drawn):
    """Betti numbers by SciPy's labels and scikit-image's Euler number; foreground 8 [26]-connected."""
    components = ndimage.label(drawn, np.ones((3,) * drawn.ndim))[1]
    enclosed = ndimage.label(np.pad(~drawn, 1, constant_values=True))[1] - 1
    if drawn.ndim == 2:
        return components, enclosed
    return components, components + enclosed - euler_number(np.pad(drawn, 1), 3), enclosed


def checked(edit, before):
    """An edit whose Betti numbers an independent count confirms; the mask after it."""
    after = edit.made(before)
    assert edit.betti_before == recount(before) and edit.betti_after == recount(after)
    assert {tuple(place) for place in np.argwhere(after != before)} == {tuple(place) for place in edit.pixels.tolist()}
    assert not len(edit.pixels) or (after[tuple(edit.pixels.T)] == edit.adds).all()
    return after


def two_blocks():
    values = np.full((20, 60), 0.3, np.float32)
    values[:, 5:25] = values[:, 28:48] = 0.9
    return values, values > 0.5


def ring():
    values = np.full((40, 40), 0.05, np.float32)
    values[5:35, 5:35] = 0.6
    values[9:31, 9:31] = 0.05
    return values, values > 0.5


def broken_ring():
    values, _ = ring()
    values[5:9, 18:22] = 0.2
    return values, values > 0.5


def torus(centre=12, thickness=4, side=40):
    planes, rows, columns = (
        np.indices((side // 2, side, side)) - np.array([side // 4, side // 2, side // 2])[:, None, None, None]
    )
    away = np.hypot(np.hypot(rows, columns) - centre, planes)
    values = np.where(away < thickness, 0.9, 0.05).astype(np.float32)
    return values, values > 0.5


# Connect -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [((10, 26),), ((10, 10),), ((10, 10), (10, 40)), ((10, 26), (3, 58))])
def test_two_components_are_connected_by_cheapest_path(places):
    values, drawn = two_blocks()
    edit = connect(values, drawn, *places)
    checked(edit, drawn)
    assert (edit.kind, len(edit.pixels), edit.betti_after) == ("connect", 3, (1, 0))
    assert edit.cost == pytest.approx(3 * 0.2)


def test_nearest_of_equal_paths_is_taken():
    values, drawn = two_blocks()
    assert set(connect(values, drawn, (4, 26)).pixels[:, 0]) == {4}
    assert set(connect(values, drawn, (15, 10), (15, 40)).pixels[:, 0]) == {15}


@pytest.mark.parametrize("places", [((7, 20),), ((7, 17), (7, 22))])
def test_closing_gap_of_one_component_makes_a_loop(places):
    values, drawn = broken_ring()
    edit = connect(values, drawn, *places)
    checked(edit, drawn)
    assert (edit.betti_before, edit.betti_after, len(edit.pixels)) == ((1, 0), (1, 1), 4)


def test_ends_of_broken_line_are_connected_through_its_pieces():
    values = np.full((9, 50), 0.1)
    values[4, 2:48] = 0.9
    values[4, [10, 20, 30, 40]] = 0.4
    drawn = values > 0.5
    edit = connect(values, drawn, (4, 3), (4, 46))
    checked(edit, drawn)
    assert edit.pixels.tolist() == [[4, 10], [4, 20], [4, 30], [4, 40]] and edit.betti_after == (1, 0)


def test_path_follows_probable_pixels():
    values = np.full((30, 30), 0.05)
    values[14:16, 2:8] = values[14:16, 22:28] = 0.9
    values[5, 5:25] = values[5:14, 5] = values[5:14, 24] = 0.45  # a detour that costs less
    drawn = values > 0.5
    edit = connect(values, drawn, (14, 4), (14, 25))
    checked(edit, drawn)
    assert (edit.pixels[:, 0] <= 13).all() and (edit.pixels[:, 0] == 5).any()


def test_components_of_volume_are_connected_and_loops_closed():
    values, drawn = torus()
    broken = drawn.copy()
    broken[:, 18:23, :15] = False
    edit = connect(values, broken, (10, 20, 8))
    checked(edit, broken)
    assert (edit.betti_before, edit.betti_after) == ((1, 0, 0), (1, 1, 0))
    apart = broken.copy()
    apart[:, 18:23, 25:] = False
    edit = connect(values, apart, (10, 16, 8), (10, 25, 8))
    checked(edit, apart)
    assert (edit.betti_before, edit.betti_after) == ((2, 0, 0), (1, 0, 0))


# Cut -----------------------------------------------------------------------------------------------------------------


def test_bar_is_cut_across_at_the_pixel():
    values = np.full((15, 60), 0.1)
    values[5:10, 3:57] = 0.8
    drawn = values > 0.5
    edit = cut(values, drawn, (7, 30))
    checked(edit, drawn)
    assert edit.pixels.tolist() == [[row, 30] for row in range(5, 10)] and edit.betti_after == (2, 0)


def test_cut_at_ring_corner_opens_the_ring():
    values, drawn = ring()
    for place in ((7, 20), (7, 7), (20, 6), (33, 33)):
        edit = cut(values, drawn, place)
        checked(edit, drawn)
        assert edit.betti_after == (1, 0) and len(edit.pixels) <= 8


def test_cut_between_two_pixels_is_made_where_it_is_cheapest():
    values = np.full((21, 80), 0.1)
    values[3:18, 3:77] = 0.9
    values[3:18, 50] = 0.55
    drawn = values > 0.5
    edit = cut(values, drawn, (10, 10), (10, 70))
    after = checked(edit, drawn)
    assert set(edit.pixels[:, 1]) == {50}
    labels = ndimage.label(after, np.ones((3, 3)))[0]
    assert labels[10, 10] != labels[10, 70]


def test_cut_between_two_pixels_of_ring_cuts_both_arms():
    values, drawn = ring()
    edit = cut(values, drawn, (7, 7), (33, 33))
    checked(edit, drawn)
    assert edit.betti_after == (2, 0) and len(edit.pixels) == 8


def test_cut_between_two_background_pixels_opens_the_wall():
    values, drawn = ring()
    edit = cut(values, drawn, (20, 20), (20, 0))
    checked(edit, drawn)
    assert edit.pixels.tolist() == [[20, column] for column in range(5, 9)]


def test_handle_of_volume_is_cut_across():
    values, drawn = torus()
    edit = cut(values, drawn, (10, 20, 32))
    checked(edit, drawn)
    assert edit.betti_after == (1, 0, 0) and np.ptp(edit.pixels[:, 1]) <= 2 and len(edit.pixels) <= 50
    edit = cut(values, drawn, (10, 20, 32), (10, 20, 8))
    checked(edit, drawn)
    assert edit.betti_after == (2, 0, 0) and len(edit.pixels) <= 100


def test_tube_is_cut_where_it_is_narrow():
    values = np.zeros((13, 13, 50), np.float32)
    rows, columns = np.hypot(*(np.indices((13, 13)) - 6)), np.arange(50)
    values[rows[..., None] < 5 - 3 * np.exp(-((columns - 30) ** 2) / 8)] = 0.8
    drawn = values > 0.5
    edit = cut(values, drawn, (6, 6, 5), (6, 6, 45))
    checked(edit, drawn)
    assert (np.abs(edit.pixels[:, 2] - 30) <= 2).all() and edit.betti_after == (2, 0, 0)


def test_cheapest_cut_matches_exhaustive_search():
    for seed in range(25):
        random = np.random.default_rng(seed)
        framed = np.zeros((5, 7), bool)
        framed[1:4, 1:6] = random.random((3, 5)) < 0.85
        framed[2, 1:6] = True
        pixels = np.flatnonzero(framed)
        costs = random.integers(1, 9, len(pixels)).astype(float)
        column = pixels % 7
        found = cheapest_cut(pixels, costs, steps_of((5, 7), True), column == 1, column == 5)
        inner = np.flatnonzero((column > 1) & (column < 5))
        least = np.inf
        for bits in range(2 ** len(inner)):
            gone = inner[(bits >> np.arange(len(inner))) & 1 == 1]
            if costs[gone].sum() >= least:
                continue
            left = framed.copy()
            left.ravel()[pixels[gone]] = False
            labels = ndimage.label(left, np.ones((3, 3)))[0].ravel()
            if not set(labels[pixels[column == 1]]) & set(labels[pixels[column == 5]]) - {0}:
                least = costs[gone].sum()
        assert costs[found].sum() == least


# Fill, remove, undo --------------------------------------------------------------------------------------------------


def test_hole_is_filled_and_component_removed():
    values, drawn = ring()
    edit = fill(values, drawn, (20, 20))
    checked(edit, drawn)
    assert (len(edit.pixels), edit.betti_after) == (484, (1, 0)) and edit.cost == pytest.approx(484 * 0.45, rel=1e-5)
    values, drawn = two_blocks()
    edit = remove(values, drawn, (3, 6))
    checked(edit, drawn)
    assert (len(edit.pixels), edit.betti_after) == (400, (1, 0))


def test_cavity_is_filled():
    drawn = np.zeros((9, 9, 9), bool)
    drawn[1:8, 1:8, 1:8] = True
    drawn[3:6, 3:6, 3:6] = False
    edit = fill(drawn.astype(np.float32), drawn, (4, 4, 4))
    checked(edit, drawn)
    assert (edit.betti_before, edit.betti_after, len(edit.pixels)) == ((1, 0, 1), (1, 0, 0), 27)


def test_edit_is_undone_by_restoring_its_pixels():
    values, drawn = broken_ring()
    edit = connect(values, drawn, (7, 20))
    assert (changed(edit.made(drawn), edit.pixels, not edit.adds) == drawn).all()


def test_edit_that_agrees_with_the_map_costs_nothing():
    values, drawn = ring()
    gone = drawn.copy()
    gone[5:9, 20] = False
    assert connect(values, gone, (7, 20)).cost == 0
    assert cut(values, drawn, (7, 20)).cost > 0


@pytest.mark.parametrize("connectivity", ["closed", "open"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_betti_numbers_of_edits_match_a_recount(ndim, connectivity):
    made = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        values = ndimage.gaussian_filter(random.standard_normal((24, 26) if ndim == 2 else (9, 10, 11)), 1.2)
        drawn = values > 0
        places = [tuple(int(k) for k in random.integers(0, drawn.shape)) for _ in range(2)]
        for tool, given in ((connect, 1), (connect, 2), (cut, 1), (cut, 2), (fill, 1), (remove, 1)):
            try:
                edit = tool(values, drawn, *places[:given], threshold=0.0, connectivity=connectivity)
            except NoEdit as refused:
                assert len(str(refused)) > 30
                continue
            made += 1
            after = edit.made(drawn)
            assert edit.betti_after == betti_numbers(after, connectivity=connectivity)
            assert edit.betti_before == betti_numbers(drawn, connectivity=connectivity) and len(edit.pixels)
            if (tool is connect and given == 1) or (tool is cut and given == 1):
                before, now = edit.betti_before, edit.betti_after
                assert sum(abs(a - b) for a, b in zip(before, now, strict=True)) == 1 or drawn[places[0]]
    assert made > 120


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tool, places, sentence",
    [
        (fill, [(0, 0)], "not enclosed"),
        (fill, [(10, 10)], "foreground"),
        (remove, [(0, 0)], "background"),
        (cut, [(0, 0)], "background already"),
        (cut, [(10, 10), (0, 0)], "One pixel is foreground"),
        (cut, [(10, 10), (10, 40)], "different components"),
        (cut, [(10, 10), (10, 11)], "touch"),
    ],
)
def test_refusal_says_what_is_at_the_pixel(tool, places, sentence):
    with pytest.raises(NoEdit, match=sentence):
        tool(*two_blocks(), *places)


def test_single_block_has_nothing_to_connect():
    drawn = mask("""
        .....
        .###.
        .###.
        ..... """)
    with pytest.raises(NoEdit, match="Nothing to connect"):
        connect(drawn.astype(np.float32), drawn, (0, 0))


@pytest.mark.parametrize("place", [(99, 0), (-1, 0), (1.5, 0), (1, 2, 3), "ab", (True, 0), 7, None])
def test_invalid_pixel_is_refused_by_name(place):
    values, drawn = two_blocks()
    with pytest.raises(ValueError, match="is no pixel of an array of shape") as refused:
        fill(values, drawn, place)
    assert repr(place) in str(refused.value)


def test_map_and_mask_must_have_one_shape():
    values, drawn = two_blocks()
    with pytest.raises(ValueError, match="differ in shape"):
        fill(values, drawn[1:], (1, 1))
