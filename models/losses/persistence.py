"""Losses on the persistence of topological features of the probability map.

Superlevel filtration of the probability: a component [loop, cavity] is born at the larger value and dies at the smaller
one. The component that never dies is left out everywhere but in `betti_prior`. Gradients flow to two pixels a feature.
The losses are means over features (`reduction`), so that a map of a thousand specks costs no more than one of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import torch

from models.losses.pixels import checked, divisor, foreground, foreground_pair, labelled, probabilities
from topology.parallel import side_by_side
from topology.persistence import finite_bars


@dataclass(frozen=True)
class Bars:
    """The finite bars of many maps, the longest of each map and dimension first.

    owner      (B,) int64 number of the map, counting (N, K) in C order
    dimension  (B,) int64
    births     (B,) int64 index into the flattened (N, K, ...) tensor
    deaths     (B,) int64
    rank       (B,) int64 place among the bars of the same map and dimension, from 0
    """

    owner: torch.Tensor
    dimension: torch.Tensor
    births: torch.Tensor
    deaths: torch.Tensor
    rank: torch.Tensor

    def ends(self, prob: torch.Tensor) -> torch.Tensor:
        """(2, B) values at the births and at the deaths: differentiable, and read at once, because each reading's
        gradient is a whole map.
        """
        return prob.reshape(-1)[torch.stack([self.births, self.deaths])]

    def lengths(self, prob: torch.Tensor) -> torch.Tensor:
        """(B,) persistence, read from the map: differentiable."""
        births, deaths = self.ends(prob)
        return births - deaths

    def sum_by_owner(self, values: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
        """(B,) values to (N, K): sum over the bars of each map."""
        total = values.new_zeros(prob.shape[0] * prob.shape[1]).index_add(0, self.owner, values)
        return total.view(prob.shape[:2])

    def counts(self, prob: torch.Tensor) -> torch.Tensor:
        """(N, K, dimensions) int64: how many bars each map has in each dimension."""
        maps, dimensions = prob.shape[0] * prob.shape[1], prob.ndim - 2
        return (
            (self.owner * dimensions + self.dimension).bincount(minlength=maps * dimensions).view(*prob.shape[:2], -1)
        )


def find_bars(prob: torch.Tensor, dimensions: Sequence[int] | None = None, *, noise: float = 0.0) -> Bars:
    """The finite bars of every map of a tensor (N, K, ...); dimensions None: all.

    Bars no longer than `noise` are left out.
    """
    maps = np.ascontiguousarray(prob.detach().cpu().numpy()).reshape(-1, *prob.shape[2:])
    found = side_by_side(partial(finite_bars, dimensions=dimensions, min_persistence=noise), maps)
    parts = [(number, *part) for number, parts in enumerate(found) for part in parts]
    counts = [len(births) for _, _, births, _ in parts]
    owner = np.repeat([number for number, *_ in parts], counts)
    starts = owner * maps[0].size
    columns = (
        owner,
        np.repeat([dimension for _, dimension, _, _ in parts], counts),
        np.concatenate([births for _, _, births, _ in parts]) + starts,
        np.concatenate([deaths for *_, deaths in parts]) + starts,
        np.concatenate([np.arange(count) for count in counts]),
    )
    return Bars(*(torch.from_numpy(column).to(prob.device) for column in columns))


def _windows(prob, member, window):
    """Cut (N, K, ...) tensors into windows of at most `window` pixels a side; None: the whole image."""
    if window is None:
        yield prob, member
        return
    starts = [range(0, side, window) for side in prob.shape[2:]]
    for corner in np.ndindex(*[len(axis) for axis in starts]):
        view = (..., *(slice(i * window, (i + 1) * window) for i in corner))
        yield prob[view], member[view]


@checked
def topo_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    window: int = 100,
    noise: float = 0.03,
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """TopoLoss: pushes the longest features to full height and the others to none; mean of squares, mean over classes,
    (N,).

    window     16 or more pixels: side of the windows that are looked at one by one; None: the whole image at once
    noise      0 to 1: bars no longer than this are left alone
    reduction  "mean" over the bars that are looked at in all windows; "sum" over them, as published, which grows with
               the image and wants a weight of 0.001 to 0.01
    If the target has n finite bars in a dimension, the n longest of the prediction are to be born at 1 and to die at 0,
    and each other one is to be born where it dies, both ends moving towards each other. Windows whose target is
    constant are skipped. Meant for late in training. Source: Hu et al., NeurIPS 2019; the intended targets (the
    published code has those of the features to keep exchanged), and windows of one component are looked at too.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob, member = torch.where(known, prob, 0), member.to(prob.dtype)
    total, bars = prob.new_zeros(prob.shape[:2]), prob.new_zeros(prob.shape[:2])
    for part, truth in _windows(prob, member, window):
        cost, count = _topo_window(part.contiguous(), truth.contiguous(), noise)
        total, bars = total + cost, bars + count
    return (total / divisor(bars, reduction)).mean(1)


def _topo_window(prob, truth, noise):
    """(N, K) sums of squares of one window, and over how many bars."""
    wanted = _bar_counts(truth)
    bars = find_bars(prob, noise=noise)
    varied = truth.flatten(2).amax(2) != truth.flatten(2).amin(2)
    keep = bars.rank < wanted[bars.owner, bars.dimension]
    birth, death = bars.ends(prob)
    risen = (1 - birth) ** 2 + death**2
    gone = (birth - death) ** 2 / 2  # both ends towards their mean
    return bars.sum_by_owner(torch.where(keep, risen, gone), prob) * varied, bars.counts(prob).sum(2) * varied


def _bar_counts(truth):
    """(maps, dimensions) number of finite bars of 0/1 maps: the Betti numbers without the essential component."""
    counts = _betti_numbers(truth).flatten(0, 1)
    counts[:, 0] = (counts[:, 0] - 1).clamp(min=0)
    return counts


@partial(checked, classes=False)
def betti_prior(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    priors: Sequence[dict[str, Any]] | None = None,
    power: float = 2.0,
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Clough's prior: the map is to have the Betti numbers one knows beforehand; needs no reference mask; (N,).

    priors     list of {"classes": [class, ...], "betti": [components, loops(, cavities)]}: the union of the foreground
               classes has these numbers; None: all of them together are one component without loops and cavities
    power      > 0: 2 as Clough (1 - length^2 for a wanted bar, length^2 for any other), 1 as Byrne
    reduction  "mean" over the bars of a prior, the wanted ones that are absent among them; "sum" over them, as
               published. Several priors add up
    A wanted feature that is absent has a bar of length 0 and costs 1, without a gradient. The component that never dies
    counts, with its height as its length (it dies at 0): so an empty map costs 1 where a component is wanted, and a
    class that shall be absent is pressed down; the published code leaves that component out. `target` and `ignore` are
    not looked at, so the term also teaches from images without labels. Source: Clough et al., TPAMI 2020, equation 3;
    Byrne et al., STACOM 2020.
    """
    classes = foreground(probabilities(logits)).split(1, 1)
    axes = logits.ndim - 2
    everything = {"classes": list(range(1, len(classes) + 1)), "betti": [1] + [0] * (axes - 1)}
    total = classes[0].new_zeros(len(logits))
    for prior in [everything] if priors is None else priors:
        if not set(prior["classes"]) <= set(everything["classes"]):
            raise ValueError(
                f"A prior names the classes {prior['classes']}; give foreground classes, 1 to {len(classes)}."
            )
        if len(prior["betti"]) != axes:
            raise ValueError(f"A prior has {len(prior['betti'])} Betti numbers for images of {axes} axes; give {axes}.")
        union = reduce(torch.add, (classes[c - 1] for c in prior["classes"]))
        wanted = torch.tensor(prior["betti"], device=union.device).expand(len(union), -1)
        total = total + _prior_cost(union, wanted, power, reduction)
    return total


def window_prior(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    window: int,
    power: float = 1.0,
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Betti prior whose numbers come from the label, window by window: mean over windows, (N,).

    window  side of the windows, in pixels, that are looked at one by one
    power, reduction  as of `betti_prior`
    All foreground classes together are to have, in each window, the Betti numbers that they have in the label. Pixels
    that are not labelled are background in both. Source: the later networks of the dictionary's authors, by patches of
    the label (they add Byrne's costs of growing unions of patches).
    """
    prob = probabilities(logits)
    known = labelled(target, ignore)
    union = torch.where(known, prob if prob.shape[1] == 1 else 1 - prob[:, :1], 0)
    member = (target.unsqueeze(1) > 0) & known
    costs = [
        _prior_cost(part.contiguous(), _betti_numbers(truth)[:, 0], power, reduction)
        for part, truth in _windows(union, member, window)
    ]
    return torch.stack(costs).mean(0)


def _betti_numbers(masks):
    """(N, K, dimensions) int64 of bool masks (N, K, ...)."""
    from topology.components import betti_numbers

    found = side_by_side(betti_numbers, masks.cpu().numpy().reshape(-1, *masks.shape[2:]))
    return torch.tensor(found, device=masks.device).view(*masks.shape[:2], -1)


def _prior_cost(union, wanted, power, reduction):
    """(N,) cost of Betti numbers (N, dimensions) on (N, 1, ...) maps."""
    bars = find_bars(union)
    lengths = bars.lengths(union) ** power
    height = union.flatten(1).amax(1) ** power  # of the component that never dies, before all others of dimension 0
    keep = bars.rank + (bars.dimension == 0) < wanted[bars.owner, bars.dimension]
    cost = bars.sum_by_owner(torch.where(keep, -lengths, lengths), union)[:, 0]
    counts = bars.counts(union)[:, 0]
    counts[:, 0] += 1
    # Every wanted bar costs 1 less its length; one that does not exist has length 0.
    total = wanted.sum(1) + cost + torch.where(wanted[:, 0] > 0, -height, height)
    return total / divisor(torch.maximum(counts, wanted).sum(1), reduction)


@partial(checked, classes=False)
def topology_layer(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    dimension: int = 0,
    skip: int = 0,
    power: float = 1.0,
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Mean power of bar lengths but for the longest ones, mean over foreground classes, (N,): a price on every further
    feature.

    dimension  0 components, 1 loops, 2 cavities
    skip       0 or more: this many of the longest finite bars are free (the component that never dies always is)
    power      > 0
    reduction  "mean" over the bars that are not free; "sum" over them, as published
    `target` and `ignore` are not looked at, so the term also teaches from images without labels. `bar_features` gives
    the sums as inputs to another layer. Source: Gabrielsson et al., AISTATS 2020; cubes instead of triangles, so
    diagonal pixels touch.
    """
    prob = foreground(probabilities(logits))
    total, counts = _bar_sums(prob, dimension, skip, power)
    return (total / divisor(counts, reduction)).mean(1)


def bar_features(prob: torch.Tensor, *, dimension: int = 0, skip: int = 0, power: float = 1.0) -> torch.Tensor:
    """(N, K, ...) maps to (N, K) sums of length^power over the finite bars of one dimension but the `skip` longest."""
    return _bar_sums(prob, dimension, skip, power)[0]


def _bar_sums(prob, dimension, skip, power):
    """The sums of `bar_features`, and (N, K) over how many bars."""
    bars = find_bars(prob, [dimension])
    lengths = bars.lengths(prob) ** power
    counts = (bars.counts(prob)[..., dimension] - skip).clamp(min=0)
    return bars.sum_by_owner(torch.where(bars.rank >= skip, lengths, 0), prob), counts


def landscapes(
    prob: torch.Tensor, *, dimensions: Sequence[int] = (0, 1), depth: int = 2, points: int = 25
) -> torch.Tensor:
    """Persistence landscapes of maps (N, K, ...): (N, K, dimensions, depth, points), differentiable.

    dimensions  Betti dimensions, each once, in the order in which they are wanted
    depth       how many of the landscapes lambda_1 >= lambda_2 >= ...
    points      levels of the probability, evenly spaced from 0 to 1
    lambda_k(t) is the k-th largest of max(0, min(birth - t, t - death)) over the finite bars of a dimension. Source:
    Bubenik, JMLR 2015; as a layer, Kim et al. (PLLay), NeurIPS 2020, with gradients through the two pixels of a bar,
    not a matrix.
    """
    if len(set(dimensions)) < len(dimensions):
        raise ValueError(f"dimensions is {tuple(dimensions)}; name each dimension once.")
    bars = find_bars(prob, dimensions)
    birth, death = bars.ends(prob)
    levels = torch.linspace(0, 1, points, dtype=prob.dtype, device=prob.device)
    tents = torch.minimum(birth[:, None] - levels, levels - death[:, None]).clamp(min=0)
    places = torch.tensor([dimensions.index(d) if d in dimensions else -1 for d in range(prob.ndim - 2)])
    maps, place = prob.shape[0] * prob.shape[1], places.to(prob.device)[bars.dimension]
    slots = max(depth, int(bars.rank.max()) + 1 if len(bars.rank) else 0)
    stacked = tents.new_zeros(maps, len(dimensions), slots, points).index_put((bars.owner, place, bars.rank), tents)
    return stacked.topk(depth, dim=2).values.view(*prob.shape[:2], len(dimensions), depth, points)


@checked
def landscape_distance(
    logits: torch.Tensor, target: torch.Tensor, *, depth: int = 2, points: int = 25, ignore: int | None = None
) -> torch.Tensor:
    """Mean squared difference between the persistence landscapes of prediction and target, mean over foreground
    classes, (N,).

    depth   1 to 16 landscapes a dimension
    points  2 to 256 levels between 0 and 1
    Compares how many features there are and how strong, not where. All dimensions count. At most `depth` bars meet at
    a level, whatever the size of the map, so the mean over dimensions, landscapes and levels needs no division by bars.
    Source: as `landscapes`; the comparison with the target's is ours.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    options: dict[str, Any] = {"dimensions": tuple(range(prob.ndim - 2)), "depth": depth, "points": points}
    ours = landscapes(torch.where(known, prob, 0), **options)
    return ((ours - landscapes(member.to(prob.dtype), **options)) ** 2).flatten(2).mean(2).mean(1)
