"""Skeletons keep topology, are thin, and give correct graphs."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize as peer

from tests.topology.masks import mask, random_masks, shared_masks
from topology.centred import centred_skeleton
from topology.components import betti_numbers
from topology.graph import skeleton_graph, skeleton_totals
from topology.simple import simple_points
from topology.skeleton import skeletonize
from topology.soft_thinning import continuous_skeleton


def end_points(image, connectivity="closed"):
    """Foreground pixels with exactly one foreground neighbour, straight from the definition."""
    near = ndimage.generate_binary_structure(image.ndim, image.ndim if connectivity == "closed" else 1).astype(int)
    return image & (ndimage.convolve(image.astype(int), near, mode="constant") == 2)


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
    ("thin", "connectivity"),
    [
        (skeletonize, "closed"),
        (skeletonize, "open"),
        (centred_skeleton, "closed"),
        (centred_skeleton, "open"),
        (of_ones_and_zeros, "closed"),
    ],
)
def test_all_images_of_3x4_are_thinned_exactly_by_every_thinner(thin, connectivity):
    for code in range(4096):
        assert_exact((code >> np.arange(12) & 1).astype(bool).reshape(3, 4), connectivity, thin)


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_random_masks_are_thinned_exactly(connectivity):
    for image in random_masks(150, seed=1, longest=(40, 14)):
        assert_exact(image, connectivity)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6])
def test_bar_of_even_width_keeps_its_component_unlike_scikit_image(side):
    bar = np.zeros((side + 2, side + 2, 40), bool)
    bar[1:-1, 1:-1] = True
    skeleton = skeletonize(bar)
    assert betti_numbers(skeleton) == (1, 0, 0) and skeleton.sum() >= 30
    if side % 2 == 0:
        assert not peer(bar).any()


def test_a_solid_ball_of_even_width_does_not_vanish():
    grid = np.indices((16, 16, 16)) - 7.5
    assert skeletonize((grid**2).sum(0) < 50).any()


def test_a_thick_line_becomes_one_pixel_wide_everywhere():
    line = np.zeros((7, 30), bool)
    line[2:5] = True
    assert (skeletonize(line)[:, 3:-3].sum(0) == 1).all()


def test_skeleton_of_a_hollow_box_keeps_its_cavity():
    box = np.pad(np.pad(np.zeros((3, 3, 3), bool), 2, constant_values=True), 1)
    assert betti_numbers(skeletonize(box)) == (1, 0, 1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_empty_mask_and_single_pixel_are_their_own_skeleton(ndim):
    assert not skeletonize(np.zeros((4,) * ndim)).any()
    assert skeletonize(np.ones((1,) * ndim)).all()
    row = np.ones((1,) * (ndim - 1) + (9,), bool)
    assert np.array_equal(skeletonize(row), row)


def test_skeletonize_does_not_modify_its_input():
    image = np.ones((9, 9), bool)
    skeletonize(image)
    assert image.all()


@pytest.mark.parametrize("folder", ["chase_db1", "isbi12"])
def test_real_vessels_and_membranes_are_thinned_exactly(folder):
    for number, (_, image, _) in enumerate(shared_masks(folder, {"mask"})):
        if number % 6 == 0:
            assert_exact(image == 0 if folder == "isbi12" else image > 127)


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
    for seed, drawn in enumerate(random_masks(60, seed=6, longest=(40, 9))):
        image = ndimage.binary_closing(np.pad(drawn, 2)).astype(bool)
        spacing = np.random.default_rng(seed).uniform(0.5, 2, image.ndim)
        skeleton = skeletonize(image)
        totals = skeleton_totals(skeleton, image, spacing=spacing)
        assert totals.spurs == spurs_by_definition(skeleton, image, spacing)
        found += totals.spurs
    assert found > 50


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
        skeleton_totals(skeletonize(bar | bump(bar, 27)), bar | bump(bar, 27)).spurs
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
