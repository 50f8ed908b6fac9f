"""Conventions of every loss: channels and classes, unlabelled pixels, sums per sample.

logits  (N, C, ...) real; C = 1: one foreground class, a sigmoid follows; C > 1: one channel per class, a softmax
        follows
target  (N, ...)    integer class of each pixel, 0 is background
ignore  the value in `target` that means "not labelled", or None; such pixels count nowhere
Every loss returns (N,): one number per sample, so that the caller decides how samples are averaged.
Classes are scored one against the rest; where a loss leaves out background, that is channel 0 of a softmax.
NaN logits, a target of another shape and classes that the network has not are refused by every loss alike: `check`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from models.errors import NotANumber

REDUCTIONS = ("mean", "sum")
"""Of a loss on features or regions: their mean cost, or the sum of their costs as published."""


def check(logits: torch.Tensor, target: torch.Tensor, ignore: int | None = None, *, classes: bool = True) -> None:
    """Refuse (ValueError) what no loss can score.

    classes  False where the loss does not look at the target: then its values may be anything
    Raises NotANumber, a ValueError, for NaN logits: a loss that looks at some pixels only would hide them.
    """
    if logits.ndim not in (4, 5) or target.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(
            f"Logits have shape {tuple(logits.shape)} and the target {tuple(target.shape)}; give (N, C, rows, columns)"
            " or (N, C, planes, rows, columns), and the same without C."
        )
    if (absent := int(logits.isnan().sum())) > 0:
        raise NotANumber(f"Logits hold {absent} NaN of {logits.numel()} values; a loss of them means nothing.")
    if not classes:
        return
    count = max(logits.shape[1], 2)
    strange = (target < 0) | (target >= count)
    if ignore is not None:
        strange &= target != ignore
    if strange.any():
        ignored = "" if ignore is None else f", and {ignore} is not labelled"
        raise ValueError(
            f"The target holds the class {target[strange][0].item()}; the network has 0 to {count - 1}{ignored}."
            " Relabel those pixels, or give the value as `ignore`."
        )


def checked(loss: Callable[..., torch.Tensor], *, classes: bool = True) -> Callable[..., torch.Tensor]:
    """The loss, which first looks at its input (`check`); `inspect.unwrap` gives it back without."""

    @functools.wraps(loss)
    def careful(logits, target, *, ignore=None, **options):
        check(logits, target, ignore, classes=classes)
        return loss(logits, target, ignore=ignore, **options)

    return careful


def divisor(counts: torch.Tensor, reduction: str) -> torch.Tensor | int:
    """What a sum over features is divided by: their number, at least 1, for "mean"; 1 for "sum"."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(REDUCTIONS)}.")
    return counts.clamp(min=1) if reduction == "mean" else 1


def labelled(target: torch.Tensor, ignore: int | None) -> torch.Tensor:
    """(N, 1, ...) bool: True where the class is known."""
    if ignore is None:
        return torch.ones_like(target, dtype=torch.bool).unsqueeze(1)
    return (target != ignore).unsqueeze(1)


def one_hot(target: torch.Tensor, logits: torch.Tensor, ignore: int | None = None) -> torch.Tensor:
    """(N, C, ...) bool: membership in the class of each channel; False everywhere where nothing is labelled."""
    if logits.shape[1] == 1:
        return target.unsqueeze(1) == 1
    classes = torch.arange(logits.shape[1], device=target.device).view(-1, *[1] * (target.ndim - 1))
    member = target.unsqueeze(1) == classes
    return member if ignore is None else member & labelled(target, ignore)


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """(N, C, ...) in [0, 1], at least float32: half precision has no room for sums over an image."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Logarithm of the probability of every class, background included:
    (N, max(C, 2), ...), finite for finite logits.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if logits.shape[1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], 1)
    return logits.log_softmax(1)


def true_class_log_probability(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(N, 1, ...) log-probability of the class a pixel has; arbitrary where the class is not known."""
    if logits.shape[1] == 1:
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return F.logsigmoid(logits * (2 * (target.unsqueeze(1) == 1).to(logits.dtype) - 1))
    index = torch.where(known, target.unsqueeze(1), 0).long()
    return log_probabilities(logits).gather(1, index)


def foreground(tensor: torch.Tensor) -> torch.Tensor:
    """The channels of the foreground classes: all of a sigmoid's, all but the first of a softmax's."""
    return tensor if tensor.shape[1] == 1 else tensor[:, 1:]


def foreground_pair(
    logits: torch.Tensor, target: torch.Tensor, ignore: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probability and membership of the foreground classes, and where they are known.

    prob    (N, K, ...) float, K foreground classes
    member  (N, K, ...) float 0 or 1
    known   (N, 1, ...) bool
    """
    return (
        foreground(probabilities(logits)),
        foreground(one_hot(target, logits, ignore)),
        labelled(target, ignore),
    )


def per_class_sum(tensor: torch.Tensor) -> torch.Tensor:
    """(N, K, ...) to (N, K): sum over pixels."""
    return tensor.flatten(2).sum(2)


def mean_where(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(N, ...) or (N, K, ...) to (N,): mean over the chosen pixels; 0 for a sample with none, because nothing was asked
    of it.
    """
    chosen = chosen.expand_as(values)
    total = torch.where(chosen, values, 0).flatten(1).sum(1)
    return total / chosen.flatten(1).sum(1).clamp(min=1)
