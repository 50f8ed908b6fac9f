"""Losses that compare pixel by pixel: the base to which a topology term is added."""

import torch

from models.losses.pixels import foreground_pair, labelled, log_probabilities, mean_where, per_class_sum


def cross_entropy(logits, target, *, ignore=None):
    """Mean over labelled pixels of -log(probability of the true class); (N,).

    Sigmoid and softmax alike; see `models.losses.pixels` for shapes. A sample without a labelled pixel costs 0.
    """
    known = labelled(target, ignore)
    index = torch.where(known, target.unsqueeze(1), 0).long()
    return mean_where(-log_probabilities(logits).gather(1, index), known)


def dice(logits, target, *, smooth=1e-5, ignore=None):
    """1 - Dice overlap of soft counts, mean over the foreground classes; (N,), each in [0, 1].

    smooth  >= 0; added to numerator and denominator, so that a class that is absent from both costs nothing
    Source: Milletari et al., 3DV 2016; with plain sums in the denominator and background left out, as nnU-Net does.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob = torch.where(known, prob, 0)
    both = per_class_sum(prob * member)
    each = per_class_sum(prob) + per_class_sum(member)
    return (1 - (2 * both + smooth) / (each + smooth).clamp(min=1e-8)).mean(1)
