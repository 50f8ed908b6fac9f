"""Losses by Betti matching: features of prediction and reference that match in place."""

import numpy as np
import torch
import torch.nn.functional as F

from models.losses.pixels import checked, divisor, foreground_pair
from topology.matching import pair_features
from topology.parallel import side_by_side


@checked
def betti_matching(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    connectivity: str = "closed",
    relative: bool = False,
    push_apart: bool = False,
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Squared distance between matched bars and squared length of the others, mean over bars and over foreground
    classes, (N,).

    connectivity  "closed" (8/4, 26/6) or "open" (4/8, 6/26, as published)
    relative      a frame of foreground around the image closes structures that touch the border
    push_apart    unmatched features of the prediction are pushed past the diagonal (birth to 0, death to 1) instead of
                  towards it
    reduction     "mean" over the bars of both maps; "sum" over them, as published
    Per map: 2 sum over matched bars of (difference of births)^2 + (difference of deaths)^2, plus the sum of length^2
    over the bars that only one of the maps has; those of the reference carry no gradient. The components that never die
    are matched to each other and compare births only. All dimensions count. A feature whose image in the common map is
    born and dies at once has no partner, as in the paper; the published code pairs such features too. Source: Stucki et
    al., ICML 2023; superlevel filtration of the probability.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob, member = torch.where(known, prob, 0), member.to(prob.dtype)
    if relative:
        prob, member = (F.pad(maps, [1, 1] * (prob.ndim - 2), value=1.0) for maps in (prob, member))
    ours, theirs = (maps.flatten(0, 1) for maps in (prob, member))
    pairs = zip(ours.detach().cpu().numpy(), theirs.cpu().numpy(), strict=True)
    found = side_by_side(lambda pair: pair_features(*pair, connectivity=connectivity), pairs)
    flat = torch.cat([ours.flatten(1), theirs.flatten(1), ours.new_tensor([[0.0, 1.0]]).expand(len(ours), 2)], 1)
    links = [_links(pairing, ours[0].numel(), push_apart) for pairing in found]
    owner = np.repeat(np.arange(len(links)), [len(each) for each in links])
    first, second, weight = np.concatenate(links).T + [[1], [1], [0]] * (owner * flat.shape[1])
    maps, ones, others, weights = (
        torch.from_numpy(column).to(prob.device) for column in (owner, first, second, weight)
    )
    values = flat.flatten()
    costs = weights * (values[ones] - values[others]) ** 2
    total = costs.new_zeros(len(links)).index_add(0, maps, costs)
    bars = torch.tensor([sum(map(len, pairing.births)) for pairing in found], device=prob.device)
    return (total / divisor(bars, reduction)).view(prob.shape[:2]).mean(1)


def _links(pairing, size, push_apart):
    """(L, 3) int64: two places whose squared difference costs, and how often it does.

    Places of a map: 0 to size - 1 its prediction, then its reference, then the constants 0 and 1.
    """
    one, other = pairing.matched.T
    births = [pairing.births[0][one], pairing.births[1][other] + size]
    # The pair that never dies has births to compare, but no deaths.
    lasting = (pairing.deaths[0][one] >= 0) & (pairing.deaths[1][other] >= 0)
    deaths = [pairing.deaths[0][one][lasting], pairing.deaths[1][other][lasting] + size]
    false, missing = (pairing.alone(side) for side in range(2))
    false, missing = (
        (pairing.births[side][bars], pairing.deaths[side][bars]) for side, bars in enumerate((false, missing))
    )
    apart = [(2, false[0], np.full_like(false[0], 2 * size)), (2, false[1], np.full_like(false[1], 2 * size + 1))]
    groups = [
        (2, *births),
        (2, *deaths),
        *(apart if push_apart else [(1, *false)]),
        (1, missing[0] + size, missing[1] + size),
    ]
    return np.concatenate([np.stack([a, b, np.full_like(a, weight)], axis=1) for weight, a, b in groups])
