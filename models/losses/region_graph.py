"""Topograph: losses on the regions of error that change the topology.

Only regions on which a component, loop or cavity depends have a price.

A wrong region is harmless when it only moves a border. It is critical when adding it to the mask that lacks it changes
a Betti number (it joins, tears, fills or opens something, or is an island or a hole) or takes a feature to another
place: `RegionGraph.relevant` of `topology.regions`. So neither loss is 0 where Betti numbers differ. It need not be 0
where they agree: a line that moves sideways by two pixels is a miss and an invention, because regions do not know what
could be moved.

What lies outside the image (`border`): "background", as metrics count: a tube cut short at the border costs nothing, an
arc closed along the border does. "unknown", for images that are cut out of larger ones: components of foreground and of
background count as they are within the image, so the cut tube costs (it joins what was apart on its two sides), and the
closed arc does not.
"""

import numpy as np
import torch

from models.losses.pixels import checked, divisor, foreground_pair, labelled, one_hot, per_class_sum, probabilities
from topology.parallel import side_by_side
from topology.regions import region_graph

AGGREGATES = ("mean", "sum", "max", "rms")
BORDERS = ("background", "unknown")


@checked
def topograph(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    aggregate: str = "mean",
    include_background: bool = True,
    border: str = "unknown",
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Probability given to the wrong class on the critical regions, mean over wrong regions and over classes; (N,).

    aggregate           "mean", "sum", "max" or "rms" of the probability over a region
    include_background  whether a softmax's background counts as a class
    border              what lies outside: "unknown", as published, or "background"
    reduction           "mean": the sum over critical regions divided by the number of all wrong regions, harmless ones
                        too, so that a map full of errors costs no more than 1; "sum" over them, as published
    The gradient is spread over whole regions, which is what tells it from losses on two pixels a feature. Regions are
    found at the likeliest class (a sigmoid above 0.5). Source: Lux et al., ICLR 2025, without its random thresholds;
    critical by the Betti numbers themselves instead of by neighbours, hence in space too.
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate is {aggregate!r}; choose one of {', '.join(AGGREGATES)}.")
    prob = probabilities(logits)
    known = labelled(target, ignore)
    if logits.shape[1] == 1:
        predicted, given = prob > 0.5, torch.maximum(prob, 1 - prob)
    else:
        given, likeliest = prob.max(1, keepdim=True)
        predicted = one_hot(likeliest[:, 0], prob)
    skipped = int(logits.shape[1] > 1 and not include_background)
    predicted, member = ((mask & known)[:, skipped:] for mask in (predicted, one_hot(target, prob, ignore)))
    masks, truths = predicted.cpu().numpy(), member.cpu().numpy()
    each_map = list(np.ndindex(*masks.shape[:2]))
    found = side_by_side(lambda at: _numbered(masks[at], truths[at], border), each_map)
    costs = [
        _aggregate(given[n, 0].flatten(), torch.from_numpy(regions).to(given.device), aggregate)
        for (n, _), (regions, _) in zip(each_map, found, strict=True)
    ]
    most = divisor(torch.tensor([wrong for _, wrong in found], device=given.device), reduction)
    return (torch.stack(costs) / most).view(predicted.shape[:2]).mean(1)


def _aggregate(prob, regions, aggregate):
    """Sum over regions 1, 2, ... of the aggregate of their pixels; region 0 is everything else."""
    count = int(regions.max()) + 1
    chosen = regions > 0
    prob, regions = prob[chosen], regions[chosen]
    empty = prob.new_zeros(count)
    if aggregate == "max":
        return empty.scatter_reduce(0, regions, prob, "amax").sum()
    if aggregate == "sum":
        return prob.sum()
    sizes = torch.bincount(regions, minlength=count).clamp(min=1)
    if aggregate == "mean":
        return (empty.index_add(0, regions, prob) / sizes).sum()
    return (empty.index_add(0, regions, prob**2) / sizes)[1:].clamp(min=1e-12).sqrt().sum() if count > 1 else prob.sum()


def _critical(predicted, truth, border):
    """`RegionGraph` of two bool masks, and which of its regions are critical (R,)."""
    if border not in BORDERS:
        raise ValueError(f"border is {border!r}; choose one of {', '.join(BORDERS)}.")
    graph = region_graph(predicted, truth)
    if border == "background":
        return graph, graph.relevant
    # With a frame of foreground, background that the border divides is divided; but no component touches the outside.
    framed = region_graph(*(np.pad(mask, 1, constant_values=True) for mask in (predicted, truth)))
    return graph, framed.relevant | (graph.touched != 1)


def _numbered(predicted, truth, border):
    """Flat int64 numbers 1, 2, ... of the critical regions of two bool masks, 0 elsewhere; and how many regions are
    wrong, critical or not.
    """
    graph, critical = _critical(predicted, truth, border)
    number = np.append(0, np.where(critical, np.cumsum(critical), 0))
    return number[graph.labels].ravel(), len(graph.sizes)


@checked
def dense_matching(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    levels: int = 3,
    border: str = "background",
    reduction: str = "mean",
    ignore: int | None = None,
) -> torch.Tensor:
    """Error on the regions on which topology depends, at every level of the prediction, mean over wrong regions and
    over foreground classes; (N,).

    levels     1 to 16 thresholds, evenly spaced in (0, 1); an odd number looks at 0.5 too, where masks are cut: an even
               one may leave errors
    border     what lies outside: "background" or "unknown"
    reduction  "mean": the sum divided by the number of wrong regions, critical or not, at the mean threshold; "sum":
               without that division
    At each threshold t the mask {p > t} is compared with the reference, and every critical region (the gap of a break,
    the bridge of a merge, a whole island, the filling of a hole) costs its mean error. The mean over thresholds is an
    integral: a wrong feature counts in proportion to the range of thresholds at which it is wrong, which is its
    persistence, it is where the region is, and its gradient is spread over all of the region, most where the region is
    worst. In the plane and in space. Ours; it joins the located features of Betti matching with the regions of
    Topograph.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob, member = torch.where(known, prob, 0), member & known
    maps, truths = prob.detach().cpu().numpy(), member.cpu().numpy()
    found = side_by_side(lambda at: _shares(maps[at], truths[at], levels, border), np.ndindex(*maps.shape[:2]))
    shares = torch.from_numpy(np.stack([share for share, _ in found]).reshape(maps.shape)).to(prob)
    wrong = torch.tensor([count for _, count in found], device=prob.device).view(prob.shape[:2])
    total = per_class_sum((prob - member.to(prob.dtype)).abs() * shares)
    return (total / divisor(wrong, reduction)).mean(1)


def _shares(values, truth, levels, border):
    """What each pixel pays of its error: 1 / pixels of its critical region, averaged over the thresholds; and the mean
    number of wrong regions.
    """
    total, wrong = np.zeros(values.shape, np.float32), 0
    for level in range(levels):
        graph, critical = _critical(values > (level + 0.5) / levels, truth, border)
        total += np.append(0, critical / graph.sizes / levels).astype(np.float32)[graph.labels]
        wrong += len(graph.sizes)
    return total, wrong / levels
