"""SATLoss: optimal transport between persistence diagrams that knows where features lie."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from models.losses.pixels import checked, divisor, foreground_pair
from topology.parallel import side_by_side
from topology.persistence import finite_bars

NEAREST = 0.05
"""Least factor of a pair's cost: what a feature in the right place pays of its error, as published."""
MOST_PAIRS = 2**22
"""Pairs of bars that are looked at; where there are more, the shortest bars of the prediction go to the diagonal."""


@checked
def sat_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    relative: bool = False,
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Cost of moving the persistence diagram of the prediction onto the reference, mean over foreground classes;
    (N,).

    relative   a frame of foreground around both images closes structures that touch the border
    reduction  "mean" over the bars of both maps; "sum" over them, as published
    Superlevel filtration of the probability, every dimension; the component that never dies ends at the least value. A
    pair costs the distance of its bars (births and deaths, Euclidean) times that of the pixels where they are born,
    in sides of the image, held to [0.05, 1]; a bar without partner costs its length over the square root of 2. The
    cheapest plan is taken, and gradients flow through the values. A feature in the right place thus pays a twentieth of
    its error only, one elsewhere all of it: use it to find misplaced features, beside a loss that sees heights.
    Source: Wen et al. 2024 (2412.02076), weight 0.01; both maps are framed alike, where the published code frames
    the reference only, so that a perfect square prediction costs 1.4; in space too, and for several classes.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob, member = torch.where(known, prob, 0), member.to(prob.dtype)
    if relative:
        prob, member = (F.pad(maps, [1, 1] * (prob.ndim - 2), value=1.0) for maps in (prob, member))
    ours, theirs = (maps.flatten(0, 1) for maps in (prob, member))
    found = side_by_side(_plan, zip(ours.detach().cpu().numpy(), theirs.cpu().numpy(), strict=True))
    costs = [_cost(*each) for each in zip(ours.flatten(1), theirs.flatten(1), found, strict=True)]
    bars = torch.tensor([plan.bars for plan in found], device=prob.device)
    return (torch.stack(costs) / divisor(bars, reduction)).view(prob.shape[:2]).mean(1)


class _Plan:
    """Flat pixels of birth and death (n, 2) of pairs in both maps, the factor of each pair, bars of either alone, and
    how many bars there are.
    """

    def __init__(self):
        nothing = np.empty((0, 2), np.int64)
        self.pairs, self.others, self.factors = [nothing], [nothing], [np.empty(0)]
        self.alone, self.others_alone, self.bars = [nothing], [nothing], 0

    def add(self, bars, others, chosen, factors):
        """The bars of one dimension, and which (rows, columns) of them are pairs."""
        rows, columns = chosen
        self.pairs.append(bars[rows])
        self.others.append(others[columns])
        self.factors.append(factors)
        self.alone.append(np.delete(bars, rows, axis=0))
        self.others_alone.append(np.delete(others, columns, axis=0))
        self.bars += len(bars) + len(others)


def _plan(maps):
    """The cheapest plan between two maps."""
    values, truth = maps
    plan = _Plan()
    for bars, others in zip(_bars(values), _bars(truth), strict=True):
        plan.add(bars, others, *_paired(values, truth, bars, others))
    return plan


def _bars(values):
    """For each dimension (n, 2) flat pixels of birth and death, the longest first; the endless component is first."""
    endless = [[int(values.argmax()), int(values.argmin())]]
    found = [np.stack([births, deaths], 1) for _, births, deaths in finite_bars(values)]
    return [np.concatenate([np.array(endless), found[0]]), *found[1:]]


def _paired(values, truth, bars, others):
    """Which bars have a partner: ((rows, columns), factors (n,))."""
    bars = bars[: max(1, MOST_PAIRS // max(1, len(others)))]
    if not len(bars) or not len(others):
        return (np.empty(0, np.int64), np.empty(0, np.int64)), np.empty(0)
    ends, true_ends = values.ravel()[bars].astype(float), truth.ravel()[others].astype(float)
    places, true_places = (
        np.stack(np.unravel_index(each[:, 0], values.shape), 1) / values.shape for each in (bars, others)
    )
    factors = np.clip(np.linalg.norm(places[:, None] - true_places[None], axis=2), NEAREST, 1)
    apart = factors * np.linalg.norm(ends[:, None] - true_ends[None], axis=2)
    saved = (_to_diagonal(ends)[:, None] + _to_diagonal(true_ends)[None]) - apart
    rows, columns = linear_sum_assignment(np.maximum(saved, 0), maximize=True)
    kept = saved[rows, columns] > 0
    return (rows[kept], columns[kept]), factors[rows[kept], columns[kept]]


def _to_diagonal(ends):
    return np.abs(ends[:, 0] - ends[:, 1]) / np.sqrt(2)


def _cost(values, truth, plan):
    """The cost of a plan, differentiable in the values of the prediction."""
    pairs, others, alone, others_alone, factors = (
        torch.from_numpy(np.concatenate(each)).to(values.device)
        for each in (plan.pairs, plan.others, plan.alone, plan.others_alone, plan.factors)
    )
    paired = factors.to(values.dtype) * torch.linalg.vector_norm(values[pairs] - truth[others], dim=1)
    lengths = [each[:, 0] - each[:, 1] for each in (values[alone], truth[others_alone])]
    return paired.sum() + sum(each.abs().sum() for each in lengths) / 2**0.5
