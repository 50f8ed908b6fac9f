"""Losses that look at a pixel together with its neighbours."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from models.losses.pixels import checked, labelled, mean_where, one_hot, true_class_log_probability
from models.losses.windows import window_maximum


def worst_neighbour(
    logits: torch.Tensor, target: torch.Tensor, *, window: int = 3, ignore: int | None = None
) -> torch.Tensor:
    """SCNP: each logit replaced by the worst logit of its own class nearby; same shape, for any loss to read.

    window  odd, >= 3: side of the square (cube) that is searched; about the width of the structure works best
    In the channel of a class a member takes the smallest logit among the members in its window, any other pixel the
    largest among the others. So a pixel is right only when its whole neighbourhood is, and the gradient goes to the
    worst neighbour. Unlabelled pixels are in neither group and keep their own logit. The border has no neighbours
    outside the image. Not for structures of a few hundred pixels: there one pixel speaks for all. Source: Valverde and
    Dahl, CVPR 2026; infinities here where the published code adds 9999, so that half precision is safe.
    """
    lowest = torch.finfo(logits.dtype).min
    member = one_hot(target, logits, ignore).to(logits.dtype)
    other = 1 - member if ignore is None else labelled(target, ignore).to(logits.dtype) - member
    # Products instead of selections, which are slow on CPUs; a member is 0 or 1 exactly, so nothing is rounded and 0 *
    # lowest is 0.
    smallest = -window_maximum(lowest * (1 - member) - logits * member, window)
    largest = window_maximum(lowest * (1 - other) + logits * other, window)
    worst = smallest * member + largest * other
    return worst if ignore is None else worst + logits * (1 - member - other)


def _disagreement(logits, known):
    """(N, 1, ...) part of the 8 (26) neighbours that are predicted as another class than the pixel itself;
    no gradient.
    """
    predicted = (logits > 0).long() if logits.shape[1] == 1 else logits.argmax(1, keepdim=True)
    predicted = torch.where(known, predicted, -1)
    padded = F.pad(predicted, [1, 1] * (logits.ndim - 2), value=-1)
    sides = predicted.shape[2:]
    count = torch.zeros(predicted.shape, device=logits.device)
    for shift in itertools.product(range(3), repeat=len(sides)):
        other = padded[(..., *(slice(start, start + side) for start, side in zip(shift, sides, strict=True)))]
        count += (other != predicted) & (other >= 0)
    return count / (3 ** len(sides) - 1)


@checked
def neighbour_loss(logits: torch.Tensor, target: torch.Tensor, *, ignore: int | None = None) -> torch.Tensor:
    """Cross-entropy of each pixel times the part of its neighbours that are predicted as another class; (N,).

    Only ragged places count, wherever the truth lies; use it beside an overlap loss. The weight carries no gradient,
    and neighbours outside the image or not labelled count as agreeing. Source: Yuan and Xu, "Neighbor loss" (2022).
    """
    known = labelled(target, ignore)
    entropy = -true_class_log_probability(logits, target, known)
    return mean_where(_disagreement(logits.detach(), known) * entropy, known)
