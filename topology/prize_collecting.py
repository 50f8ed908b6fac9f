"""Chooses which components to keep, join or remove at the least total change.

Given what it costs to give up each component and the cheapest paths between them, find a set of trees that leaves as
many components as asked for: the prize-collecting Steiner tree. It is solved exactly on the minimum spanning tree of
the paths, from the leaves up: what hangs on a path is joined when giving it up would cost more than the path, and only
if the path has no more pixels than what it saves. More than one component is kept by cutting the tree where keeping
one more apart saves the most.
"""

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.components import root_of


@njit(cache=True, nogil=True)
def _spanning_tree(count, ends, roots):
    """Indices of the edges, sorted by cost, of a minimum spanning forest in which all roots count as one node."""
    parent = np.arange(count)
    for root in roots[1:]:
        parent[root] = roots[0]
    chosen = np.empty(count, np.int64)
    n = 0
    for k in range(len(ends)):
        a, b = root_of(parent, np.int64(ends[k, 0])), root_of(parent, np.int64(ends[k, 1]))
        if a != b:
            parent[max(a, b)] = min(a, b)
            chosen[n] = k
            n += 1
    return chosen[:n].copy()


@njit(cache=True, nogil=True)
def _hang(count, ends, roots, heaviest):
    """Order of the nodes from the roots outwards, and for each the edge it hangs on (-1: none) and its upper end."""
    degree = np.zeros(count + 1, np.int64)
    for k in range(len(ends)):
        degree[ends[k, 0] + 1] += 1
        degree[ends[k, 1] + 1] += 1
    start = np.cumsum(degree)
    fill = start.copy()
    edge_at = np.empty(2 * len(ends), np.int64)
    for k in range(len(ends)):
        for node in ends[k]:
            edge_at[fill[node]] = k
            fill[node] += 1
    order = np.empty(count, np.int64)
    edge = np.full(count, -1)
    above = np.full(count, -1)
    seen = np.zeros(count, np.bool_)
    order[: len(roots)] = roots
    seen[roots] = True
    head, n = 0, len(roots)
    for heavy in heaviest:
        while head < n:
            node = order[head]
            head += 1
            for place in range(start[node], start[node + 1]):
                k = edge_at[place]
                other = ends[k, 0] + ends[k, 1] - node
                if not seen[other]:
                    seen[other] = True
                    edge[other] = k
                    above[other] = node
                    order[n] = other
                    n += 1
        if n == count:
            break
        if not seen[heavy]:  # no path leads to it
            seen[heavy] = True
            order[n] = heavy
            n += 1
    return order, edge, above


@njit(cache=True, nogil=True)
def _worth(order, edge, above, masses, pixels, costs, sizes):
    """What each node and all that is joined to it from below saves, in cost and pixels, and whether it is joined."""
    gain = masses.copy()
    saved = pixels.copy()
    joined = np.zeros(len(order), np.bool_)
    for k in range(len(order) - 1, -1, -1):
        node = order[k]
        if edge[node] < 0:
            continue
        cost, size = costs[edge[node]], sizes[edge[node]]
        better = gain[node] > cost or (gain[node] == cost and saved[node] > size)
        joined[node] = better and (saved[node] >= size or np.isinf(gain[node]))
        if joined[node]:
            gain[above[node]] += gain[node] - cost
            saved[above[node]] += saved[node] - size
    return gain, saved, joined


@njit(cache=True, nogil=True)
def _kept(order, above, joined, apart):
    """Which nodes stay: those that stand apart, and those joined to one that stays."""
    kept = np.zeros(len(order), np.bool_)
    for node in order:
        kept[node] = apart[node] or (joined[node] and kept[above[node]])
    return kept


def collect(
    masses: np.ndarray,
    pixels: np.ndarray,
    ends: ArrayLike,
    costs: np.ndarray,
    sizes: np.ndarray,
    *,
    roots: ArrayLike | None = None,
    groups: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Keep as many groups of components as asked for, at the least total change.

    masses   (N,) float64 what giving up each component costs; inf: it may not be given up
    pixels   (N,) int64 its size
    ends     (K, 2) components that each path joins; costs, sizes (K,) of the paths, the cheapest first
    roots    components that stay, each in a group of its own; None: the one of largest mass
    groups   how many groups stay, at least as many as roots
    returns  kept (N,) bool, and the indices of the paths to take
    """
    count = len(masses)
    heaviest = np.lexsort((np.arange(count), -pixels, -masses))
    roots = heaviest[: min(groups, 1)] if roots is None else np.asarray(roots, np.int64)
    if not len(roots):
        return np.zeros(count, bool), np.empty(0, np.int64)
    ends = np.asarray(ends, np.int64).reshape(-1, 2)
    tree = _spanning_tree(count, ends, roots)
    order, edge, above = _hang(count, ends[tree], roots, heaviest)
    gain, saved, joined = _worth(order, edge, above, masses, pixels, costs[tree], sizes[tree])
    apart = np.zeros(count, bool)
    apart[roots] = True
    if groups > len(roots):
        spares = np.where(joined, costs[tree][edge], gain) if len(tree) else gain
        others = np.flatnonzero(~apart)
        best = np.lexsort((others, -saved[others], -spares[others]))[: groups - len(roots)]
        apart[others[best]] = True
    kept = _kept(order, above, joined, apart)
    return kept, np.sort(tree[edge[kept & ~apart]])
