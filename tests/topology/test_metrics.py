"""Metrics against scikit-image and SciPy, including degenerate cases."""

from itertools import product

import gudhi
import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import adapted_rand_error as peer_rand, variation_of_information as peer_voi

from tests.topology.masks import mask, random_masks
from topology.components import betti_numbers
from topology.distance import distance_inside, distance_to
from topology.metrics import (
    SPECS,
    MetricSpec,
    Shared,
    betti_matching,
    measure,
    report,
    shared_features,
    vesuvius_score,
)
from topology.partitions import adapted_rand, contingency, variation_of_information

RING = mask("""
    .......
    .#####.
    .#...#.
    .#####.
    ....... """)

BROKEN = mask("""
    .......
    .#####.
    .#...#.
    .##.##.
    ....... """)


def test_mask_compared_with_itself_has_perfect_metrics():
    for image in random_masks(20, seed=1):
        values = measure(image, image)
        shares = ("dice", "iou", "cldice", "adapted_rand_precision", "adapted_rand_recall", "surface_dice")
        assert all(values[key] == 1 for key in values if key in shares or key.startswith("topo_f1"))
        wrong = [key for key in values if key not in (*shares, "betti_matched") and not key.startswith("topo_f1")]
        assert len(wrong) > 12 and not any(values[key] for key in wrong)


def test_a_ring_broken_by_one_pixel_costs_one_loop():
    values = measure(BROKEN, RING)
    assert values["beta1_error"] == 1 and values["beta0_error"] == 0 and values["euler_error"] == 1
    assert values["voi_merge"] > 0 and values["adapted_rand_error"] > 0 and values["dice"] == pytest.approx(22 / 23)


def test_swapping_the_two_masks_swaps_splits_and_merges():
    there, back = measure(BROKEN, RING), measure(RING, BROKEN)
    assert there["voi_merge"] == pytest.approx(back["voi_split"])
    assert all(
        there[key] == pytest.approx(back[key]) for key in ("dice", "iou", "cldice", "hd95", "voi", "beta1_error")
    )


def test_two_empty_masks_agree_and_one_empty_mask_scores_worst():
    empty, one = np.zeros((4, 5)), np.zeros((4, 5))
    one[1, 1] = 1
    values = measure(empty, empty)
    assert (values["dice"], values["cldice"], values["hd95"]) == (1, 1, 0)
    values = measure(empty, one)
    assert (values["dice"], values["cldice"], values["hd95"]) == (0, 0, 5.0)


def test_ignored_pixels_change_nothing():
    noisy = BROKEN.copy()
    noisy[0] = True
    ignore = np.zeros_like(RING)
    ignore[0] = True
    clean = measure(BROKEN, RING, ignore=ignore)
    assert measure(noisy, RING, ignore=ignore) == clean
    assert clean["dice"] == measure(BROKEN, RING)["dice"]


def test_a_probability_map_is_cut_at_the_threshold_of_the_spec():
    soft = RING * 0.8
    assert measure(soft, RING)["dice"] == 1
    assert measure(soft, RING, spec=MetricSpec(threshold=0.9))["dice"] == 0


def test_partition_metrics_agree_with_scikit_image():
    random = np.random.default_rng(2)
    for size in (5, 40):
        first, second = random.integers(0, size, (2, 30, 40)).astype(np.int32)
        assert variation_of_information(first, second) == pytest.approx(tuple(peer_voi(first, second)))
        assert variation_of_information(first, second, ignore_reference=(0, 3)) == pytest.approx(
            tuple(peer_voi(first, second, ignore_labels=(0, 3)))
        )
        error, of_reference, of_prediction = peer_rand(first, second)
        assert adapted_rand(first, second).error == pytest.approx(error)
        # scikit-image names the two the other way round.
        assert adapted_rand(first, second) == pytest.approx((error, of_prediction, of_reference))


def test_merging_everything_costs_precision_and_splitting_everything_recall():
    rows = np.repeat(np.arange(1, 5), 10).reshape(4, 10)
    merged = adapted_rand(rows, np.ones_like(rows))
    assert merged.recall == 1 and merged.precision == pytest.approx(4 * 10 * 9 / (40 * 39))
    split = adapted_rand(rows, np.arange(40).reshape(4, 10))
    assert split == (1, 1, 0)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda labels: labels.astype(np.int64) * 2**32,
        lambda labels: -labels,
        lambda labels: labels.astype(np.uint64) + np.uint64(2**63),
        lambda labels: labels.astype(np.uint8),
        lambda labels: np.asfortranarray(labels.astype(">i8") - 2**60),
        lambda labels: labels.astype(np.int64) + 2**53 + 1,
    ],
)
def test_names_of_labels_change_no_partition_metric(renamed):
    first, second = np.random.default_rng(4).integers(0, 9, (2, 20, 30))
    for one, other in ((renamed(first), second), (first, renamed(second)), (renamed(first), renamed(second))):
        assert variation_of_information(one, other) == pytest.approx(variation_of_information(first, second))
        found = contingency(one, other)
        pairs = sorted(zip(*(part.tolist() for part in found), strict=True))
        counted = {}
        for pair in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
            counted[pair] = counted.get(pair, 0) + 1
        assert pairs == sorted((*pair, count) for pair, count in counted.items())
    assert variation_of_information(np.array([0, 2**32]), np.array([1, 2])) == (0, 0)


def test_ignored_labels_of_either_side_leave_out_their_pixels():
    random = np.random.default_rng(5)
    for high in (0, 2**40):
        first, second = random.integers(0, 6, (2, 20, 30)) * (high + 1)
        for ignored, others in (((0,), ()), ((), (0,)), ((0,), (0,)), ((0, high + 1), (2 * (high + 1), 77))):
            kept = ~np.isin(first, ignored) & ~np.isin(second, others)
            options = {"ignore_reference": ignored, "ignore_prediction": others}
            for compare in (variation_of_information, adapted_rand):
                none = {"ignore_reference": (), "ignore_prediction": ()}
                assert compare(first, second, **options) == pytest.approx(compare(first[kept], second[kept], **none))
                assert compare(first, second, **options) == compare(first, second, keep=kept, **none)


def test_labels_that_are_no_whole_numbers_are_refused():
    whole = np.ones((3, 3), int)
    for wrong in (np.ones((3, 3)), whole.astype(object), whole.astype(complex)):
        with pytest.raises(ValueError, match="whole numbers"):
            variation_of_information(wrong, whole)
        with pytest.raises(ValueError, match="Prediction labels"):
            adapted_rand(whole, wrong)
    with pytest.raises(ValueError, match="shape"):
        adapted_rand(whole, whole, keep=np.ones(3, bool))


def test_partition_metrics_count_many_labels_and_only_the_kept_pixels():
    labels = np.arange(10000, dtype=np.int32).reshape(100, 100)
    assert variation_of_information(labels, np.zeros_like(labels)) == pytest.approx((0, np.log2(10000)))
    assert variation_of_information(labels, labels, keep=np.zeros(labels.shape, bool)) == (0, 0)


def test_distances_agree_with_scipy_in_every_spacing():
    random = np.random.default_rng(3)
    for image in random_masks(80, seed=3):
        spacing = random.random(image.ndim) + 0.2
        if image.any():
            np.testing.assert_allclose(
                distance_to(image, spacing=spacing), ndimage.distance_transform_edt(~image, sampling=spacing)
            )
        padded = ndimage.distance_transform_edt(np.pad(image, 1), sampling=spacing)
        np.testing.assert_allclose(distance_inside(image, spacing=spacing), padded[(slice(1, -1),) * image.ndim])


def test_distance_to_an_empty_mask_is_infinite():
    assert np.isinf(distance_to(np.zeros((3, 3)))).all()


def test_the_report_names_what_it_measured():
    facts = report(RING, spacing=(2.0, 2.0))
    assert (facts["beta0"], facts["beta1"], facts["euler"]) == (1, 1, 0)
    (ring,) = facts["components"]
    assert (ring["size"], ring["box"]) == (12, [[1, 1], [4, 6]]) and ring["roundness"] == facts["roundness"]
    # A ring of 12 pixels is thinned at its four corners to 8: four steps along the axes, four along diagonals.
    assert facts["skeleton_length"] == pytest.approx(2 * (4 + 4 * np.sqrt(2)))
    assert facts["spec_digest"] == MetricSpec().digest()


def test_the_report_of_a_volume_has_three_betti_numbers():
    facts = report(np.ones((3, 3, 3)))
    assert (facts["beta0"], facts["beta1"], facts["beta2"], facts["euler"]) == (1, 0, 0, 1)


def test_foreground_padding_closes_structures_at_the_border():
    stripe = mask("""
        ..#..
        ..#.. """)
    assert report(stripe)["beta1"] == 0
    assert report(stripe, spec=MetricSpec(padding="foreground"))["beta1"] == 2


def test_every_part_of_the_spec_changes_its_digest():
    variants = [
        MetricSpec(),
        MetricSpec(connectivity="open"),
        MetricSpec(threshold=0.4),
        MetricSpec(padding="foreground"),
        MetricSpec(spacing=(1, 2)),
        MetricSpec(version="other"),
        MetricSpec(name="other"),
        MetricSpec(smallest_object=3),
        MetricSpec(smallest_hole=3),
        MetricSpec(loops="background"),
        MetricSpec(voi="mean"),
        MetricSpec(tolerance=2),
        MetricSpec(patch=32),
    ]
    assert len({spec.digest() for spec in variants}) == len(variants)
    assert MetricSpec(spacing=[1, 2]) == MetricSpec(spacing=(1.0, 2.0))


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: measure(RING, RING[:2]), r"\(5, 7\) and \(2, 7\)"),
        (lambda: measure(RING, RING, ignore=RING[:2]), "differ in shape"),
        (lambda: measure(RING, RING, spacing=(1.0,)), "2 positive finite numbers"),
        (lambda: measure(RING, RING, spacing=(1.0, -1.0)), "2 positive finite numbers"),
        (lambda: MetricSpec(padding="mirror"), "mirror"),
        (lambda: MetricSpec(tolerance=-1), "-1 is no distance"),
        (lambda: MetricSpec(patch=0), "side 0"),
        (lambda: MetricSpec(connectivity="8/8"), "8/8"),
        (lambda: report(np.full((2, 2), np.nan)), "NaN"),
    ],
)
def test_invalid_metric_input_is_refused_with_a_reason(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_betti_matching_counts_features_without_a_partner_in_the_same_place():
    moved = np.roll(np.pad(RING, ((0, 0), (0, 8))), 8, axis=1)
    values = measure(moved, np.pad(RING, ((0, 0), (0, 8))))
    assert values["beta0_error"] == values["beta1_error"] == 0
    assert (values["betti_matching_error"], values["betti_spurious"], values["betti_missing"]) == (2, 1, 1)


def test_betti_matching_of_empty_masks_counts_only_real_features():
    empty = np.zeros_like(RING)
    assert measure(empty, empty)["betti_matched"] == 0
    values = measure(empty, RING)
    assert (values["betti_missing"], values["betti_spurious"], values["betti_matched"]) == (2, 0, 0)
    assert measure(RING, empty)["betti_spurious"] == 2


def test_shpm_counts_drop_small_objects_and_include_background_components():
    reference = np.zeros((40, 40), bool)
    reference[5:35, 5:35] = True
    reference[15:25, 15:25] = False
    prediction = reference.copy()
    prediction[0:3, 0:3] = True  # 9 pixels: no object
    prediction[8, 8] = False  # 1 pixel: no hole
    spec = SPECS["shpm2023"]
    values = measure(prediction, reference, spec=spec)
    assert values["beta0_error"] == values["beta1_error"] == 0
    exact = measure(prediction, reference)
    assert exact["beta0_error"] == exact["beta1_error"] == 1
    assert values["voi"] == pytest.approx(exact["voi"] / 2)
    filled = reference.copy()
    filled[15:25, 15:25] = True
    assert measure(filled, reference, spec=spec)["beta1_error"] == 1


def test_a_report_lists_the_largest_components_and_counts_all():
    dots = np.zeros((9, 90))
    for k in range(9):
        dots[: k + 1, 10 * k] = 1
    whole, short = report(dots), report(dots, most_components=2)
    assert [each["size"] for each in whole["components"]] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert short == whole | {"components": whole["components"][:2]}
    assert short["beta0"] == 9


def components_in_common(first, second):
    """(in both, in the first alone, in the second alone) of the components, from the definition: a component of the
    union that holds some of either mask matches its oldest two; the two components that never die match each other.
    """
    labels = [ndimage.label(image, np.ones((3,) * image.ndim)) for image in (first, second, first | second)]
    whole = labels[2][0].ravel()
    both = set(whole[first.ravel() > 0].tolist()) & set(whole[second.ravel() > 0].tolist())
    eldest = {int(whole[np.argmax(image)]) for image in (first, second) if image.any()}
    both = len(both - eldest) + (first.any() and second.any())
    return both, labels[0][1] - both, labels[1][1] - both


def test_components_in_common_are_those_that_share_a_component_of_the_union():
    random = np.random.default_rng(8)
    for image in random_masks(60, seed=8):
        other = random.permutation(image.ravel()).reshape(image.shape)
        first, second = image.astype(np.uint8), other.astype(np.uint8)
        shared = shared_features(first, second)
        assert tuple(shared[0]) == components_in_common(first, second)
        values = betti_matching(shared)
        assert values["betti_matching_error"] == sum(each.spurious + each.missing for each in shared)
        assert values["betti_matched"] + values["betti_missing"] == sum(betti_numbers(second))
        assert values["betti_matched"] + values["betti_spurious"] == sum(betti_numbers(first))


def test_topological_f1_by_hand():
    assert Shared(0, 0, 0).f1 == 1 and Shared(2, 0, 0).f1 == 1 and Shared(1, 1, 2).f1 == 2 / 5
    assert Shared(0, 2, 0).f1 == 0.2 and Shared(0, 0, 3).f1 == 0
    values = measure(BROKEN, RING)
    assert (values["topo_f1_0"], values["topo_f1_1"]) == (1, 0)
    assert values["topo_f1"] == pytest.approx(0.34 / 0.67)
    filled = measure(RING.any(0) * RING.any(1)[:, None], RING)
    assert (filled["topo_f1_0"], filled["topo_f1_1"]) == (1, 0)
    dot = np.zeros_like(RING)
    assert measure(dot, dot)["topo_f1"] == 1
    # No loop in either mask: components alone count.
    assert measure(BROKEN, BROKEN)["topo_f1"] == 1 and measure(dot, BROKEN)["topo_f1"] == 0


def test_patchwise_betti_errors_agree_with_gudhi_window_by_window():
    random = np.random.default_rng(9)
    for image in random_masks(25, seed=9, longest=(20, 9)):
        other = random.permutation(image.ravel()).reshape(image.shape)
        spec = MetricSpec(patch=int(random.integers(1, 8)))
        values, errors = measure(image, other, spec=spec), []
        for start in product(*(range(0, side, spec.patch) for side in image.shape)):
            window = tuple(slice(k, k + spec.patch) for k in start)
            counts = []
            for each in (image, other):
                cells = gudhi.CubicalComplex(top_dimensional_cells=1.0 - each[window])
                cells.compute_persistence()
                numbers = cells.persistent_betti_numbers(0.5, 0.5)[: image.ndim] if each[window].any() else []
                counts.append(numbers + [0] * (image.ndim - len(numbers)))
            errors.append(np.abs(np.subtract(*counts)))
        expected = np.mean(errors, axis=0)
        assert [values[f"patch_beta{k}_error"] for k in range(image.ndim)] == pytest.approx(expected.tolist())


def test_a_ring_in_the_wrong_patch_counts_twice_though_the_totals_agree():
    image = np.pad(RING, ((0, 3), (0, 9)))
    values = measure(np.roll(image, 8, axis=1), image, spec=MetricSpec(patch=8))
    assert values["beta0_error"] == values["beta1_error"] == 0
    assert values["patch_beta0_error"] == values["patch_beta1_error"] == 1


def test_the_vesuvius_score_is_the_weighted_sum_of_its_parts():
    """Against the published formula with the components of SciPy, the VOI of scikit-image and the surfaces of SciPy."""
    random = np.random.default_rng(10)
    planes = np.zeros((14, 16, 18), bool)
    planes[3], planes[8], planes[12] = True, True, True
    for holes in (0, 40, 400):
        first, second = planes.copy(), planes.copy()
        first.ravel()[random.integers(0, planes.size, holes)] ^= True
        second[8, 5:] = False
        ignore = np.zeros_like(planes)
        ignore[:, :, 15:] = True
        one, other = first & ~ignore, second & ~ignore
        union = one | other
        labels = [ndimage.label(image, np.ones((3, 3, 3)))[0][union] for image in (other, one)]
        voi = sum(peer_voi(*labels))
        edges = [image & ~ndimage.binary_erosion(image) for image in (one, other)]
        near = [
            np.count_nonzero(ndimage.distance_transform_edt(~there)[here] <= 2) for here, there in (edges, edges[::-1])
        ]
        score = vesuvius_score(first, second, ignore=ignore)
        assert score.voi_score == pytest.approx(1 / (1 + 0.3 * voi))
        assert score.surface_dice == pytest.approx(sum(near) / sum(edge.sum() for edge in edges))
        values = measure(first, second, ignore=ignore, spec=MetricSpec(tolerance=2))
        assert (score.topo_f1, score.surface_dice) == (values["topo_f1"], values["surface_dice"])
        assert score.score == pytest.approx(0.3 * score.topo_f1 + 0.35 * score.surface_dice + 0.35 * score.voi_score)
    assert vesuvius_score(planes, planes) == pytest.approx((1, 1, 1, 1))
    empty = np.zeros_like(planes)
    assert vesuvius_score(empty, empty) == pytest.approx((1, 1, 1, 1))
    assert vesuvius_score(empty, planes).score == pytest.approx(0.35 / (1 + 0.3 * np.log2(3)))


def test_rand_precision_and_recall_are_measured_with_the_error():
    values = measure(BROKEN, RING)
    assert values["adapted_rand_precision"] < 1 == values["adapted_rand_recall"]
    harmonic = 2 / (1 / values["adapted_rand_precision"] + 1 / values["adapted_rand_recall"])
    assert values["adapted_rand_error"] == pytest.approx(1 - harmonic)
