"""Loss values computed by hand on small images.

One file, though long: a few hand values for each member of the family, side by side.
"""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.optimize import minimize

from models.losses.centrelines import cbdice
from models.losses.distances import boundary, region_wise
from models.losses.grayscale import grayscale_cldice, grayscale_skeleton
from models.losses.hard_pixels import persistence_hard_pixels, skeleton_hard_pixels, threshold_hard_pixels
from models.losses.matching import betti_matching
from models.losses.morse import dmt_loss, ridge_masks
from models.losses.neighbours import neighbour_loss, worst_neighbour
from models.losses.overlap import _worst_weights, cross_entropy, dice, focal, loss_max_pooling, topk, tversky
from models.losses.persistence import betti_prior, landscape_distance, landscapes, topo_loss, topology_layer
from models.losses.region_graph import _numbered, dense_matching, topograph
from models.losses.simple_points import csp_skeleton, csp_skeleton_loss, simplicity, thin_everywhere
from models.losses.skeletons import skeleton_recall, skeletons, soft_cldice, soft_skeleton
from models.losses.transport import sat_loss
from models.losses.warping import homotopy_warping
from models.networks.landscapes import LandscapeLayer
from topology.components import betti_numbers
from topology.regions import shared_cells
from topology.simple import simple_points
from topology.soft_thinning import simple_score


def picture(text):
    """(1, rows, columns) int64 from a drawing with # for foreground."""
    return torch.tensor([[[int(c == "#") for c in row] for row in text.split()]])


def logits_of(prob):
    """(1, 1, ...) logits of a probability map."""
    return torch.logit(torch.as_tensor(prob, dtype=torch.float64)).view(1, 1, *np.shape(prob)[-2:])


def test_cross_entropy_equals_hand_computed_values():
    value = cross_entropy(logits_of([[0.9, 0.2]]), torch.tensor([[[1, 0]]]))
    assert value.item() == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2)
    classes = torch.log(torch.tensor([[[[0.5]], [[0.3]], [[0.2]]]]))
    assert cross_entropy(classes, torch.tensor([[[2]]])).item() == pytest.approx(-math.log(0.2), rel=1e-5)


def test_dice_equals_hand_computed_values():
    value = dice(logits_of([[0.9, 0.2, 0.1]]), torch.tensor([[[1, 1, 0]]]), smooth=0.5)
    assert value.item() == pytest.approx(1 - (2 * 1.1 + 0.5) / (1.2 + 2 + 0.5))


def test_dice_leaves_out_background_of_a_softmax():
    classes = torch.log(torch.tensor([[[[0.6, 0.1]], [[0.4, 0.9]]]], dtype=torch.float64))
    assert dice(classes, torch.tensor([[[0, 1]]]), smooth=0).item() == pytest.approx(1 - 2 * 0.9 / (1.3 + 1))


def test_dice_of_a_class_absent_from_both_is_zero():
    assert dice(torch.full((1, 1, 4, 4), -60.0), torch.zeros(1, 4, 4, dtype=torch.long)).item() < 1e-6


def test_a_line_one_pixel_wide_is_its_own_soft_skeleton():
    line = picture("......... .#######. .........").unsqueeze(1).double()
    assert torch.equal(soft_skeleton(line, 3), line)


def test_a_soft_skeleton_lies_inside_its_object_and_reaches_its_middle():
    bar = picture("......... .#######. .#######. .#######. .........").unsqueeze(1).double()
    skeleton = soft_skeleton(bar, 3)
    assert (skeleton <= bar).all() and skeleton[0, 0, 2, 4] == 1 and skeleton[0, 0, 1, 4] == 0


def test_soft_cldice_equals_hand_computed_values():
    """A line of seven pixels of which the prediction, all 0 or 1, has five: precision 1, sensitivity 5/7."""
    target = picture("......... .#######. .........")
    prediction = picture("......... .#####... .........").unsqueeze(1).double() * 80 - 40
    precision, sensitivity = 1, (5 + 1) / (7 + 1)
    assert soft_cldice(prediction, target).item() == pytest.approx(
        1 - 2 * precision * sensitivity / (precision + sensitivity), abs=1e-9
    )


def test_soft_cldice_needs_as_many_iterations_as_the_tube_is_wide():
    target = torch.zeros(1, 24, 24, dtype=torch.long)
    target[:, 6:19] = 1
    assert (
        soft_skeleton(target[:, None].double(), 1).sum() == 0
        or soft_skeleton(target[:, None].double(), 1).sum() < soft_skeleton(target[:, None].double(), 8).sum()
    )


def test_hard_pixels_are_missed_and_false_skeleton_pixels():
    target = picture(".......... .########. ..........")
    prob = np.full((3, 10), 0.1)
    prob[1, 1:9] = 0.9
    prob[1, 4:6] = 0.2  # the break: two pixels of the target's skeleton are missed
    prob[0, 8] = 0.7  # a false stub that reaches beyond the line
    chosen = skeletons(torch.from_numpy(prob > 0.6).view(1, 1, 3, 10), "zhang_suen") & ~target.bool().unsqueeze(1)
    errors = [0.8**2] * 2 + [0.7**2] * int(chosen.sum())
    assert skeleton_hard_pixels(logits_of(prob), target).item() == pytest.approx(np.mean(errors))


def test_hard_pixels_are_those_of_the_thinning_asked_for():
    """A false square of 2 x 2: Zhang and Suen's thinning loses it, exact thinning keeps the lower two pixels."""
    target = torch.zeros(1, 6, 6, dtype=torch.long)
    prob = np.full((6, 6), 0.1)
    prob[2:4, 2:4] = [[0.7, 0.7], [0.8, 0.9]]
    assert skeleton_hard_pixels(logits_of(prob), target).item() == 0
    exact = skeleton_hard_pixels(logits_of(prob), target, thinning="exact").item()
    assert exact == pytest.approx((0.8**2 + 0.9**2) / 2)


def test_gradient_is_on_hard_pixels_only_and_closes_the_break():
    target = picture(".......... .########. ..........")
    prob = np.full((3, 10), 0.1)
    prob[1, 1:9] = 0.9
    prob[1, 4] = 0.3
    logits = logits_of(prob).requires_grad_()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(skeleton_hard_pixels(logits, target).sum(), logits)
        assert gradient.nonzero().tolist() in ([], [[0, 0, 1, 4]])
        logits = (logits - gradient).detach().requires_grad_()
    assert skeleton_hard_pixels(logits, target).item() == 0 and logits[0, 0, 1, 4].sigmoid() > 0.6


def slow_worst_neighbour(logits, target, window, ignore):
    """The definition, pixel by pixel."""
    answer, reach = logits.clone(), window // 2
    for n, c, i, j in np.ndindex(*logits.shape):
        mine = int(target[n, i, j])
        if mine == ignore:
            continue
        member = (lambda label: label == 1) if logits.shape[1] == 1 else (lambda label, c=c: label == c)
        around = [
            logits[n, c, a, b].item()
            for a in range(max(i - reach, 0), min(i + reach + 1, logits.shape[2]))
            for b in range(max(j - reach, 0), min(j + reach + 1, logits.shape[3]))
            if target[n, a, b] != ignore and member(int(target[n, a, b])) == member(mine)
        ]
        answer[n, c, i, j] = min(around) if member(mine) else max(around)
    return answer


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("window", [3, 5])
def test_worst_neighbour_equals_its_definition_also_at_borders_and_ignored_pixels(channels, window):
    generator = torch.Generator().manual_seed(channels)
    logits = torch.randn(2, channels, 7, 8, generator=generator, dtype=torch.float64)
    target = torch.randint(0, max(channels, 2), (2, 7, 8), generator=generator)
    target[:, 2:4, 5:] = 255
    assert torch.equal(
        worst_neighbour(logits, target, window=window, ignore=255), slow_worst_neighbour(logits, target, window, 255)
    )


def test_the_neighbour_penalty_sends_the_gradient_to_the_break():
    """A line with one weak pixel:
    replaced logits ask for that pixel from both sides, so it learns three times as fast.
    """
    target = picture("####### .......").to(torch.long)
    logits = torch.tensor([[[[4.0, 4, 4, -1, 4, 4, 4], [-4.0] * 7]]], requires_grad=True)
    (plain,) = torch.autograd.grad(cross_entropy(logits, target).sum(), logits)
    (penalised,) = torch.autograd.grad(cross_entropy(worst_neighbour(logits, target), target).sum(), logits)
    assert penalised[0, 0, 0, 3] == pytest.approx(3 * plain[0, 0, 0, 3].item(), rel=1e-5)
    assert penalised[0, 0, 0, 2] == 0


def test_neighbour_penalty_is_finite_in_half_precision():
    logits = torch.full((1, 1, 4, 4), 6e4, dtype=torch.float16)
    assert worst_neighbour(logits, torch.eye(4, dtype=torch.long)[None]).isfinite().all()


def test_tversky_weights_false_negatives_over_false_positives():
    value = tversky(logits_of([[0.9, 0.2, 0.1]]), torch.tensor([[[1, 1, 0]]]), smooth=0)
    assert value.item() == pytest.approx(1 - 1.1 / (1.1 + 0.3 * 0.1 + 0.7 * 0.9))
    half = tversky(logits_of([[0.9, 0.2, 0.1]]), torch.tensor([[[1, 1, 0]]]), alpha=0.5, beta=0.5, smooth=0)
    assert half.item() == pytest.approx(
        dice(logits_of([[0.9, 0.2, 0.1]]), torch.tensor([[[1, 1, 0]]]), smooth=0).item()
    )


def test_focal_equals_hand_computed_values():
    value = focal(logits_of([[0.9, 0.2]]), torch.tensor([[[1, 0]]]), gamma=2, foreground_weight=3)
    assert value.item() == pytest.approx((3 * 0.01 * -math.log(0.9) + 0.04 * -math.log(0.8)) / 2)
    plain = focal(logits_of([[0.9, 0.2]]), torch.tensor([[[1, 0]]]), gamma=0)
    assert plain.item() == pytest.approx(cross_entropy(logits_of([[0.9, 0.2]]), torch.tensor([[[1, 0]]])).item())


def test_loss_max_pooling_weights_equal_a_solver():
    losses, power, fraction = np.array([3.0, 1.0, 1.0, 0.5, 0.1, 0.0]), 1.7, 0.25
    budget = 6 ** (-power / (power / (power - 1)))
    cap = (budget / 2) ** (1 / power)  # a quarter of six pixels is two
    found = minimize(
        lambda w: -(w * losses).sum(),
        np.full(6, 1 / 6),
        bounds=[(0, cap)] * 6,
        method="SLSQP",
        constraints=[{"type": "ineq", "fun": lambda w: budget - (w**power).sum()}],
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    ours = _worst_weights(torch.from_numpy(losses), 6, power, fraction)
    assert np.allclose(ours, found.x, atol=1e-5) and ours[0] == pytest.approx(cap)


def test_loss_max_pooling_of_equal_losses_is_their_mean():
    logits, target = torch.full((1, 1, 5, 5), 0.3), torch.ones(1, 5, 5, dtype=torch.long)
    assert loss_max_pooling(logits, target).item() == pytest.approx(cross_entropy(logits, target).item(), rel=1e-6)


def test_boundary_equals_hand_computed_values_in_pixels_and_millimetres():
    """One row, foreground in the middle: signed distances 2 1 -1 -1 1, halved or doubled by the spacing."""
    target = torch.tensor([[[0, 0, 1, 1, 0]]])
    prob = np.array([[0.5, 0.25, 0.75, 0.5, 0.1]])
    expected = (2 * 0.5 + 0.25 - 0.75 - 0.5 + 0.1) / 5
    assert boundary(logits_of(prob), target).item() == pytest.approx(expected)
    assert boundary(logits_of(prob), target, spacing=[(7.0, 0.5)]).item() == pytest.approx(expected / 2)


def test_region_wise_equals_hand_computed_values():
    target = torch.tensor([[[0, 0, 1]]])
    prob = np.array([[0.5, 0.25, 0.75]])
    foreground = 1.0 * 0.5 + 0.5 * 0.25 - 0.75
    background = -0.5 - 0.75 + 1.0 * 0.25
    assert region_wise(logits_of(prob), target).item() == pytest.approx((foreground + background) / 3)
    assert region_wise(logits_of(prob), target, spacing=[(1.0, 9.0)]).item() == pytest.approx(
        (foreground + background) / 3
    )


@pytest.mark.parametrize("loss", [boundary, region_wise])
def test_spacing_changes_distances(loss):
    target = picture("...... ..##.. ...... ......")
    logits = torch.randn(1, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    assert loss(logits, target).item() != pytest.approx(loss(logits, target, spacing=[(1.0, 4.0)]).item(), rel=1e-3)


def test_neighbour_loss_counts_only_pixels_unlike_their_neighbours():
    logits = torch.full((1, 1, 3, 3), -2.0, dtype=torch.float64)
    assert neighbour_loss(logits, torch.ones(1, 3, 3, dtype=torch.long)).item() == 0
    logits[..., 1, 1] = 2.0
    expected = (1.0 * math.log1p(math.exp(2)) + 8 * (1 / 8) * math.log1p(math.exp(-2))) / 9
    assert neighbour_loss(logits, torch.zeros(1, 3, 3, dtype=torch.long)).item() == pytest.approx(expected)


def test_skeleton_recall_equals_hand_computed_values():
    target = picture("......... .#######. .........")
    prob = np.full((3, 9), 0.25)
    prob[1, 1:8] = [1 - 1e-9, 1 - 1e-9, 0.5, 0.5, 0.5, 1 - 1e-9, 1 - 1e-9]
    assert skeleton_recall(logits_of(prob), target, radius=0).item() == pytest.approx(1 - 5.5 / 7, abs=1e-5)
    assert skeleton_recall(logits_of(prob), target, radius=3).item() == pytest.approx(
        1 - 5.5 / 7, abs=1e-5
    )  # the tube is cut to the target


def test_threshold_hard_pixels_equal_hand_computed_values():
    value = threshold_hard_pixels(logits_of([[0.5, 0.7, 0.7, 0.1]]), torch.tensor([[[1, 0, 1, 0]]]))
    assert value.item() == pytest.approx((0.5**2 + 0.7**2) / 2)


def test_persistence_hard_pixels_are_birth_and_death_of_a_false_hole():
    """A full block with one weak pixel: the hole dies there, and is born at the weakest right pixel around it, which is
    right.
    """
    target = picture("..... .###. .###. .###. .....")
    prob = np.where(target[0].numpy() == 1, 0.9, 0.1)
    prob[2, 2] = 0.3
    assert persistence_hard_pixels(logits_of(prob), target).item() == pytest.approx(0.7**2)
    prob[2, 2] = 0.5
    assert persistence_hard_pixels(logits_of(prob), target).item() == pytest.approx(0.5**2)
    prob[2, 2] = 0.7
    assert persistence_hard_pixels(logits_of(prob), target).item() == 0


TWO_PEAKS = np.array([[0.1, 0.1, 0.1, 0.1, 0.1], [0.9, 0.8, 0.3, 0.6, 0.7], [0.1, 0.1, 0.1, 0.1, 0.1]])
"""Components are born at 0.9 and 0.7 and meet at 0.3."""


RING_OF_WEIGHTS = np.array([[0.9, 0.8, 0.9], [0.8, 0.1, 0.8], [0.9, 0.8, 0.9]])
"""One component, and one loop born at 0.8."""


def test_topo_loss_equals_hand_computed_values():
    """One component asked for: the second one is unwanted. Two asked for: it is to be born at 1 and to die at 0."""
    one, two = picture("..... ##### ....."), picture("..... ##.## .....")
    assert topo_loss(logits_of(TWO_PEAKS), one).item() == pytest.approx(0.4**2 / 2)
    assert topo_loss(logits_of(TWO_PEAKS), two).item() == pytest.approx(0.3**2 + 0.3**2)
    assert topo_loss(logits_of(TWO_PEAKS), torch.ones_like(one)).item() == 0


def test_topo_loss_is_a_mean_over_bars_or_their_published_sum():
    """Two further peaks of height 0.1 over their saddles: three bars, of which the longest is wanted."""
    prob = np.array([[0.9, 0.3, 0.7, 0.3, 0.4, 0.3, 0.4]])
    two = picture("##.####")
    expected = (0.3**2 + 0.3**2) + 2 * 0.1**2 / 2
    assert topo_loss(logits_of(prob), two, reduction="sum").item() == pytest.approx(expected)
    assert topo_loss(logits_of(prob), two).item() == pytest.approx(expected / 3)


def test_betti_prior_equals_hand_computed_values():
    """The component that never dies has its height, 0.9, for a length; the other bar has 0.4."""
    target, highest = torch.zeros(1, 3, 5, dtype=torch.long), 1 - 0.9**2
    total = {"reduction": "sum"}
    assert betti_prior(logits_of(TWO_PEAKS), target, **total).item() == pytest.approx(highest + 0.4**2)
    assert betti_prior(logits_of(TWO_PEAKS), target).item() == pytest.approx((highest + 0.4**2) / 2)
    two = [{"classes": [1], "betti": [2, 0]}]
    assert betti_prior(logits_of(TWO_PEAKS), target, priors=two, **total).item() == pytest.approx(highest + 1 - 0.4**2)
    ring = [{"classes": [1], "betti": [2, 1]}]
    value = betti_prior(logits_of(TWO_PEAKS), target, priors=ring, power=1.0)
    assert value.item() == pytest.approx((0.1 + (1 - 0.4) + 1) / 3)  # two bars, and the loop that is absent
    nothing = [{"classes": [1], "betti": [0, 0]}]
    assert betti_prior(logits_of(TWO_PEAKS), target, priors=nothing, **total).item() == pytest.approx(0.9**2 + 0.4**2)


def test_betti_prior_charges_one_for_an_absent_component():
    empty, target = torch.full((1, 1, 16, 16), -8.0), torch.zeros(1, 16, 16, dtype=torch.long)
    assert betti_prior(empty, target).item() == pytest.approx(1, abs=1e-5)
    assert betti_prior(-empty, target).item() == pytest.approx(0, abs=1e-3)
    three = [{"classes": [1], "betti": [3, 2]}]
    assert betti_prior(empty, target, priors=three, reduction="sum").item() == pytest.approx(5, abs=1e-5)


def test_betti_prior_rejects_background_classes():
    logits = torch.randn(1, 3, 6, 6)
    for classes in ([0], [3], [1, 0]):
        with pytest.raises(ValueError, match="1 to 2"):
            betti_prior(logits, torch.zeros(1, 6, 6), priors=[{"classes": classes, "betti": [1, 0]}])


def test_the_betti_prior_of_two_classes_together_looks_at_their_sum():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 9, 9, generator=generator, dtype=torch.float64)
    together = betti_prior(logits, torch.zeros(1, 9, 9), priors=[{"classes": [1, 2], "betti": [1, 1]}])
    union = logits.softmax(1)[:, 1:].sum(1, keepdim=True)
    assert together.item() == pytest.approx(
        betti_prior(torch.logit(union), torch.zeros(1, 9, 9), priors=[{"classes": [1], "betti": [1, 1]}]).item()
    )


def test_betti_prior_has_gradients_without_labels():
    logits = logits_of(TWO_PEAKS).requires_grad_()
    betti_prior(logits, torch.full((1, 3, 5), 255), ignore=255).sum().backward()
    assert logits.grad.count_nonzero() == 3  # both ends of the bar, and the highest pixel


def test_topology_layer_sums_all_but_the_longest_bars():
    target = torch.zeros(1, 3, 5, dtype=torch.long)
    assert topology_layer(logits_of(TWO_PEAKS), target).item() == pytest.approx(0.4)
    assert topology_layer(logits_of(TWO_PEAKS), target, power=3).item() == pytest.approx(0.4**3)
    assert topology_layer(logits_of(TWO_PEAKS), target, skip=1).item() == 0
    assert topology_layer(logits_of(TWO_PEAKS), target, dimension=1).item() == 0
    three = np.array([[0.9, 0.3, 0.7, 0.2, 0.4]])  # bars of 0.4 and 0.2
    target = torch.zeros(1, 1, 5, dtype=torch.long)
    assert topology_layer(logits_of(three), target).item() == pytest.approx(0.3)
    assert topology_layer(logits_of(three), target, reduction="sum").item() == pytest.approx(0.6)
    assert topology_layer(logits_of(three), target, skip=1).item() == pytest.approx(0.2)


def test_betti_matching_equals_hand_computed_values():
    """The peak at 0.9 lasts and is compared with 1; the one at 0.7 dies at 0.3 and has a partner only if there are two
    in the target.
    """
    one, two = picture("..... ##### ....."), picture("..... ##.## .....")
    total = {"reduction": "sum"}
    assert betti_matching(logits_of(TWO_PEAKS), one, **total).item() == pytest.approx(2 * 0.1**2 + 0.4**2)
    assert betti_matching(logits_of(TWO_PEAKS), one, push_apart=True, **total).item() == pytest.approx(
        2 * 0.1**2 + 2 * (0.7**2 + 0.7**2)
    )
    both = 2 * (0.1**2 + 0.3**2 + 0.3**2)
    assert betti_matching(logits_of(TWO_PEAKS), two, **total).item() == pytest.approx(both)
    assert betti_matching(logits_of(TWO_PEAKS), two).item() == pytest.approx(both / 4)  # two bars in either map
    assert betti_matching(logits_of(TWO_PEAKS), one).item() == pytest.approx((2 * 0.1**2 + 0.4**2) / 3)


def test_betti_matching_compares_locations_not_lengths():
    """Two features of equal length in different places are not the same feature."""
    target = picture("......... .#.....#. .........")
    there, elsewhere = (np.full((3, 9), 0.1) for _ in range(2))
    there[1, [1, 7]] = 0.9
    elsewhere[1, [1, 4]] = 0.9
    right, wrong = (betti_matching(logits_of(prob), target, reduction="sum") for prob in (there, elsewhere))
    assert right < 0.1 < 1 < wrong


def test_betti_matching_of_a_map_with_itself_is_zero():
    target = picture("...... .####. .#..#. .####. ...... .##...")
    assert betti_matching(target.unsqueeze(1).double() * 80 - 40, target).item() < 1e-9


def test_frame_closes_structures_at_the_border():
    """An arc that ends at the border encloses three places together with the frame, and none without it."""
    target, low = picture(".###. .#.#. .#.#."), 1 / (1 + math.exp(4))
    logits = torch.full((1, 1, 3, 5), -4.0, dtype=torch.float64)
    assert betti_matching(logits, target, reduction="sum").item() == pytest.approx(
        2 * (1 - low) ** 2
    )  # one component on either side, of unequal height
    assert betti_matching(logits, target, relative=True, reduction="sum").item() == pytest.approx(
        2 * low**2 + 2
    )  # the frame's own hole has a partner, two have none


def test_the_soft_score_is_above_a_half_exactly_at_the_116_simple_neighbourhoods():
    """All 256 neighbourhoods against the exact rule: a proof, not a sample."""
    windows = (np.arange(512)[:, None] >> np.arange(9) & 1).astype(bool)
    windows = windows[windows[:, 4]]
    exact = np.array([simple_points(window.reshape(3, 3))[1, 1] for window in windows])
    scores = simplicity(torch.from_numpy(windows.T.astype(float))).numpy()
    assert ((scores > 0.5) == exact).all() and exact.sum() == 116


@pytest.mark.parametrize("sides", [(12, 13), (7, 8, 9)])
def test_array_score_equals_kernel_score(sides):
    """The forest by taking faces out one by one, against Prim's; the gate by counts, against the tables."""
    prob = np.random.default_rng(3).random(sides)
    framed = np.pad(prob, 1)
    windows = np.stack(
        [
            framed[tuple(slice(start, start + side) for start, side in zip(step, sides, strict=True))]
            for step in np.ndindex((3,) * len(sides))
        ]
    )
    for sharper in (windows, windows**8, windows > 0.6):  # mixed; mostly background; the binary rule
        ours = simplicity(torch.from_numpy(sharper.astype(float)))
        kernel = simple_score(
            np.asarray(prob if sharper is windows else prob**8 if sharper.dtype == float else prob > 0.6, float)
        )
        assert np.allclose(ours, kernel, atol=1e-12) and kernel.any()


@pytest.mark.parametrize("sides", [(41, 46), (15, 16, 17)])
@pytest.mark.parametrize("seed", range(4))
def test_csp_skeleton_keeps_betti_numbers_at_one_half(sides, seed):
    image = torch.from_numpy(np.random.default_rng(seed).random((1, 1, *sides)))
    skeleton = csp_skeleton(image, 10)
    assert betti_numbers(skeleton[0, 0].numpy() > 0.5) == betti_numbers(image[0, 0].numpy() > 0.5)
    assert (skeleton <= image).all() and skeleton.sum() < image.sum()


@pytest.mark.parametrize("rule", ["exact", "published"])
@pytest.mark.parametrize("sides", [(13, 15), (8, 8), (1, 7), (3, 2), (5, 6, 7), (1, 1, 3), (6, 6, 6)])
def test_thinning_kernel_equals_array_code_and_its_gradient(sides, rule):
    if rule == "published" and len(sides) == 3:
        return  # it is for the plane
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 2, *sides, generator=generator, dtype=torch.float64)
    weight = torch.rand(image.shape, generator=generator, dtype=torch.float64)
    results = []
    for thin in (csp_skeleton, thin_everywhere):
        leaf = image.clone().requires_grad_()
        skeleton = thin(leaf, 4, rule)
        (skeleton * weight).sum().backward()
        results.append((skeleton.detach(), leaf.grad))
    (ours, our_gradient), (slow, slow_gradient) = results
    assert torch.allclose(ours, slow, atol=2e-9) and torch.allclose(our_gradient, slow_gradient, rtol=1e-5, atol=1e-6)


def test_the_csp_loss_of_a_thin_line_and_of_its_half():
    target = picture("......... .#######. .........")
    whole, half = (
        picture(text).unsqueeze(1).double() * 60 - 30
        for text in ("......... .#######. .........", "......... .####.... .........")
    )
    assert csp_skeleton_loss(whole, target).item() == pytest.approx(0, abs=1e-3)
    assert csp_skeleton_loss(half, target).item() == pytest.approx(1 - 2 * (4 / 7) / (1 + 4 / 7), abs=1e-3)


def test_the_csp_loss_of_a_broken_line_in_space():
    target = torch.zeros(1, 5, 5, 12, dtype=torch.long)
    target[:, 2, 2, 2:10] = 1
    logits = torch.where(target.bool(), 30.0, -30.0)[:, None].requires_grad_()
    assert csp_skeleton_loss(logits, target).item() == pytest.approx(0, abs=1e-3)
    broken = logits.detach().clone()
    broken[..., 5:7] = -1.0
    broken.requires_grad_()
    sensitivity = (6 + 2 * torch.sigmoid(torch.tensor(-1.0)).item()) / 8
    loss = csp_skeleton_loss(broken, target)
    assert loss.item() == pytest.approx(
        1 - 2 * sensitivity / (1 + sensitivity), abs=1e-3
    )  # what lies below a half does not count as skeleton
    (gradient,) = torch.autograd.grad(loss.sum(), broken)
    assert (gradient[0, 0, 2, 2, 5:7] < 0).all() and gradient.abs().argmax() // 12 == 2 * 5 + 2


def test_grayscale_cldice_equals_hand_computed_values():
    """A line of seven pixels: five predicted at 0.9, two at 0.2; off the line 0.1, which is below the noise."""
    target = picture("......... .#######. .........")
    prob = np.full((3, 9), 0.1)
    prob[1, 1:8] = [0.9, 0.9, 0.9, 0.2, 0.2, 0.9, 0.9]
    precision, sensitivity = 1, (5 * 0.9 + 2 * 0.2 + 1) / (7 + 1)
    expected = 1 - 2 * precision * sensitivity / (precision + sensitivity)
    assert grayscale_cldice(logits_of(prob), target, noise=0.15).item() == pytest.approx(expected)
    faint = (5 * 0.9 + 1) / (5 * 0.9 + 2 * 0.2 + 1)  # without the two faint pixels in the target
    sensitivity = (5 * 0.9 + 1) / (5 + 1)
    value = grayscale_cldice(logits_of(prob), picture("......... .###..##. ........."), noise=0.15)
    assert value.item() == pytest.approx(1 - 2 * faint * sensitivity / (faint + sensitivity))


def test_grayscale_cldice_charges_a_false_branch_by_its_height():
    """In proportion to its height."""
    target = picture("......... .#######. ......... ......... ......... .........")
    costs = []
    for height in (0.12, 0.2, 0.3, 0.4):
        prob = np.full((6, 9), 0.1)
        prob[1, 1:8] = 0.95
        prob[2:5, 4] = height
        costs.append(grayscale_cldice(logits_of(prob), target).item())
    assert costs == sorted(costs) and costs[-1] > 2 * costs[0]


@pytest.mark.parametrize("sides", [(21, 24), (8, 9, 10)])
def test_grayscale_skeleton_keeps_thresholds_and_has_gradients_at_donors(sides):
    prob = torch.rand(2, 2, *sides, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    skeleton, crests = grayscale_skeleton(prob, noise=0.1)
    assert (skeleton <= prob).all() and 0 < crests.double().mean() < 0.75
    for n, k in np.ndindex(2, 2):
        ours, theirs = (maps.detach()[n, k].numpy() for maps in (skeleton, prob))
        assert all(betti_numbers(ours > level) == betti_numbers(theirs > level) for level in np.linspace(0, 0.99, 12))
    (gradient,) = torch.autograd.grad(skeleton.sum(), prob)
    assert gradient.sum() == (skeleton > 0).sum() and gradient.min() == 0 and (gradient == gradient.round()).all()


def critical(prediction, truth):
    """Number of critical regions, and the drawing of them."""
    masks = [picture(text)[0].numpy().astype(bool) for text in (prediction, truth)]
    regions, _ = _numbered(*masks, "background")
    return int(regions.max()), (regions.reshape(masks[0].shape) > 0).astype(int)


CRITICAL = {
    "nothing is wrong": ("..... .###. .....", "..... .###. .....", 0),
    "a border moved": ("..... .###. .###. .....", "..... .###. ..... .....", 0),
    "a break": ("....... .##.##. .......", "....... .#####. .......", 1),
    "a bridge between two": ("....... .#####. .......", "....... .##.##. .......", 1),
    "an island": ("......# .##.... .......", "....... .##.... .......", 1),
    "a lost component": (".......... .##....... ..........", ".......... .##....##. ..........", 1),
    "a hole in a block": ("..... .###. .#.#. .###. .....", "..... .###. .###. .###. .....", 1),
    "a filled ring": ("..... .###. .###. .###. .....", "..... .###. .#.#. .###. .....", 1),
    "a break along a diagonal": ("#... .#.. .... ...#", "#... .#.. ..#. ...#", 1),
    "a shortened end": ("........ .####... ........", "........ .######. ........", 0),
}


@pytest.mark.parametrize("case", CRITICAL)
def test_topograph_finds_the_regions_on_which_topology_depends(case):
    prediction, truth, count = CRITICAL[case]
    assert critical(prediction, truth)[0] == count


def test_topograph_by_hand_with_a_gradient_on_the_whole_gap():
    target = picture("......... .#######. .........")
    prob = np.full((3, 9), 0.1)
    prob[1, 1:8] = [0.9, 0.9, 0.4, 0.2, 0.3, 0.9, 0.9]
    logits = logits_of(prob).requires_grad_()
    value = topograph(logits, target)
    value.sum().backward()
    assert value.item() == pytest.approx((0.6 + 0.8 + 0.7) / 3)
    assert (
        logits.grad.nonzero().tolist() == [[0, 0, 1, 3], [0, 0, 1, 4], [0, 0, 1, 5]]
        and (logits.grad[0, 0, 1, 3:6] < 0).all()
    )
    assert topograph(logits, target, aggregate="sum").item() == pytest.approx(2.1)
    assert topograph(logits, target, aggregate="max").item() == pytest.approx(0.8)
    assert topograph(logits, target, aggregate="rms").item() == pytest.approx(math.sqrt((0.36 + 0.64 + 0.49) / 3))


def test_an_unknown_aggregate_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="mean, sum, max, rms"):
        topograph(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), aggregate="median")


def test_landscapes_equal_hand_computed_values():
    """One finite bar, born at 0.7, dead at 0.3: a tent with its top, 0.2, at 0.5."""
    first, second = landscapes(torch.from_numpy(TWO_PEAKS).view(1, 1, 3, 5), dimensions=(0,), depth=2, points=11)[
        0, 0, 0
    ]
    both = landscapes(torch.from_numpy(RING_OF_WEIGHTS)[None, None], dimensions=(0, 1), depth=1, points=9)
    turned = landscapes(torch.from_numpy(RING_OF_WEIGHTS)[None, None], dimensions=(1, 0), depth=1, points=9)
    assert both[0, 0, 1].any() and torch.equal(turned, both.flip(2))
    assert torch.equal(
        landscapes(torch.from_numpy(RING_OF_WEIGHTS)[None, None], dimensions=[1], depth=1, points=9), turned[:, :, :1]
    )
    assert first.tolist() == pytest.approx([0, 0, 0, 0, 0.1, 0.2, 0.1, 0, 0, 0, 0], abs=1e-9) and not second.any()


def test_landscape_distance_equals_hand_computed_values():
    one = picture("..... ##### .....")
    expected = (0.1**2 + 0.2**2 + 0.1**2) / (2 * 1 * 11)
    assert landscape_distance(logits_of(TWO_PEAKS), one, depth=1, points=11).item() == pytest.approx(expected)


def test_landscape_layer_gives_differentiable_features():
    layer, maps = LandscapeLayer(2, 5, depth=3, points=8), torch.rand(4, 2, 9, 9, requires_grad=True)
    layer(maps).sum().backward()
    assert layer(maps).shape == (4, 5) and maps.grad.any() and layer.linear.weight.grad.any()


def test_ridges_run_through_the_gap_of_a_break():
    """Three hills in a row; the ridge that joins them is the row between the outermost tops."""
    prob = np.full((5, 9), 0.05)
    prob[2, 1:8] = [0.9, 0.8, 0.3, 0.7, 0.35, 0.6, 0.95]
    expected = np.zeros((5, 9), bool)
    expected[2, 1:8] = True
    assert np.array_equal(ridge_masks(torch.from_numpy(prob)[None, None], 0.1)[0, 0].numpy(), expected)
    target = torch.from_numpy(expected.astype(np.int64))[None]
    assert dmt_loss(logits_of(prob), target).item() == pytest.approx(-np.log(prob[2, 1:8]).mean())


def test_dense_matching_equals_hand_computed_values():
    """A gap at 0.4 0.2 0.4: at the thresholds 0.25 and 0.75 all three or the middle one are missing; nothing else is
    wrong.
    """
    target = picture("......... .#######. .........")
    prob = np.full((3, 9), 0.1)
    prob[1, 1:8] = [0.9, 0.9, 0.4, 0.2, 0.4, 0.9, 0.9]
    logits = logits_of(prob).requires_grad_()
    value = dense_matching(logits, target, levels=2)
    value.sum().backward()
    assert value.item() == pytest.approx((0.8 + (0.6 + 0.8 + 0.6) / 3) / 2)
    gap = logits.grad[0, 0, 1, 3:6] / torch.from_numpy(
        prob[1, 3:6] * (1 - prob[1, 3:6])
    )  # with respect to the probability
    assert gap.tolist() == pytest.approx([-1 / 6, -4 / 6, -1 / 6]) and logits.grad.count_nonzero() == 3


def test_region_losses_are_means_over_wrong_regions_or_published_sums():
    """A break, which is critical, and a shortened end, which is wrong and harmless."""
    target = picture("........... .#########. ...........")
    prob = np.full((3, 11), 0.1)
    prob[1, 1:10] = [0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.9, 0.3, 0.3]
    for loss in (topograph, dense_matching):
        options = {} if loss is topograph else {"levels": 1}
        assert loss(logits_of(prob), target, reduction="sum", **options).item() == pytest.approx(0.8)
        assert loss(logits_of(prob), target, **options).item() == pytest.approx(0.8 / 2)


def test_unknown_reduction_is_rejected_with_the_known_ones():
    for loss in (topo_loss, betti_prior, topology_layer, betti_matching, topograph, dense_matching):
        with pytest.raises(ValueError, match="mean, sum"):
            loss(logits_of(TWO_PEAKS), picture("..... ##.## ....."), reduction="median")


BORDER = {
    "a tube cut short at the border": ("...... ...... ..##.. ..##..", "..##.. ..##.. ..##.. ..##..", (0.0, 1.0)),
    "an arc closed along the border": (".####. .####. .#..#. .####.", ".####. .####. .#..#. .#..#.", (1.0, 0.0)),
    "an island at the border": ("##.... ...... ....## ....##", "...... ...... ....## ....##", (1.0, 1.0)),
    "a thicker bar at the border": ("###... ###... ###...", "##.... ##.... ##....", (0.0, 0.0)),
    "a break away from the border": ("###.### .......", "####### .......", (1.0, 1.0)),
}
"""Prediction, reference, and whether a region is critical when the outside is background, and when it is unknown."""


@pytest.mark.parametrize("case", BORDER)
def test_border_option_decides_the_cost_of_errors_at_the_border(case):
    prediction, reference, costs = BORDER[case]
    logits = picture(prediction).unsqueeze(1).double() * 60 - 30
    for loss in (topograph, dense_matching):
        for border, cost in zip(("background", "unknown"), costs, strict=True):
            value = loss(logits, picture(reference), border=border, reduction="sum").item()
            assert value == pytest.approx(cost, abs=1e-6), (loss.__name__, border)
    with pytest.raises(ValueError, match="background, unknown"):
        topograph(logits, picture(reference), border="open")


def one_to_one(inner, outer, shape):
    """True when each component of the outer mask holds exactly one of the inner."""
    (inside, count), (outside, places) = (ndimage.label(each, shape) for each in (inner, outer))
    pairs = {(outside[at], inside[at]) for at in zip(*np.nonzero(inner), strict=True)}
    return len(pairs) == count == places and len({pair[0] for pair in pairs}) == places


def matters(lacking, region):
    """From the definition: a Betti number changes, or a component of foreground or background has not one successor."""
    whole, full = lacking | region, np.ones((3,) * region.ndim)
    sides = ndimage.generate_binary_structure(region.ndim, 1)
    before, after = (np.pad(~each, 1, constant_values=True) for each in (lacking, whole))
    placed = one_to_one(lacking, whole, full) and one_to_one(after, before, sides)
    pieces = betti_numbers(shared_cells(region, lacking), connectivity="open")[0]
    return betti_numbers(whole) != betti_numbers(lacking) or not placed or pieces != 1


def slow_dense_matching(prob, truth, levels):
    """From the definition: label the wrong pixels, and add each region to the mask that lacks it."""
    total = 0.0
    for level in range(levels):
        mask = prob > (level + 0.5) / levels
        found = []
        for wrong, lacking in ((mask & ~truth, truth), (truth & ~mask, mask)):
            labels, count = ndimage.label(wrong, np.ones((3,) * prob.ndim))
            found += [(labels == k, matters(lacking, labels == k)) for k in range(1, count + 1)]
        assert any(matter for _, matter in found) or betti_numbers(mask) == betti_numbers(truth)
        total += sum(abs(prob - truth)[region].mean() / levels for region, matter in found if matter)
    return total


@pytest.mark.parametrize("sides", [(15, 17), (1, 30), (6, 7, 8)])
@pytest.mark.parametrize("levels", [1, 4, 7])
def test_dense_matching_is_its_definition(sides, levels):
    rng = np.random.default_rng(levels)
    paid = 0
    for smooth in (0, 0.7, 1.2):
        truth = ndimage.gaussian_filter(rng.standard_normal(sides), smooth) > 0
        noise = ndimage.gaussian_filter(rng.standard_normal(sides), smooth)
        prob = np.clip(0.4 * truth + 0.3 + 0.3 * noise / noise.std(), 0.01, 0.99)
        expected = slow_dense_matching(prob, truth, levels)
        value = dense_matching(
            torch.logit(torch.from_numpy(prob))[None, None],
            torch.from_numpy(truth.astype(np.int64))[None],
            levels=levels,
            reduction="sum",
        )
        assert value.item() == pytest.approx(expected, rel=1e-5)
        paid += expected > 0
    assert paid > 1


def row(value, gap, elsewhere):
    """A 5 x 5 map of one bright row with a gap in its middle."""
    prob = np.full((5, 5), elsewhere)
    prob[2], prob[2, 2] = value, gap
    return logits_of(prob)


LINE = picture("..... ..... ##### ..... .....")


def test_topk_is_the_mean_of_the_worst_cross_entropies():
    logits, target = logits_of([[0.9, 0.2, 0.6, 0.7]]), torch.tensor([[[1, 1, 1, 0]]])
    assert topk(logits, target, fraction=0.5).item() == pytest.approx(-(math.log(0.2) + math.log(0.3)) / 2)
    assert topk(logits, target, fraction=0.01).item() == pytest.approx(-math.log(0.2))  # rounded up to one pixel
    assert topk(logits, target, fraction=1.0).item() == pytest.approx(cross_entropy(logits, target).item())
    hidden = torch.tensor([[[1, 255, 1, 0]]])
    assert topk(logits, hidden, fraction=0.4, ignore=255).item() == pytest.approx(-(math.log(0.3) + math.log(0.6)) / 2)


def test_cbdice_equals_hand_computed_values():
    bar = picture("..... ##### ##### ##### .....")
    assert cbdice(row(0.9, 0.4, 0.1), bar, smooth=1e-3).item() - 1 == pytest.approx(-0.8781, abs=1e-4)
    prob = np.where(bar[0].numpy() == 1, 0.9, 0.1)
    assert cbdice(logits_of(prob), bar, smooth=1e-3).item() == pytest.approx(0, abs=1e-9)
    thin = row(0.9, 0.9, 0.1)
    assert cbdice(thin, bar, smooth=1e-3).item() == pytest.approx(0, abs=1e-9)  # relative radii: too thin costs nothing


def test_cbdice_does_not_teach_a_pixel_below_a_half():
    logits = row(0.9, 0.4, 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(cbdice(logits, LINE).sum(), logits)
    assert gradient[0, 0, 2, 2] == 0 and gradient[0, 0, 2, 1] != 0


def test_cbdice_of_a_mask_without_background_is_finite():
    everything = torch.ones(1, 5, 5, dtype=torch.long)
    assert -0.1 < cbdice(row(0.9, 0.2, 0.8), everything).item() < 1  # a little below 0 is possible


def test_sat_loss_equals_hand_computed_values():
    logits = row(0.9, 0.4, 0.1).requires_grad_()
    value = sat_loss(logits, LINE, reduction="sum")
    assert value.item() == pytest.approx(0.05 * math.hypot(0.1, 0.1) + 0.5 / math.sqrt(2))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient[0, 0, 2, 2].item() == pytest.approx(-0.4 * 0.6 / math.sqrt(2), abs=1e-9)
    assert sat_loss(row(0.9, 0.9, 0.1), LINE, reduction="sum").item() == pytest.approx(0.05 * math.hypot(0.1, 0.1))
    assert sat_loss(logits, LINE).item() == pytest.approx(value.item() / 3)  # three bars in both maps


@pytest.mark.parametrize("relative", [False, True])
def test_sat_loss_of_a_perfect_map_is_zero_with_and_without_a_frame(relative):
    target = picture("..... .###. .#.#. .###. .....")
    assert sat_loss(60 * (2.0 * target[None] - 1), target, relative=relative).item() == pytest.approx(0, abs=1e-6)


def test_sat_loss_of_a_feature_far_away_is_more_than_of_one_near_by():
    target = torch.zeros(1, 9, 9, dtype=torch.long)
    target[0, 1, 1] = target[0, 7, 1] = 1
    near, far = (np.full((9, 9), 0.1) for _ in range(2))
    near[1, 1] = far[1, 1] = 0.9
    near[6, 1], far[1, 7] = 0.8, 0.8
    costs = [sat_loss(logits_of(prob), target, reduction="sum").item() for prob in (near, far)]
    assert 0 < costs[0] < costs[1]


def test_homotopy_warping_equals_hand_computed_values():
    assert homotopy_warping(row(0.8, 0.2, 0.2), LINE).item() == pytest.approx(-math.log(0.2))
    classes = torch.log(torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)).view(1, 3, 1, 1).repeat(1, 1, 5, 5)
    classes[..., 1:4, 1:4] = torch.log(torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)).view(3, 1, 1)
    full = torch.ones(1, 5, 5, dtype=torch.long)  # a hole in class 1: background that may shrink, to its last pixel
    assert homotopy_warping(classes, full).item() == pytest.approx(-math.log(0.2))


def test_homotopy_warping_asks_nothing_of_a_line_that_moved():
    moved = picture("..... ..... ..... ##### .....")
    assert homotopy_warping(row(0.8, 0.8, 0.2), moved).item() == 0
