"""Properties shared by all losses, in 2D and 3D, binary and multiclass."""

import pytest
import torch

from models.errors import NotANumber
from models.losses import LOSSES, RULE_LOSSES, hyper_parameters
from models.losses.neighbours import worst_neighbour
from tests.models.losses.every_loss import (
    ALTERNATIVES,
    CASES,
    KINDS,
    WITHOUT_LABELS,
    WITHOUT_REFERENCE,
    cases,
    loss_of,
    noisy_tube,
)

EACH_LOSS = pytest.mark.parametrize("name", sorted(LOSSES))
EVERYWHERE = cases()
LABELLED_ONLY = cases(without=WITHOUT_LABELS)
COMPARING = cases(
    without=WITHOUT_REFERENCE | {"persistence_hard_pixels"}
)  # whose damage is a hole: see test_losses_values


def test_table_lists_every_loss_with_all_options():
    assert {name: set(hyper_parameters(name)) for name in set(LOSSES) - RULE_LOSSES} == {
        name: set(knobs) for name, knobs in ALTERNATIVES.items()
    }


@EVERYWHERE
def test_loss_gives_one_number_per_sample_independent_of_the_batch(name, kind):
    logits, target = noisy_tube(*KINDS[kind], batch=3)
    together = loss_of(name, logits, target)
    alone = [loss_of(name, logits[i : i + 1], target[i : i + 1]) for i in range(3)]
    assert together.shape == (3,) and torch.allclose(together, torch.cat(alone), rtol=1e-9)
    assert len(set(together.tolist())) == 3


@cases(without=RULE_LOSSES)
def test_every_option_changes_the_loss(name, kind):
    logits, target = noisy_tube(*KINDS[kind])
    plain = loss_of(name, logits, target)
    for knob, other in ALTERNATIVES[name].items():
        value = other(logits.ndim - 2) if callable(other) else other
        assert value != hyper_parameters(name)[knob]
        if (name, knob) == ("topograph", "include_background") and logits.shape[1] == 1:
            continue  # a sigmoid has no background channel
        if (name, knob) == ("csp_skeleton_loss", "rule") and logits.ndim == 5:
            continue  # published for the plane only
        if (name, knob) == ("skeleton_hard_pixels", "thinning") and logits.ndim == 5:
            continue  # volumes are always thinned exactly
        if (name, knob) == ("cbdice", "iterations") and logits.ndim == 5:
            continue  # volumes this thin are peeled at once
        assert not torch.allclose(plain, loss_of(name, logits, target, **{knob: value}), rtol=1e-6), knob


@EVERYWHERE
def test_gradients_are_those_of_finite_differences(name, kind):
    logits, target = noisy_tube(*KINDS[kind], batch=1, seed=4)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(name, logits, target).sum(), logits)
    step, picks = 1e-6, torch.randperm(logits.numel(), generator=torch.Generator().manual_seed(0))[:12].tolist()
    picks += gradient.abs().flatten().topk(6).indices.tolist()
    for pick in picks:
        bump = torch.zeros(logits.numel(), dtype=torch.float64)
        bump[pick] = step
        up, down = (loss_of(name, logits.detach() + sign * bump.view_as(logits), target).item() for sign in (1, -1))
        assert gradient.flatten()[pick].item() == pytest.approx((up - down) / (2 * step), abs=1e-6)
    assert gradient.abs().max() > 0


@LABELLED_ONLY
def test_pixels_that_are_not_labelled_have_no_influence(name, kind):
    logits, target = noisy_tube(*KINDS[kind])
    hidden = torch.zeros_like(target, dtype=torch.bool)
    hidden[..., 4:8, :7] = True
    target = torch.where(hidden, 255, target)
    logits.requires_grad_()
    value = loss_of(name, logits, target, ignore=255)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert not gradient[hidden.unsqueeze(1).expand_as(logits)].any() and gradient.any()
    other = torch.where(hidden.unsqueeze(1), -3 * logits + 1, logits)
    assert torch.equal(value, loss_of(name, other, target, ignore=255))


@LABELLED_ONLY
def test_fully_unlabelled_sample_has_zero_loss_and_gradient(name, kind):
    logits, target = noisy_tube(*KINDS[kind])
    logits.requires_grad_()
    value = loss_of(name, logits, torch.full_like(target, 255), ignore=255)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all() and not gradient.any()


@EVERYWHERE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_degenerate_maps_have_finite_losses_in_every_precision(name, kind, dtype):
    channels, sides = KINDS[kind]
    tube = noisy_tube(channels, sides)[1]
    targets = {
        "empty": torch.zeros_like(tube),
        "full": torch.ones_like(tube),
        "tube": tube,
        "one pixel": torch.zeros_like(tube),
    }
    targets["one pixel"][(slice(None), *(side // 2 for side in sides))] = 1
    for target in targets.values():
        for level in (-60000.0, 0.0, 60000.0):
            logits = torch.full((2, channels, *sides), level, dtype=dtype)
            logits[:, -1, ..., : sides[-1] // 2] *= -1
            logits.requires_grad_()
            value = loss_of(name, logits, target)
            value.sum().backward()
            assert value.isfinite().all() and logits.grad.isfinite().all(), (level, target.sum())


@COMPARING
def test_better_prediction_has_lower_loss(name, kind):
    channels, sides = KINDS[kind]
    _, target = noisy_tube(channels, sides)
    truth = (
        target.unsqueeze(1) == (1 if channels == 1 else torch.arange(channels).view(1, -1, *[1] * len(sides)))
    ).double() * 2 - 1
    wrong = torch.zeros_like(target, dtype=torch.bool)
    wrong[..., 4:8] = True  # a piece of the tube is missing and its surroundings are invented
    family = [truth * torch.where(wrong.unsqueeze(1), 6 * (1 - 2 * damage), 6.0) for damage in (0.0, 0.35, 0.6, 1.0)]
    costs = [loss_of(name, logits, target).mean().item() for logits in family]
    assert costs == sorted(costs) and costs[0] < costs[-1]


@pytest.mark.parametrize("name, kind", [case for case in CASES if "softmax" in case[1] and case[0] not in RULE_LOSSES])
def test_loss_does_not_depend_on_the_order_of_foreground_classes(name, kind):
    logits, target = noisy_tube(*KINDS[kind])
    renamed = torch.tensor([0, 2, 1])[target]
    assert torch.allclose(loss_of(name, logits, target), loss_of(name, logits[:, [0, 2, 1]], renamed), rtol=1e-9)


@EVERYWHERE
def test_every_loss_reads_logits_of_the_worst_neighbour(name, kind):
    logits, target = noisy_tube(*KINDS[kind])
    logits.requires_grad_()
    penalised = loss_of(name, worst_neighbour(logits, target), target)
    (gradient,) = torch.autograd.grad(penalised.sum(), logits)
    assert gradient.isfinite().all() and not torch.allclose(penalised, loss_of(name, logits, target))


@EACH_LOSS
def test_inputs_are_not_modified(name):
    logits, target = noisy_tube(3, (12, 13))
    before = logits.clone(), target.clone()
    loss_of(name, logits, target)
    assert torch.equal(before[0], logits) and torch.equal(before[1], target)


@EACH_LOSS
def test_uint8_labels_and_strided_logits_are_read_as_they_are(name):
    logits, target = noisy_tube(3, (12, 13), dtype=torch.float32)
    last = logits.to(memory_format=torch.channels_last)
    assert torch.allclose(loss_of(name, logits, target), loss_of(name, last, target.to(torch.uint8)), rtol=1e-5)


@EACH_LOSS
def test_loss_accepts_noncontiguous_logits(name):
    logits, target = noisy_tube(3, (20, 24), batch=1)
    turned = logits.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous() and torch.equal(loss_of(name, turned, target), loss_of(name, logits, target))


@EVERYWHERE
def test_nan_logit_is_rejected_at_any_pixel(name, kind):
    logits, target = noisy_tube(*KINDS[kind])
    for place in (0, logits.numel() // 2, logits.numel() - 1):
        broken = logits.clone()
        broken.view(-1)[place] = torch.nan
        with pytest.raises(NotANumber, match="1 NaN"):
            loss_of(name, broken, target)


@LABELLED_ONLY
def test_class_outside_the_network_is_rejected(name, kind):
    logits, target = noisy_tube(*KINDS[kind])
    for strange in (7, 255, -1):
        wrong = target.clone()
        wrong.view(-1)[3] = strange
        with pytest.raises(ValueError, match=f"class {strange}; the network has 0 to {max(logits.shape[1], 2) - 1}"):
            loss_of(name, logits, wrong)
        assert loss_of(name, logits, wrong, ignore=strange).isfinite().all()


@EACH_LOSS
def test_target_of_another_shape_is_rejected(name):
    logits, target = noisy_tube(1, (20, 24))
    for wrong in (target[:, :-1], target[:1], target[:, None], target.transpose(1, 2)):
        with pytest.raises(ValueError, match="target"):
            loss_of(name, logits, wrong)
