"""Losses on the persistent ridges of the probability map.

There a tube is, or could be.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from models.losses.pixels import checked, foreground, labelled, mean_where, probabilities, true_class_log_probability
from topology.morse import ridges
from topology.parallel import side_by_side

FAINT = 0.02
"""Persistence of ridges that are noise: nearly all ridges of a map are below, and would decide any mean over ridges."""


def lasting_ridges(prob: torch.Tensor, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """How long the ridge at each pixel of (N, K, ...) maps lasts, and which ridge it is; of those that last longer than
    `noise`.

    persistence  0 off the ridges, 1 at the highest pixel
    ridge        int64, the saddle that a ridge starts from, counted in each map; -1 where there is none
    """
    maps = prob.detach().cpu().numpy()
    flat = np.ascontiguousarray(maps).reshape(-1, *maps.shape[2:])
    found = side_by_side(lambda values: ridges(values, min_persistence=noise), flat)
    persistence = np.minimum(np.stack([one.persistence for one in found]), 1).reshape(maps.shape)
    ridge = np.stack([one.owners for one in found]).reshape(maps.shape)
    return torch.from_numpy(persistence).to(prob), torch.from_numpy(ridge).to(prob.device)


def ridge_masks(prob: torch.Tensor, noise: float) -> torch.Tensor:
    """(N, K, ...) maps to bool: pixels on ridges that last longer than `noise`."""
    return lasting_ridges(prob, noise)[0] > 0


@checked
def dmt_loss(
    logits: torch.Tensor, target: torch.Tensor, *, noise: float = 0.1, ignore: int | None = None
) -> torch.Tensor:
    """Cross-entropy on the lasting ridges of the prediction, mean over their pixels; (N,).

    noise  0 to 1: ridges whose saddle lasts no longer are left out
    The ridges are those of every foreground class together. They run through the gap of a break and over a false
    bridge, so both get a gradient along their whole length; weight it 0.1 to 1 beside an overlap loss. A branch that
    falls all the way to its tip has no saddle and so no ridge. Source: Hu et al., ICLR 2021; the mean is over the
    structure, so that the weight does not depend on the size of the image, and ridges go over 8 (26) neighbours, where
    the published ones go along the edges of the grid, over 4 (6).
    """
    known = labelled(target, ignore)
    prob = torch.where(known, foreground(probabilities(logits.detach())), 0)
    structure = ridge_masks(prob, noise).any(1, keepdim=True) & known
    return mean_where(-true_class_log_probability(logits, target, known), structure)


def structure_losses(
    logits: torch.Tensor,
    target: torch.Tensor,
    bound: tuple[torch.Tensor, torch.Tensor],
    draw: torch.Tensor,
    *,
    temperature: float = 0.05,
    ignore: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How right the map is on the ridges that last longer than a drawn bound, and how right the bound's distribution
    is: (structure, presence), (N,) each.

    bound        mean and deviation, (N,) each, of the persistence that a ridge needs to be a structure
    draw         (N,) of the standard normal distribution: the drawn bound is mean + deviation * draw
    temperature  > 0: width of the step from not being a structure to being one
    A ridge of persistence pi is kept with m = sigmoid((pi - drawn bound) / temperature). structure: cross-entropy of
    the map on the ridges of all foreground classes, weighted by m, which passes no gradient on: it is cheapest with the
    surest structures alone and would teach the bound nothing but to rise. So this teaches the logits. presence:
    cross-entropy of Phi((pi - mean) / deviation), the probability that the ridge is there, with whether its pixels are
    of their class: this teaches mean and deviation. It scores the distribution itself and not a draw of it: the
    expected cross-entropy of a draw is least without any deviation, whatever the data (Jensen), so a deviation could
    not be learnt from it. Each ridge counts once, its pixels in equal parts; those that last no longer than FAINT do
    not count, nor do pixels that are not labelled. Ridges and persistences carry no gradient themselves. Source: Hu et
    al., ICLR 2023, who score the pixels of a drawn structure and let no gradient reach its bound.
    """
    known = labelled(target, ignore)
    mean, deviation = bound
    with torch.no_grad():
        lasting, ridge = lasting_ridges(torch.where(known, foreground(probabilities(logits)), 0), FAINT)
        sample, channel, *place = ((ridge >= 0) & known).nonzero(as_tuple=True)
        where = (sample, channel, *place)
        each = (sample * lasting.shape[1] + channel) * lasting[0, 0].numel() + ridge[where]
        number = each.unique(return_inverse=True)[1]
        part = 1 / number.bincount()[number].to(logits.dtype)
        # A ridge lasts as long as its saddle; the peaks at its ends may last longer by themselves.
        lasts = lasting.new_full((len(number),), torch.inf).scatter_reduce(0, number, lasting[where], "amin")[number]
        keep = ((lasts - (mean + deviation * draw)[sample]) / temperature).sigmoid()
    sign = 2.0 * (target[(sample, *place)] == channel + 1) - 1
    log_odds = _log_odds(logits.movedim(1, -1)[(sample, *place)], channel)
    certainty = (lasts - mean[sample]) / deviation[sample]
    zeros = logits.new_zeros(len(logits))

    def average(cost, weight):
        total, mass = zeros.index_add(0, sample, weight * cost), zeros.index_add(0, sample, weight)
        return total / mass.clamp(min=torch.finfo(mass.dtype).tiny)

    return average(-F.logsigmoid(sign * log_odds), keep * part), average(
        -torch.special.log_ndtr(sign * certainty), part
    )


def _log_odds(logits, channel):
    """(R,) log(p / (1 - p)) of foreground class `channel` (R,) from the logits (R, C) of R pixels."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    own = F.one_hot(channel + 1, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(1)
