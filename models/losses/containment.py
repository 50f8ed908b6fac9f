"""Losses on rules between classes: what lies inside or touches what.

A rule is broken at places (`topology.containment`): the contact of a class with what it should not touch, or a
component without the contact that it needs. Places are found in the map of likeliest classes; the cost is the mean over
them of minus the logarithm of the probability of a class that would mend the rule, mean over the pixels of the place.
So gradients reach the contacts alone. For networks with two foreground classes or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from models.losses.pixels import checked, divisor, labelled, log_probabilities
from topology.containment import Rule, violations

REPAIRS = ("wall", "retreat")


@checked
def inside(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    pairs: Sequence[Mapping[str, Any]],
    repair: str = "wall",
    contact: str = "sides",
    border: str = "unknown",
    where_true: bool = True,
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Cost of a class that touches anything but itself and the classes around it; (N,), the pairs added up.

    pairs       list of {"subject": class, "others": [class, ...]}: the subject lies inside the others
    repair      "wall": pixels on both sides of a wrong contact shall be of the others; "retreat": not of the subject
    contact     "sides" or "corners": what neighbours share; see `topology.containment.Rule`
    border      "unknown": the border of the patch breaks no rule; "background": the subject must not reach it
    where_true  whether a pair counts in those samples only whose reference keeps the rule, as far as it is labelled
    reduction   "mean" over the violations of a sample; "sum" over them
    Where it is 0 every class lies inside its others at the likeliest class. Ours.
    """
    if repair not in REPAIRS:
        raise ValueError(f"repair is {repair!r}; choose one of {', '.join(REPAIRS)}.")

    def mended(rule, classes):
        return rule.others if repair == "wall" else classes - {rule.subject}

    rules = rules_of("inside", pairs=pairs, contact=contact, border=border)
    return _cost(logits, target, ignore, rules, mended, where_true, reduction)


@checked
def must_touch(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    pairs: Sequence[Mapping[str, Any]],
    contact: str = "sides",
    border: str = "unknown",
    where_true: bool = True,
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Cost of components of a class that do not touch the classes they must: they shall vanish; (N,).

    pairs, contact, where_true, reduction  as of `inside`
    border  "unknown": a component that reaches the border of the patch may touch beyond it; "background": it does not
    Ours.
    """

    def mended(rule, classes):
        return classes - {rule.subject}

    rules = rules_of("must_touch", pairs=pairs, contact=contact, border=border)
    return _cost(logits, target, ignore, rules, mended, where_true, reduction)


@checked
def must_not_touch(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    pairs: Sequence[Mapping[str, Any]],
    contact: str = "sides",
    where_true: bool = True,
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Cost of a class that touches classes it must not: pixels on both sides shall be of neither; (N,).

    pairs, contact, where_true, reduction  as of `inside`
    Refuses (ValueError) pairs that leave no third class. Ours.
    """

    def mended(rule, classes):
        return classes - {rule.subject, *rule.others}

    rules = rules_of("must_not_touch", pairs=pairs, contact=contact)
    return _cost(logits, target, ignore, rules, mended, where_true, reduction)


def rules_of(
    kind: str, *, pairs: Sequence[Mapping[str, Any]], contact: str = "sides", border: str = "unknown", **_: Any
) -> list[Rule]:
    """The rules of a loss of that name with these options."""
    return [Rule(kind, pair["subject"], pair["others"], contact, border) for pair in pairs]


def _cost(logits, target, ignore, rules, mended, where_true, reduction):
    """(N,) sum over the rules of the cost of their violations.

    mended  (rule, all classes) -> the classes any of which would mend a violation
    """
    classes = set(range(logits.shape[1]))
    if len(classes) < 3:
        raise ValueError("Rules between classes need a network of two foreground classes or more.")
    log_prob = log_probabilities(logits)
    unknown = ~labelled(target, ignore)[:, 0].cpu().numpy()
    likeliest, truth = logits.argmax(1).cpu().numpy(), target.cpu().numpy()
    total = log_prob.new_zeros(len(logits))
    for rule in rules:
        if not {rule.subject, *rule.others} <= classes:
            raise ValueError(
                f"The rule {rule.kind} names the classes {[rule.subject, *rule.others]}; the network has 0 to"
                f" {max(classes)}."
            )
        if not (would_mend := sorted(mended(rule, classes))):
            raise ValueError(
                f"The rule {rule.kind} of class {rule.subject} and {list(rule.others)} leaves no class that pixels"
                " between them could have. Leave one out."
            )
        found = [_shares(*each, rule, where_true) for each in zip(likeliest, truth, unknown, strict=True)]
        shares = torch.from_numpy(np.stack([share for share, _ in found])).to(log_prob)
        wrong = torch.tensor([count for _, count in found], device=logits.device)
        cost = -log_prob[:, would_mend].logsumexp(1)
        total = total + (cost * shares).flatten(1).sum(1) / divisor(wrong, reduction)
    return total


def _shares(likeliest, truth, unknown, rule, where_true):
    """What each pixel of a sample pays of its cost: 1 / pixels of its violation; and the number of violations."""
    if where_true and len(violations(truth, rule, ignore=unknown).sizes):
        return np.zeros(truth.shape), 0
    found = violations(likeliest, rule, ignore=unknown)
    return np.append(0, 1 / found.sizes)[found.labels], len(found.sizes)
