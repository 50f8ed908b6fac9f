"""Homotopy warping: cross-entropy where prediction and reference differ in topology."""

from __future__ import annotations

import numpy as np
import torch

from models.losses.pixels import (
    checked,
    foreground,
    labelled,
    mean_where,
    one_hot,
    probabilities,
    true_class_log_probability,
)
from topology.parallel import side_by_side
from topology.warping import unreached


@checked
def homotopy_warping(logits: torch.Tensor, target: torch.Tensor, *, ignore: int | None = None) -> torch.Tensor:
    """Mean cross-entropy of the pixels that warping cannot explain; 0 where there are none; (N,).

    The reference is warped to the prediction and the prediction to the reference, each class against the rest, by
    flipping simple pixels in which they differ (`topology.warping`). Critical are those that either leaves: there a
    component, hole or cavity differs, while a border or a whole line that is moved costs nothing. The prediction is the
    likeliest class (a sigmoid above 0.5). Pixels that are not labelled are background in both masks.
    Source: Hu, NeurIPS 2022; the mean over critical pixels instead of over all of logits that are 0 elsewhere, which
    grows with the square of their number and is never 0.
    """
    known = labelled(target, ignore)
    prob = probabilities(logits.detach())
    predicted = prob > 0.5 if logits.shape[1] == 1 else one_hot(prob.argmax(1), prob)
    masks, truths = ((foreground(each) & known).cpu().numpy() for each in (predicted, one_hot(target, prob, ignore)))
    pairs = [(masks[each], truths[each]) for each in np.ndindex(*masks.shape[:2])]
    found = side_by_side(_critical, pairs)
    critical = torch.from_numpy(np.stack(found).reshape(masks.shape)).to(logits.device).any(1, keepdim=True)
    return mean_where(-true_class_log_probability(logits, target, known), critical & known)


def _critical(pair):
    """Where two masks differ after each was warped to the other."""
    predicted, truth = pair
    return unreached(truth, predicted) | unreached(predicted, truth)
