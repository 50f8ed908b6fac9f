"""Losses on rules between classes, by hand."""

import io
import json
import math

import pytest
import torch

from models.errors import InvalidInput
from models.events import Events
from models.losses import LOSSES, RULE_LOSSES, hyper_parameters
from models.losses.combine import Objective
from models.losses.containment import inside, must_not_touch, must_touch
from models.train import train

AXON = [{"subject": 2, "others": [1]}]


def logits_of(text, sure=2.0):
    """Logits (1, 3, rows, columns): `sure` for the class drawn, 0 for the others, float64."""
    labels = torch.tensor([[int(each) for each in line] for line in text.split()])
    return sure * torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1)[None].double(), labels[None]


CLOSED, TRUTH = logits_of("000000 011110 012210 012210 011110 000000")
OPEN, _ = logits_of("000000 011110 002210 012210 011110 000000")  # background beside the axon at (2, 2)
OPEN_BELOW, _ = logits_of("000000 011110 012210 012200 011110 000000")
TOTAL = math.exp(2) + 2
WRONG, RIGHT = math.log(TOTAL), math.log(TOTAL) - 2
"""-log of the probability of a class that is not the likeliest, and of the likeliest."""


def test_inside_asks_both_sides_of_a_wrong_contact_to_become_wall():
    assert inside(CLOSED, TRUTH, pairs=AXON).item() == 0
    leaf = OPEN.clone().requires_grad_()
    value = inside(leaf, TRUTH, pairs=AXON)
    assert value.item() == pytest.approx(WRONG)
    value.sum().backward()
    assert torch.nonzero(leaf.grad[0].any(0)).tolist() == [[2, 1], [2, 2]]
    assert (leaf.grad[0, 1, 2, 1:3] < 0).all()


def test_retreat_asks_the_subject_to_leave():
    not_axon = -math.log(1 - math.exp(2) / TOTAL), -math.log(1 - 1 / TOTAL)
    assert inside(OPEN, TRUTH, pairs=AXON, repair="retreat").item() == pytest.approx(sum(not_axon) / 2)


def test_rule_losses_are_means_over_violations_or_sums():
    two, _ = logits_of("000000000 111000111 021000120 111000111 000000000")
    truth = torch.zeros(1, 5, 9, dtype=torch.long)
    mean, total = (inside(two, truth, pairs=AXON, reduction=each).item() for each in ("mean", "sum"))
    assert mean == pytest.approx(WRONG) and total == pytest.approx(2 * WRONG)


def test_pair_is_left_out_where_the_reference_breaks_the_rule():
    broken = TRUTH.clone()
    broken[0, 2, 1] = 0
    assert inside(OPEN, TRUTH, pairs=AXON).item() > 0 and inside(OPEN, broken, pairs=AXON).item() == 0
    assert inside(OPEN, broken, pairs=AXON, where_true=False).item() > 0
    broken[0, 2, 1] = 255  # not labelled: nobody knows that it is broken
    assert inside(OPEN_BELOW, broken, pairs=AXON, ignore=255).item() > 0


def test_component_that_touches_nothing_it_must_is_to_vanish():
    logits, _ = logits_of("0000000 0210020 0000000 0000000")
    truth = torch.zeros(1, 4, 7, dtype=torch.long)
    leaf = logits.requires_grad_()
    value = must_touch(leaf, truth, pairs=AXON)
    assert value.item() == pytest.approx(-math.log(1 - math.exp(2) / TOTAL))
    value.sum().backward()
    assert torch.nonzero(leaf.grad[0].any(0)).tolist() == [[1, 5]] and leaf.grad[0, 2, 1, 5] > 0
    border, _ = logits_of("00002 00000 00000")
    empty = torch.zeros(1, 3, 5, dtype=torch.long)
    assert must_touch(border, empty, pairs=AXON).item() == 0
    assert must_touch(border, empty, pairs=AXON, border="background").item() > 0


def test_forbidden_contact_asks_both_sides_to_become_a_third_class():
    logits, _ = logits_of("00000 02110 00000")
    truth = torch.zeros(1, 3, 5, dtype=torch.long)
    leaf = logits.requires_grad_()
    value = must_not_touch(leaf, truth, pairs=AXON)
    assert value.item() == pytest.approx(WRONG)
    value.sum().backward()
    assert torch.nonzero(leaf.grad[0].any(0)).tolist() == [[1, 1], [1, 2]] and (leaf.grad[0, 0, 1, 1:3] < 0).all()


def test_contact_and_border_mean_what_they_mean_for_label_maps():
    diagonal, _ = logits_of("00000 00100 01210 00100 00000")
    truth = torch.zeros(1, 5, 5, dtype=torch.long)
    assert inside(diagonal, truth, pairs=AXON).item() == 0
    assert inside(diagonal, truth, pairs=AXON, contact="corners").item() > 0
    cut, _ = logits_of("122 122 111")
    truth = torch.zeros(1, 3, 3, dtype=torch.long)
    assert inside(cut, truth, pairs=AXON).item() == 0 < inside(cut, truth, pairs=AXON, border="background").item()


def test_pairs_add_up():
    logits, truth = logits_of("00000 02110 00000")
    both = [*AXON, {"subject": 1, "others": [2]}]
    parts = [must_not_touch(logits, truth, pairs=[pair], where_true=False) for pair in both]
    assert must_not_touch(logits, truth, pairs=both, where_true=False).item() == pytest.approx(sum(parts).item())


@pytest.mark.parametrize("name", sorted(RULE_LOSSES))
def test_step_down_the_gradient_mends_the_rule(name):
    """In space: a speck of the subject that touches background and what it must not, and not what it must."""
    labels = torch.zeros(6, 7, 8, dtype=torch.long)
    labels[1:4, 1:4, 1:4] = 1
    labels[2, 2, 4] = 2 if name == "must_not_touch" else 0
    labels[2:4, 3, 6] = 2
    logits = torch.nn.functional.one_hot(labels, 3).permute(3, 0, 1, 2)[None].double().requires_grad_()
    truth = torch.zeros(1, 6, 7, 8, dtype=torch.long)
    values = []
    for _ in range(30):
        value = LOSSES[name](logits, truth, pairs=AXON).sum()
        values.append(value.item())
        (gradient,) = torch.autograd.grad(value, logits)
        logits = (logits - gradient).detach().requires_grad_()
    assert values[0] > 0 and values[-1] == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: inside(CLOSED[:, :1], TRUTH.clamp(max=1), pairs=AXON), "two foreground classes or more"),
        (lambda: inside(CLOSED, TRUTH, pairs=[{"subject": 3, "others": [1]}]), r"\[3, 1\]; the network has 0 to 2"),
        (lambda: must_not_touch(CLOSED, TRUTH, pairs=[{"subject": 2, "others": [0, 1]}]), "leaves no class"),
        (lambda: inside(CLOSED, TRUTH, pairs=AXON, repair="grow"), "wall, retreat"),
    ],
)
def test_rule_that_cannot_hold_is_rejected_with_what_would_do(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("name", sorted(RULE_LOSSES))
def test_rule_term_without_pairs_is_rejected(name):
    assert "pairs" in hyper_parameters(name)
    with pytest.raises(InvalidInput, match="needs pairs"):
        Objective({"terms": [{"name": name}]})


def test_training_with_rules_counts_their_violations_in_validation(make_dataset, spec, tmp_path):
    data = make_dataset(classes=("background", "left", "right"))
    terms = [{"name": "cross_entropy"}, {"name": "must_touch", "pairs": AXON}]
    stream = io.StringIO()
    train({**spec, "loss": {"terms": terms}, "steps": 4}, data, tmp_path / "out", events=Events(stream))
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    (validation,) = (event for event in told if event["event"] == "validation")
    assert validation["per_class"]["right"]["rule_violations"] == validation["metrics"]["rule_violations"] >= 0
    assert "rule_violations" not in validation["per_class"]["left"]
    assert {"norm", "factor", "cosine"} <= set(told[1]["gradients"]["must_touch"])
