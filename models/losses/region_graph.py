"""Topograph: cut the image where prediction and reference differ, and find the pieces on which a component or a hole depends.

Pixels have one of four colours: right background, invented, missed, right foreground. Pieces of equal colour are the nodes of a graph, neighbouring
pieces its edges. A wrong piece is harmless when turning it round only moves the border between one background piece and one
foreground cluster. Every other wrong piece is critical: it joins, tears, fills or opens something, or is an island or a hole.
Foreground touches along diagonals (8), background along sides (4).
"""

import numpy as np
import torch

from models.losses.pixels import labelled, one_hot, probabilities
from topology.components import label_components

INVENTED, MISSED, RIGHT = 1, 2, 3
AGGREGATES = ("mean", "sum", "max", "rms")
HEIGHTS = np.array([-4, 1, 2, 16])
"""What a colour weighs in the vote of a 2x2 block on which of its diagonals touches."""


def topograph(logits, target, *, aggregate="mean", include_background=True, ignore=None):
    """Probability given to the wrong class on every critical region, summed over regions, mean over classes; (N,).

    aggregate           "mean", "sum", "max" or "rms" of the probability over a region
    include_background  whether a softmax's background counts as a class
    In the plane only. The gradient is spread over whole regions, which is what tells it from losses on two pixels a feature. Usual
    weight 0.5 beside Dice. Regions are found at the likeliest class (a sigmoid above 0.5).
    Source: Lux et al., ICLR 2025, without its random thresholds.
    """
    if logits.ndim != 4:
        raise ValueError(f"topograph reads images of 2 axes; these have {logits.ndim - 2}. Use betti_matching.")
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
    total = 0
    for k in range(predicted.shape[1]):
        regions = [_critical_regions(*pair) for pair in zip(predicted[:, k].cpu().numpy(), member[:, k].cpu().numpy())]
        total = total + torch.stack([_aggregate(g.flatten(), torch.from_numpy(r).to(g.device), aggregate) for g, r in zip(given[:, 0], regions)])
    return total / predicted.shape[1]


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


def _critical_regions(predicted, truth):
    """Flat int64 numbers 1, 2, ... of the critical regions of two bool masks; 0 elsewhere."""
    colours = predicted + 2 * truth.astype(np.int64)
    if not np.isin(colours, (INVENTED, MISSED)).any():
        return np.zeros(colours.size, np.int64)
    pieces, colour_of = _pieces(colours)
    sides, corners, weak = _edges(pieces, colours)
    edges = np.concatenate([sides, corners])
    alike = colour_of[edges[:, 0]] == colour_of[edges[:, 1]]
    region_of = _clusters(len(colour_of), edges[alike])
    ends = np.sort(region_of[edges[~alike]], axis=1)
    edges = _distinct(ends[:, 0], ends[:, 1])
    every = np.concatenate([edges, region_of[weak]])
    cluster_of = [_restricted(every, colour_of, colours_in) for colours_in in ((MISSED, RIGHT), (INVENTED, RIGHT))]
    critical = [region for region, around in _neighbours_of_wrong(edges, colour_of, region_of) if _is_critical(colour_of[region], around, colour_of, cluster_of)]
    number = np.zeros(len(colour_of), np.int64)
    number[critical] = np.arange(1, len(critical) + 1)
    return number[region_of[pieces]].ravel()


def _pieces(colours):
    """4-connected pieces of equal colour, numbered from 0 over all colours, and the colour of each."""
    pieces, colour_of = np.zeros(colours.shape, np.int64), []
    for colour in range(4):
        mask = colours == colour
        labels, count = label_components(mask, connectivity="open")
        pieces[mask] = labels[mask] - 1 + len(colour_of)
        colour_of += [colour] * count
    return pieces, np.array(colour_of)


def _pairs(first, second, where):
    """Distinct pairs of pieces, (E, 2)."""
    where = where & (first != second)
    return _distinct(np.minimum(first[where], second[where]), np.maximum(first[where], second[where]))


def _distinct(low, high):
    """Distinct pairs, (E, 2); as one number each they sort in a tenth of the time."""
    base = int(high.max(initial=0)) + 1
    return np.stack(divmod(np.unique(low * base + high), base), axis=1)


def _edges(pieces, colours):
    """Pairs of pieces that touch along a side, along a diagonal, and along one so weakly that it counts for clusters only."""
    sides = [_pairs(pieces[1:], pieces[:-1], np.True_), _pairs(pieces[:, 1:], pieces[:, :-1], np.True_)]
    height = HEIGHTS[colours]
    vote = height[:-1, :-1] - height[:-1, 1:] - height[1:, :-1] + height[1:, 1:]
    main, anti = (pieces[:-1, :-1], pieces[1:, 1:]), (pieces[:-1, 1:], pieces[1:, :-1])
    corners = [_pairs(*main, vote > 7), _pairs(*anti, vote < -7)]
    weak = [_pairs(*main, (vote == 7) | (vote == 4)), _pairs(*anti, (vote == -7) | (vote == -4))]
    return np.concatenate(sides), np.concatenate(corners), np.concatenate(weak)


def _clusters(count, edges):
    """Smallest member of the connected component of every node."""
    parent = list(range(count))

    def root(node):
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in edges.tolist():
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return np.array([root(node) for node in range(count)])


def _restricted(edges, colour_of, colours):
    """Clusters of the graph in which only regions of these colours exist."""
    inside = np.isin(colour_of[edges], colours).all(1)
    return _clusters(len(colour_of), edges[inside])


def _neighbours_of_wrong(edges, colour_of, region_of):
    """(region, its neighbours) for every wrong region."""
    around = {region: [] for region in np.unique(region_of).tolist() if colour_of[region] in (INVENTED, MISSED)}
    for a, b in edges.tolist():
        if a in around:
            around[a].append(b)
        if b in around:
            around[b].append(a)
    return around.items()


def _is_critical(colour, around, colour_of, cluster_of):
    """False for a region between one background region and one cluster of the mask in which it is background."""
    background = sum(colour_of[other] == 0 for other in around)
    clusters = cluster_of[0 if colour == INVENTED else 1]
    beside = {clusters[other] for other in around if colour_of[other] != 0}
    return not (background == 1 and len(beside) == 1)
