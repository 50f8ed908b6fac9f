"""Betti matching: a feature of the prediction is right when it is the same feature as one of the reference, in the same place."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from models.losses.pixels import foreground_pair
from topology.matching import match

THREADS = 2
SIDES = ("births", "deaths")


def betti_matching(logits, target, *, connectivity="closed", relative=False, push_apart=False, ignore=None):
    """Squared distance between matched bars and squared length of the others, mean over foreground classes, (N,).

    connectivity  "closed" (8/4, 26/6) or "open" (4/8, 6/26, as published)
    relative      a frame of foreground around the image closes structures that touch the border
    push_apart    unmatched features of the prediction are pushed past the diagonal (birth to 0, death to 1) instead of towards it
    Per map: 2 sum over matched bars of (difference of births)^2 + (difference of deaths)^2, plus the sum of length^2 over the bars
    that only one of the maps has; those of the reference carry no gradient. The components that never die are matched to each other and compare
    births only. All dimensions count. Usual weight 0.5 beside Dice.
    Source: Stucki et al., ICML 2023; superlevel filtration of the probability.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob, member = torch.where(known, prob, 0), member.to(prob.dtype)
    if relative:
        prob, member = (F.pad(maps, [1, 1] * (prob.ndim - 2), value=1.0) for maps in (prob, member))
    flat, truth = prob.flatten(2), member.flatten(2)
    found = _match_all(prob, member, connectivity)
    costs = [_map_cost(flat[n, k], truth[n, k], found[n][k], prob.shape[2:], push_apart) for n, k in np.ndindex(*prob.shape[:2])]
    return torch.stack(costs).view(prob.shape[:2]).mean(1)


def _match_all(prob, member, connectivity):
    """Matchings of every (n, k), side by side in threads."""
    ours, theirs = (maps.detach().cpu().numpy() for maps in (prob, member))
    with ThreadPoolExecutor(THREADS) as pool:
        rows = [[pool.submit(match, a, b, connectivity=connectivity) for a, b in zip(*pair)] for pair in zip(ours, theirs)]
        return [[job.result() for job in row] for row in rows]


def _linear(codes, chosen, sides, device):
    """Linear indices of births and of deaths of the chosen bars, those that never die left out."""
    codes = codes[chosen].finite()
    return [torch.from_numpy(np.ravel_multi_index(tuple(getattr(codes, side).T), sides)).to(device) for side in SIDES]


def _map_cost(prob, truth, matching, sides, push_apart):
    """Cost of one map; prob and truth are flat."""
    ours, theirs = (side[chosen] for side, chosen in zip((matching.prediction, matching.reference), matching.matched.T))
    lasting = np.isfinite(ours.death_values) & np.isfinite(theirs.death_values)
    cost = prob.new_zeros(())
    for side in SIDES:
        # The pair that never dies has births to compare, but no deaths.
        used = lasting if side == "deaths" else slice(None)
        a, b = (torch.from_numpy(np.ravel_multi_index(tuple(getattr(codes[used], side).T), sides)).to(prob.device) for codes in (ours, theirs))
        cost = cost + 2 * ((prob[a] - truth[b]) ** 2).sum()
    births, deaths = _linear(matching.prediction, matching.only_prediction, sides, prob.device)
    if push_apart:
        cost = cost + 2 * (prob[births] ** 2 + (1 - prob[deaths]) ** 2).sum()
    else:
        cost = cost + ((prob[births] - prob[deaths]) ** 2).sum()
    births, deaths = _linear(matching.reference, matching.only_reference, sides, prob.device)
    return cost + ((truth[births] - truth[deaths]) ** 2).sum()
