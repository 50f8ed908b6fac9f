"""Skeletons keep topology, are thin, centred and move with the mask, and give correct graphs."""

from itertools import product

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize as peer

from tests.topology.masks import mask, random_masks, shared_masks
from topology.components import betti_numbers
from topology.graph import skeleton_graph, skeleton_totals
from topology.metrics import centreline_dice, report
from topology.simple import plane_tables, simple_points
from topology.skeleton import DIRECTIONS, leaving_tables, skeletonize, zhang_suen
from topology.soft_thinning import continuous_skeleton

BOTH = pytest.mark.parametrize("connectivity", ["closed", "open"])


def neighbours(image, connectivity="closed"):
    """How many foreground neighbours each pixel has, itself included."""
    near = ndimage.generate_binary_structure(image.ndim, image.ndim if connectivity == "closed" else 1)
    return ndimage.convolve(image.astype(int), near.astype(int), mode="constant"), near


def tips(image, connectivity="closed"):
    """Foreground pixels with exactly one foreground neighbour."""
    return image & (neighbours(image, connectivity)[0] == 2)


def end_points(image, connectivity="closed"):
    """What thinning keeps: in the plane the tips, in space those whose neighbour has at most one other."""
    count, near = neighbours(image, connectivity)
    crowded = image & (count > 3) & (image.ndim == 3)
    return tips(image, connectivity) & ~ndimage.binary_dilation(crowded, near)


def of_ones_and_zeros(image, connectivity="closed"):
    """The continuous-tone skeleton of a mask, cut at one half; it knows closed cubes only."""
    return continuous_skeleton(image.astype(np.float32)) > 0.5


def assert_exact(image, connectivity="closed", thin=skeletonize):
    skeleton = thin(image, connectivity=connectivity)
    assert not (skeleton & ~image).any()
    assert betti_numbers(skeleton, connectivity=connectivity) == betti_numbers(image, connectivity=connectivity)
    assert not (end_points(image, connectivity) & ~skeleton).any()
    assert not (simple_points(skeleton, connectivity=connectivity) & ~end_points(skeleton, connectivity)).any()


@pytest.mark.parametrize(
    ("thin", "connectivity"), [(skeletonize, "closed"), (skeletonize, "open"), (of_ones_and_zeros, "closed")]
)
def test_all_images_of_3x4_are_thinned_exactly_by_every_thinner(thin, connectivity):
    for code in range(4096):
        assert_exact((code >> np.arange(12) & 1).astype(bool).reshape(3, 4), connectivity, thin)


@BOTH
def test_all_65536_images_of_4x4_keep_their_components_and_holes(connectivity):
    codes = np.arange(2**16).reshape(256, 256)
    tiles = np.zeros((256, 6, 256, 6), bool)
    for bit in range(16):
        tiles[:, 1 + bit // 4, :, 1 + bit % 4] = codes >> bit & 1
    image = tiles.reshape(1536, 1536)
    skeleton = skeletonize(image, connectivity=connectivity)
    assert not (skeleton & ~image).any() and skeleton.sum() < 0.95 * image.sum()
    for part, full in ((0, connectivity == "closed"), (1, connectivity == "open")):
        before, after = (counts_in_tiles(each != part, full) for each in (image, skeleton))
        assert np.array_equal(before, after)


def counts_in_tiles(image, full):
    """Components in each tile of 6 x 6 by scipy, 8-connected if full."""
    apart = np.pad(image.reshape(256, 6, 256, 6), ((0, 0), (0, 1), (0, 0), (0, 1)))
    labels, _ = ndimage.label(apart.reshape(1792, 1792), np.ones((3, 3)) if full else None)
    ordered = np.sort(labels.reshape(256, 7, 256, 7).transpose(0, 2, 1, 3).reshape(65536, 49), axis=1)
    return (np.diff(ordered, axis=1) > 0).sum(1)  # every tile has background, so each step up is one component


def test_in_the_plane_every_candidate_of_a_step_stays_simple_whichever_others_leave():
    """The proof that a step over whole words is safe: all windows, all sets of earlier candidates that can occur."""
    simple, tables, to_side = plane_tables()[0], leaving_tables(), (-3, 3, -1, 1)
    for step in DIRECTIONS:
        for code in np.flatnonzero(tables[step]):
            # A neighbour is a candidate only if its own side is background; outside the window that is not known.
            free = []
            for bit in range(4):
                row, column = bit // 3 + (-1, 1, 0, 0)[step], bit % 3 + (0, 0, -1, 1)[step]
                known = 0 <= row <= 2 and 0 <= column <= 2
                if code >> bit & 1 and not (known and code >> (bit + to_side[step]) & 1):
                    free.append(1 << bit)
            for taken in product((0, 1), repeat=len(free)):
                assert simple[code & ~sum(bit for bit, out in zip(free, taken, strict=True) if out)]


@BOTH
def test_random_masks_are_thinned_exactly(connectivity):
    for image in random_masks(150, seed=1, longest=(40, 14)):
        assert_exact(image, connectivity)


def thinned_one_by_one(image, connectivity):
    """The algorithm straight from its description, on arrays, with `simple_points` asked before every removal."""
    image = np.pad(image, 1)
    steps = [(axis, shift) for axis in range(image.ndim) for shift in (1, -1)] + [None] * (connectivity == "open")
    before = None
    while before is None or before != image.sum():
        before = image.sum()
        for step in steps:
            open_ = image if step is None else image & ~np.roll(image, step[1], step[0])
            candidates = simple_points(image, connectivity=connectivity) & ~end_points(image, connectivity) & open_
            undecided = candidates.copy()
            for place in map(tuple, np.argwhere(candidates)):
                undecided[place] = False
                alone = neighbours(image & ~undecided, connectivity)[0][place] == 1
                if connectivity == "closed" and image.ndim == 2:
                    alone = False  # in the plane nothing of the kind can happen
                if simple_points(image, connectivity=connectivity)[place] and not alone:
                    image[place] = False
    return image[(slice(1, -1),) * image.ndim]


@BOTH
def test_the_kernels_equal_thinning_one_pixel_at_a_time(connectivity):
    for image in random_masks(50, seed=4, longest=(16, 6)):
        assert np.array_equal(skeletonize(image, connectivity=connectivity), thinned_one_by_one(image, connectivity))


def test_lines_longer_than_a_machine_word_are_thinned_like_short_ones():
    random = np.random.default_rng(0)
    wide = ndimage.gaussian_filter(random.standard_normal((24, 200)), 2) > -0.05
    assert np.array_equal(skeletonize(wide), thinned_one_by_one(wide, "closed"))
    deep = ndimage.gaussian_filter(random.standard_normal((5, 6, 140)), 1) > -0.2
    assert np.array_equal(skeletonize(deep), thinned_one_by_one(deep, "closed"))


@BOTH
def test_a_skeleton_moves_with_its_mask(connectivity):
    for image in random_masks(40, seed=8, longest=(70, 12)):
        skeleton = skeletonize(image, connectivity=connectivity)
        for shift in [(1,) + (0,) * (image.ndim - 1), (0,) * (image.ndim - 1) + (1,), (5,) * image.ndim]:
            moved = skeletonize(np.pad(image, [(step, 0) for step in shift]), connectivity=connectivity)
            assert np.array_equal(moved, np.pad(skeleton, [(step, 0) for step in shift]))


@pytest.mark.parametrize("radius", [3, 5, 9.5, 20])
@pytest.mark.parametrize("centre", [25, 25.5])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_disk_or_a_ball_of_any_width_leaves_a_point_or_the_shortest_line(radius, centre, ndim):
    ball = ((np.indices((52,) * ndim) - centre) ** 2).sum(0) < radius**2
    skeleton = skeletonize(ball)
    assert 1 <= skeleton.sum() <= 3 and tips(skeleton).sum() <= 2
    assert np.abs(np.argwhere(skeleton) - centre).max() <= 1


def test_the_report_of_a_disk_has_at_most_two_end_points():
    y, x = np.mgrid[:81, :81]
    facts = report((x - 40) ** 2 + (y - 40) ** 2 < 400)
    assert facts["end_points"] <= 2 and facts["branches"] <= 1 and facts["branch_points"] == 0


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6])
def test_bar_of_even_width_keeps_its_component_unlike_scikit_image(side):
    bar = np.zeros((side + 2, side + 2, 40), bool)
    bar[1:-1, 1:-1] = True
    skeleton = skeletonize(bar)
    assert betti_numbers(skeleton) == (1, 0, 0) and skeleton.sum() >= 30
    if side % 2 == 0:
        assert not peer(bar).any()


@pytest.mark.parametrize("width", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_bar_of_any_width_becomes_the_line_in_its_middle(width, ndim):
    bar = np.zeros((width + 4,) * (ndim - 1) + (60,), bool)
    bar[(slice(2, 2 + width),) * (ndim - 1)] = True
    across = np.argwhere(skeletonize(bar)[..., width:-width])
    assert len(across) == 60 - 2 * width
    assert np.abs(across[:, :-1] - (1.5 + width / 2)).max() <= 0.5


def test_a_slanting_line_stays_within_a_pixel_of_its_axis():
    y, x = np.mgrid[:120, :120]
    for slope in (0.2, 0.5, 1.0, 1.7):
        away = (y - 10 - slope * x) / np.hypot(1, slope)
        skeleton = skeletonize((np.abs(away) < 6.3) & (x > 5) & (y < 115))
        middle = skeleton & (x > 20) & (y < 95)
        assert middle.sum() > 35 and np.abs(away[middle]).max() <= 1.3


def test_skeleton_of_a_hollow_box_keeps_its_cavity():
    box = np.pad(np.pad(np.zeros((3, 3, 3), bool), 2, constant_values=True), 1)
    assert betti_numbers(skeletonize(box)) == (1, 0, 1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_empty_mask_and_single_pixel_are_their_own_skeleton(ndim):
    assert not skeletonize(np.zeros((4,) * ndim)).any()
    assert skeletonize(np.ones((1,) * ndim)).all()
    row = np.ones((1,) * (ndim - 1) + (9,), bool)
    assert np.array_equal(skeletonize(row), row)


@BOTH
def test_a_mask_without_background_is_thinned_exactly(connectivity):
    for shape in ((64, 64), (63, 65), (1, 130), (17, 16, 64), (3, 1, 5), (62, 2, 3)):
        assert_exact(np.ones(shape, bool), connectivity)


def test_skeletonize_does_not_modify_its_input():
    for image in (np.ones((9, 9), bool), np.ones((5, 9, 9), np.uint8)):
        skeletonize(image)
        assert image.all()


REAL = {
    "chase_db1": lambda image: image > 127,
    "isbi12": lambda image: image == 0,
    "topomortar": lambda image: image > 127,
    "dsb2018": lambda image: image > 127,
    "axon_sem": lambda image: image > 0,
    "sunnybrook_lv": lambda image: image > 0,
    "msd_hippocampus": lambda image: image > 0,
}


@pytest.mark.parametrize("folder", REAL)
def test_real_masks_are_thinned_exactly_with_no_more_ends_than_by_scikit_image(folder):
    ours, theirs = 0, 0
    for number, (_, labels, _) in enumerate(shared_masks(folder, {"mask"})):
        if number % 6 == 0:
            image = np.ascontiguousarray(REAL[folder](labels))
            assert_exact(image)
            ours += tips(skeletonize(image)).sum()
            theirs += tips(peer(image) > 0).sum()
    assert 0 < ours <= 1.2 * theirs


def test_a_vessel_mask_shifted_by_a_column_keeps_its_skeleton_and_its_report():
    image = next(shared_masks("chase_db1", {"mask"}))[1] > 127
    moved = np.pad(image, ((0, 0), (1, 0)))
    assert np.array_equal(skeletonize(moved)[:, 1:], skeletonize(image))
    one, other = report(image), report(moved)
    for name in ("end_points", "branch_points", "branches", "spurs", "skeleton_length"):
        assert one[name] == other[name]


@pytest.mark.parametrize("folder", ["chase_db1", "isbi12"])
def test_centreline_dice_is_that_of_scikit_image_within_two_hundredths(folder):
    for number, (_, image, _) in enumerate(shared_masks(folder, {"mask"})):
        if number % 8 == 0:
            reference = REAL[folder](image)
            noise = ndimage.gaussian_filter(np.random.default_rng(number).standard_normal(image.shape), 3)
            prediction = reference & (noise < 1.5 * noise.std()) | (noise > 2.5 * noise.std())
            lines = [peer(each) for each in (prediction, reference)]
            precision = (lines[0] & reference).sum() / lines[0].sum()
            sensitivity = (lines[1] & prediction).sum() / lines[1].sum()
            published = 2 * precision * sensitivity / (precision + sensitivity)
            assert centreline_dice(prediction, reference) == pytest.approx(published, abs=0.02)


def zhang_suen_by_definition(image):
    """The rule of 1984, a pixel at a time: P2 to P9 are the neighbours clockwise from above."""
    ring = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    image = np.pad(image, 1)
    while True:
        before = image.sum()
        for first in (True, False):
            gone = []
            for y, x in np.argwhere(image):
                near = [bool(image[y + dy, x + dx]) for dy, dx in ring]
                p2, p4, p6, p8 = near[::2]
                rises = sum(not here and after for here, after in zip(near, [*near[1:], p2], strict=True))
                corners = not (p2 and p4 and p6) and not (p4 and p6 and p8)
                others = not (p2 and p4 and p8) and not (p2 and p6 and p8)
                if 2 <= sum(near) <= 6 and rises == 1 and (corners if first else others):
                    gone.append((y, x))
            for place in gone:
                image[place] = False
        if image.sum() == before:
            return image[1:-1, 1:-1]


def test_zhang_and_suens_thinning_equals_its_published_rule():
    for image in random_masks(60, seed=9, longest=(24, 1), ndims=(2,)):
        assert np.array_equal(zhang_suen(image), zhang_suen_by_definition(image))
    assert not zhang_suen(np.pad(np.ones((2, 2), bool), 1)).any()  # its known loss
    with pytest.raises(ValueError, match="that of a plane; this mask has 3 axes"):
        zhang_suen(np.ones((3, 3, 3)))


CROSS = mask("""
    ...#...
    ...#...
    ...#...
    #######
    ...#...
    ...#... """)


def test_the_graph_of_a_cross_has_one_junction_and_four_ends():
    graph = skeleton_graph(skeletonize(CROSS))
    assert (graph.branch_points, graph.end_points, len(graph.branches)) == (1, 4, 4)


def test_length_is_measured_in_the_unit_of_the_spacing():
    graph = skeleton_graph(mask("#####"), spacing=(9.0, 0.5))
    assert graph.length == pytest.approx(2.0) and graph.end_points == 2
    diagonal = skeleton_graph(np.eye(5, dtype=bool), spacing=(3.0, 4.0))
    assert diagonal.length == pytest.approx(20.0)


def test_a_closed_curve_is_one_branch_without_nodes():
    ring = mask("""
        .##.
        #..#
        .##. """)
    graph = skeleton_graph(ring)
    assert graph.nodes == () and len(graph.branches) == 1
    assert graph.length == pytest.approx(2 + 4 * np.sqrt(2))


def test_every_skeleton_pixel_belongs_to_a_node_or_a_branch():
    for image in random_masks(80, seed=2, longest=(30, 12)):
        skeleton = skeletonize(image)
        graph = skeleton_graph(skeleton)
        seen = np.zeros(image.shape, bool)
        for part in (*graph.nodes, *graph.branches):
            seen[tuple(part.pixels.T)] = True
        assert np.array_equal(seen, skeleton)


def test_branch_steps_are_neighbours_and_sum_to_its_length():
    for image in random_masks(30, seed=3, longest=(30, 12)):
        for branch in skeleton_graph(skeletonize(image)).branches:
            steps = np.diff(branch.pixels, axis=0)
            assert (np.abs(steps).max(1) == 1).all()
            assert branch.length == pytest.approx(np.sqrt((steps**2).sum(1)).sum())


def test_calibre_is_the_distance_to_the_background_along_the_branch():
    bar = np.zeros((11, 60), bool)
    bar[3:8] = True
    graph = skeleton_graph(skeletonize(bar), mask=bar, spacing=(0.5, 0.5))
    longest = max(graph.branches, key=lambda branch: branch.length)
    assert 1.3 <= longest.radius <= 1.5  # half of 5 pixels of 0.5, give or take half a pixel


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_totals_equal_those_of_the_graph(connectivity):
    for seed, image in enumerate(random_masks(120, seed=5, longest=(30, 9))):
        spacing = np.random.default_rng(seed).uniform(0.3, 3, image.ndim)
        skeleton = skeletonize(image, connectivity=connectivity)
        graph, totals = (
            skeleton_graph(skeleton, spacing=spacing, connectivity=connectivity),
            skeleton_totals(skeleton, image, spacing=spacing, connectivity=connectivity),
        )
        assert (totals.branches, totals.branch_points, totals.end_points) == (
            len(graph.branches),
            graph.branch_points,
            graph.end_points,
        )
        assert totals.length == pytest.approx(graph.length, rel=1e-12)
        assert totals.length_px == pytest.approx(skeleton_graph(skeleton, connectivity=connectivity).length, rel=1e-12)


def test_spur_count_equals_the_graph_and_distance_map():
    found = 0
    for seed, noise in enumerate(random_masks(150, seed=6, longest=(40, 9))):
        image = ndimage.binary_closing(np.pad(noise, 2)).astype(bool)
        spacing = np.random.default_rng(seed).uniform(0.5, 2, image.ndim)
        skeleton = skeletonize(image)
        totals = skeleton_totals(skeleton, image, spacing=spacing)
        assert totals.spurs == spurs_by_definition(skeleton, image, spacing)
        found += totals.spurs
    assert found > 40


def spurs_by_definition(skeleton, image, spacing):
    """Side branches whose length is at most twice the distance from the junction pixel they end at to the
    background.
    """
    inside = ndimage.distance_transform_edt(np.pad(image, 1), sampling=spacing)[(slice(1, -1),) * image.ndim]
    graph, spurs = skeleton_graph(skeleton, spacing=spacing), 0
    for branch in graph.branches:
        nodes = [graph.nodes[k] for k in branch.nodes if k >= 0]
        free = [len(node.pixels) == 1 and node.degree == 1 for node in nodes]
        if sum(free) == 1:
            foot = branch.pixels[0] if free[nodes.index(graph.nodes[branch.nodes[1]])] else branch.pixels[-1]
            spurs += branch.length <= 2 * inside[tuple(foot)] + 1e-9
    return spurs


def test_bump_on_a_bar_is_a_spur_but_a_long_arm_is_not():
    bar = np.zeros((40, 60), bool)
    bar[28:35, 3:57] = True
    assert (
        skeleton_totals(skeletonize(bar | bump(bar, 25)), bar | bump(bar, 25)).spurs
        == skeleton_totals(skeletonize(bar), bar).spurs + 1
    )
    assert (
        skeleton_totals(skeletonize(bar | bump(bar, 3)), bar | bump(bar, 3)).spurs
        == skeleton_totals(skeletonize(bar), bar).spurs
    )


def bump(bar, top):
    """A column of pixels that rises from the bar to the row `top`."""
    column = np.zeros_like(bar)
    column[top:30, 30] = True
    return column


def test_a_skeleton_of_another_shape_than_its_mask_is_refused():
    with pytest.raises(ValueError, match="Skeleton and mask differ in shape"):
        skeleton_totals(np.ones((2, 3)), np.ones((3, 2)))
