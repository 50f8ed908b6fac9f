"""Losses that compare pixel by pixel: the base to which a topology term is added."""

from __future__ import annotations

import math

import torch

from models.losses.pixels import (
    checked,
    foreground_pair,
    labelled,
    mean_where,
    per_class_sum,
    true_class_log_probability,
)


@checked
def cross_entropy(logits: torch.Tensor, target: torch.Tensor, *, ignore: int | None = None) -> torch.Tensor:
    """Mean over labelled pixels of -log(probability of the true class); (N,).

    Sigmoid and softmax alike; see `models.losses.pixels` for shapes. A sample without a labelled pixel costs 0.
    """
    known = labelled(target, ignore)
    return mean_where(-true_class_log_probability(logits, target, known), known)


@checked
def dice(
    logits: torch.Tensor, target: torch.Tensor, *, smooth: float = 1e-05, ignore: int | None = None
) -> torch.Tensor:
    """1 - Dice overlap of soft counts, mean over the foreground classes; (N,), each in [0, 1].

    smooth  >= 0; added to numerator and denominator, so that a class that is absent from both costs nothing
    Source: Milletari et al., 3DV 2016; with plain sums in the denominator and background left out, as nnU-Net does.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob = torch.where(known, prob, 0)
    both = per_class_sum(prob * member)
    each = per_class_sum(prob) + per_class_sum(member)
    return (1 - (2 * both + smooth) / (each + smooth).clamp(min=1e-8)).mean(1)


@checked
def tversky(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1e-05,
    ignore: int | None = None,
) -> torch.Tensor:
    """1 - Tversky index of soft counts, mean over the foreground classes; (N,), each in [0, 1].

    alpha   0 to 1: price of a false positive
    beta    0 to 1: price of a false negative; more than alpha asks for recall, alpha = beta = 0.5 is Dice
    smooth  >= 0; added to numerator and denominator, so that a class that is absent from both costs nothing
    Source: Salehi et al., MLMI 2017.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob, member = torch.where(known, prob, 0), member.to(prob.dtype)
    hit, invented, missed = (
        per_class_sum(prob * member),
        per_class_sum(prob * (1 - member)),
        per_class_sum((1 - prob) * member),
    )
    return (1 - (hit + smooth) / (hit + alpha * invented + beta * missed + smooth).clamp(min=1e-8)).mean(1)


@checked
def focal(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    gamma: float = 2.0,
    foreground_weight: float = 1.0,
    ignore: int | None = None,
) -> torch.Tensor:
    """Mean over labelled pixels of (1 - p)^gamma * -log p, p the probability of the true class; (N,).

    gamma              0 to 10: how little a pixel counts that is right already; 0 is cross-entropy
    foreground_weight  > 0: factor for pixels of foreground classes
    Source: Lin et al., ICCV 2017.
    """
    known = labelled(target, ignore)
    log_prob = true_class_log_probability(logits, target, known)
    # The power of a probability that has reached exactly 1 has no finite slope for gamma < 1, hence the clamp.
    doubt = (-torch.expm1(log_prob)).clamp(min=1e-12) ** gamma
    weight = torch.where(target.unsqueeze(1) > 0, foreground_weight, 1.0)
    return mean_where(-weight * doubt * log_prob, known)


@checked
def topk(
    logits: torch.Tensor, target: torch.Tensor, *, fraction: float = 0.1, ignore: int | None = None
) -> torch.Tensor:
    """Mean cross-entropy of the labelled pixels that cost most; (N,).

    fraction  in (0, 1]: part of them, rounded up; 1 is cross-entropy
    Which pixels these are carries no gradient. Source: Wu et al. 2016 ("bridging category-level and instance-level
    semantic segmentation"), with a tenth of the pixels as nnU-Net takes.
    """
    known = labelled(target, ignore)
    losses = torch.where(known, -true_class_log_probability(logits, target, known), -1).flatten(1)
    worst = [
        row.topk(math.ceil(fraction * count)).values.mean() if count else row.sum() * 0
        for row, count in zip(losses, known.flatten(1).sum(1).tolist(), strict=True)
    ]
    return torch.stack(worst)


@checked
def loss_max_pooling(
    logits: torch.Tensor, target: torch.Tensor, *, power: float = 1.7, fraction: float = 0.25, ignore: int | None = None
) -> torch.Tensor:
    """Cross-entropy with the worst weights in a ball: pixels with a large loss count for more; (N,).

    power     > 1: norm p of the ball of weights; near 1 the few worst pixels take all, large values approach the plain
              mean
    fraction  in (0, 1]: at least this part of the pixels carries the weight, so that outliers cannot take it all
    With n pixels, w maximises sum(w l) over |w|_p <= n^(-1/q), w <= cap, 1/p + 1/q = 1; then w = min(c l^(q-1), cap).
    Equal losses give the mean. The weights carry no gradient. Source: Rota Bulo et al., CVPR 2017.
    """
    known = labelled(target, ignore)
    losses = torch.where(known, -true_class_log_probability(logits, target, known), 0).flatten(1)
    counts = known.flatten(1).sum(1).tolist()
    weights = torch.stack(
        [_worst_weights(row, count, power, fraction) for row, count in zip(losses.detach(), counts, strict=True)]
    )
    return (weights * losses).sum(1)


def _worst_weights(losses, count, power, fraction):
    """Weights of one sample's pixels, of which `count` are labelled and the others have loss 0."""
    if count == 0:
        return torch.zeros_like(losses)
    dual = power / (power - 1)
    budget = count ** (-power / dual)  # of sum(w^p)
    cap = (budget / max(1, math.ceil(fraction * count))) ** (1 / power)
    losses = losses.clamp(min=1e-30)
    ratio = losses / losses.max()
    shape = ratio ** (dual - 1)
    mass = ratio.mul_(shape)  # shape^p
    # Without a cap the weights would be factor * shape. Cut those above the cap, and the budget that is left raises the
    # factor for the
    # others; so on until none is above. Cuts only grow, a few passes do, and sorting the pixels would cost more.
    capped = torch.zeros_like(losses, dtype=torch.bool)
    while True:
        left = max(budget - capped.sum().item() * cap**power, 0.0)
        factor = (left / max(mass.sum(dtype=torch.float64).item(), 1e-300)) ** (1 / power)
        weights = (factor * shape).masked_fill_(capped, cap)
        above = weights > cap * (1 + 1e-6)
        if not above.any():
            return weights
        capped |= above
        mass.masked_fill_(above, 0)
