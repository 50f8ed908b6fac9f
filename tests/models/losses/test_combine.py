"""The sum of losses that a training minimises: schedules, views, balance, and what each term pulls at."""

import math

import pytest
import torch

from models.errors import InvalidInput, NotANumber
from models.losses import LOSSES, PIXEL_LOSSES, REFERENCE_FREE, usual
from models.losses.combine import Objective, Schedule, window_for
from models.losses.neighbours import worst_neighbour
from models.losses.overlap import cross_entropy, dice
from models.networks import build
from tests.models.losses.every_loss import KINDS, loss_of, noisy_tube, term_of

BASE = [{"name": "cross_entropy"}, {"name": "dice"}]


def gradient_of(terms, logits, target, penalty=None, **context):
    """Gradient of the batch mean at the logits, and the parts."""
    leaf = logits.clone().requires_grad_()
    total, parts = Objective({"terms": terms, "neighbour_penalty": penalty})(leaf, target, step=0, **context)
    total.mean().backward()
    return leaf.grad, parts


@pytest.mark.parametrize("mode", ["add", "replace"])
def test_objective_sums_terms_on_plain_and_penalised_logits(mode):
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 1, 8, 8, generator=generator), torch.randint(0, 2, (2, 8, 8), generator=generator)
    terms = [{"name": "cross_entropy"}, {"name": "dice", "weight": 0.5, "smooth": 1.0}]
    total, parts = Objective({"terms": terms, "neighbour_penalty": {"window": 3, "mode": mode}})(logits, target, step=1)
    worst = worst_neighbour(logits, target)
    expected = sum(
        cross_entropy(z, target) + 0.5 * dice(z, target, smooth=1.0)
        for z in ([logits, worst] if mode == "add" else [worst])
    )
    assert torch.allclose(total, expected)
    assert [len(part.values) for part in parts.values()] == [2 if mode == "add" else 1] * 2


def test_a_term_counts_when_its_schedule_says_so():
    schedule = Schedule(weight=2.0, from_step=10, to_step=20, every=3, ramp=0)
    assert [step for step in range(30) if schedule.weight_at(step)] == [10, 13, 16, 19]
    assert [Schedule(weight=1, from_step=4, ramp=4).weight_at(step) for step in (3, 4, 5, 7, 8, 100)] == pytest.approx(
        [0, 0.2, 0.4, 0.8, 1, 1]
    )


@pytest.mark.parametrize("mode", ["add", "replace"])
def test_neighbour_penalty_counts_from_its_first_step_on(mode):
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 1, 8, 8, generator=generator), torch.randint(0, 2, (2, 8, 8), generator=generator)
    plain = Objective({"terms": BASE})
    late = Objective({"terms": BASE, "neighbour_penalty": {"window": 3, "mode": mode, "from_step": 10}})
    always = Objective({"terms": BASE, "neighbour_penalty": {"window": 3, "mode": mode}})
    assert torch.equal(late(logits, target, step=9)[0], plain(logits, target, step=9)[0])
    assert torch.equal(late(logits, target, step=10)[0], always(logits, target, step=10)[0])
    assert not torch.equal(late(logits, target, step=10)[0], plain(logits, target, step=10)[0])


def test_a_term_out_of_season_is_not_computed():
    terms = [{"name": "skeleton_hard_pixels", "from_step": 100}]
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    total, parts = Objective({"terms": terms})(logits, torch.zeros(2, 8, 8, dtype=torch.long), step=1)
    total.sum().backward()  # a step at which nothing counts is a step that changes nothing
    assert parts == {} and not total.any() and not logits.grad.any()


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("penalty", [None, {"window": 3, "mode": "add"}])
def test_objective_gradient_equals_that_of_the_plain_sum(name, penalty):
    logits, target = noisy_tube(*KINDS["softmax in the plane"])
    terms = [{"name": "cross_entropy"}, term_of(name, weight=0.7, balance=None)][name == "cross_entropy" :]
    gradient, _ = gradient_of(terms, logits, target, penalty)
    leaf = logits.clone().requires_grad_()
    views = [leaf] if penalty is None else [leaf, worst_neighbour(leaf, target)]
    expected = sum(t.get("weight", 1) * loss_of(t["name"], view, target).mean() for t in terms for view in views)
    expected.backward()
    torch.testing.assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("weight", [1e-6, 1.0, 1000.0])
@pytest.mark.parametrize("name", sorted(set(LOSSES) - PIXEL_LOSSES))
def test_balanced_term_has_at_most_the_gradient_norm_of_the_pixel_losses(name, weight):
    logits, target = noisy_tube(*KINDS["softmax in the plane"])
    pixels, _ = gradient_of(BASE, logits, target)
    together, parts = gradient_of([*BASE, term_of(name, weight=weight, balance="gradient")], logits, target)
    own = together - pixels
    plain, _ = gradient_of([term_of(name, weight=weight)], logits, target)
    assert own.norm() <= pixels.norm() * (1 + 1e-6) and parts[name].norm == pytest.approx(plain.norm().item())
    assert parts[name].factor == pytest.approx(min(1, (pixels.norm() / plain.norm()).item()))
    torch.testing.assert_close(own, parts[name].factor * plain)  # shorter, in no other direction


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {term["name"] for term in BASE}))
def test_default_term_pulls_a_new_network_at_most_four_times_as_hard_as_cross_entropy_and_dice(name):
    torch.manual_seed(0)
    network = build({"channels": [4, 8]}, channels_in=1, channels_out=3)
    _, target = noisy_tube(3, (32, 40))
    logits = network(torch.randn(2, 1, 32, 40, generator=torch.Generator().manual_seed(1))).detach()
    base, _ = gradient_of(BASE, logits, target)
    together, _ = gradient_of([*BASE, term_of(name)], logits, target)
    assert (together - base).norm() <= 4 * base.norm()


def test_balance_counts_plain_and_penalised_logits_together():
    logits, target = noisy_tube(*KINDS["sigmoid in the plane"])
    penalty = {"window": 3, "mode": "add"}
    pixels, _ = gradient_of(BASE, logits, target, penalty)
    together, _ = gradient_of([*BASE, {"name": "topograph", "weight": 1000.0}], logits, target, penalty)
    assert (together - pixels).norm() == pytest.approx(pixels.norm().item())


def test_balance_without_a_pixel_loss_changes_nothing():
    logits, target = noisy_tube(*KINDS["sigmoid in the plane"])
    balanced, parts = gradient_of([{"name": "topograph", "weight": 9.0, "balance": "gradient"}], logits, target)
    plain, _ = gradient_of([{"name": "topograph", "weight": 9.0, "balance": None}], logits, target)
    assert torch.equal(balanced, plain) and parts["topograph"].factor == 1


def test_feature_and_region_terms_are_balanced_by_default():
    balanced = {name for name in LOSSES if usual(name).balance == "gradient"}
    assert {"topo_loss", "betti_prior", "topology_layer", "betti_matching", "topograph", "dense_matching"} <= balanced
    assert not balanced & PIXEL_LOSSES
    assert Objective({"terms": [{"name": "topograph"}]}).terms[0].balance == "gradient"
    assert Objective({"terms": [{"name": "topograph", "balance": None}]}).terms[0].balance is None
    with pytest.raises(InvalidInput, match="'gradient' or null"):
        Objective({"terms": [{"name": "topograph", "balance": "norm"}]})


def test_parts_hold_gradient_norm_and_cosine_with_the_rest():
    """Two pixels: cross-entropy alone pulls at both, (p - y) / 2 each; a copy of it would pull the same way."""
    target = torch.tensor([[[[1, 0]]]])[0]
    logits = torch.tensor([[[[0.4, 0.3]]]], dtype=torch.float64)
    _, parts = gradient_of([{"name": "cross_entropy"}], logits, target)
    slopes = (logits.sigmoid().flatten() - torch.tensor([1.0, 0.0])) / 2
    assert parts["cross_entropy"].norm == pytest.approx(slopes.norm().item()) and parts["cross_entropy"].cosine == 0
    _, parts = gradient_of([{"name": "cross_entropy"}, {"name": "focal", "gamma": 0.0}], logits, target)
    assert [part.cosine.item() for part in parts.values()] == pytest.approx([1, 1])
    _, parts = gradient_of([{"name": "cross_entropy"}, {"name": "betti_prior"}], logits, target)
    rest = torch.zeros(2, dtype=torch.float64)
    rest[0] = -1  # the prior lifts the highest pixel alone
    expected = (slopes @ rest / slopes.norm()).item()
    assert parts["betti_prior"].cosine == pytest.approx(expected) and expected < 1


def test_infinite_first_logit_leaves_the_total_finite():
    logits, target = torch.zeros(1, 1, 6, 6), torch.zeros(1, 6, 6, dtype=torch.long)
    target[0, 0, 0] = 1
    logits[0, 0, 0, 0] = math.inf
    leaf = logits.requires_grad_()
    total, _ = Objective({"terms": BASE})(leaf, target, step=0)
    total.sum().backward()
    assert total.isfinite().all() and leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_objective_rejects_nan_and_unknown_classes(name):
    logits, target = noisy_tube(*KINDS["softmax in the plane"])
    objective = Objective({"terms": [term_of(name)]})
    broken = logits.clone()
    broken[0, 0, 0, 0] = math.nan
    with pytest.raises(NotANumber):
        objective(broken, target, step=0)
    if name not in REFERENCE_FREE:
        with pytest.raises(ValueError, match="class 9"):
            objective(logits, torch.where(target == 1, 9, target), step=0)


@pytest.mark.parametrize(
    "width, window", [(None, 3), (1.0, 3), (2.9, 3), (4.7, 5), (7.2, 7), (8.0, 9), (9.7, 9), (80.0, 31)]
)
def test_neighbour_window_is_the_odd_number_nearest_to_the_width(width, window):
    assert window_for(width) == window


def test_objective_rejects_a_window_that_only_a_training_can_resolve():
    with pytest.raises(InvalidInput, match="auto"):
        Objective({"terms": BASE, "neighbour_penalty": {"window": "auto"}})
