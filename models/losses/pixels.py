"""The conventions every loss shares: which channel is which class, what is not labelled, and sums per sample.

logits  (N, C, ...) real; C = 1: one foreground class, a sigmoid follows; C > 1: one channel per class, a softmax
        follows
target  (N, ...)    integer class of each pixel, 0 is background
ignore  the value in `target` that means "not labelled", or None; such pixels count nowhere
Every loss returns (N,): one number per sample, so that the caller decides how samples are averaged.
Classes are scored one against the rest; where a loss leaves out background, that is channel 0 of a softmax.
"""

import torch
import torch.nn.functional as F


def labelled(target, ignore):
    """(N, 1, ...) bool: True where the class is known."""
    if ignore is None:
        return torch.ones_like(target, dtype=torch.bool).unsqueeze(1)
    return (target != ignore).unsqueeze(1)


def one_hot(target, logits, ignore=None):
    """(N, C, ...) bool: membership in the class of each channel; False everywhere where nothing is labelled."""
    if logits.shape[1] == 1:
        return target.unsqueeze(1) == 1
    classes = torch.arange(logits.shape[1], device=target.device).view(-1, *[1] * (target.ndim - 1))
    member = target.unsqueeze(1) == classes
    return member if ignore is None else member & labelled(target, ignore)


def probabilities(logits):
    """(N, C, ...) in [0, 1], at least float32: half precision has no room for sums over an image."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def log_probabilities(logits):
    """Logarithm of the probability of every class, background included:
    (N, max(C, 2), ...), finite for finite logits.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if logits.shape[1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], 1)
    return logits.log_softmax(1)


def true_class_log_probability(logits, target, known):
    """(N, 1, ...) log-probability of the class a pixel has; arbitrary where the class is not known."""
    if logits.shape[1] == 1:
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return F.logsigmoid(logits * (2 * (target.unsqueeze(1) == 1).to(logits.dtype) - 1))
    index = torch.where(known, target.unsqueeze(1), 0).long()
    return log_probabilities(logits).gather(1, index)


def foreground(tensor):
    """The channels of the foreground classes: all of a sigmoid's, all but the first of a softmax's."""
    return tensor if tensor.shape[1] == 1 else tensor[:, 1:]


def foreground_pair(logits, target, ignore):
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


def per_class_sum(tensor):
    """(N, K, ...) to (N, K): sum over pixels."""
    return tensor.flatten(2).sum(2)


def mean_where(values, chosen):
    """(N, ...) or (N, K, ...) to (N,): mean over the chosen pixels; 0 for a sample with none, because nothing was asked
    of it.
    """
    chosen = chosen.expand_as(values)
    total = torch.where(chosen, values, 0).flatten(1).sum(1)
    return total / chosen.flatten(1).sum(1).clamp(min=1)
