"""Skeletons without side branches that are shorter than a length."""

import numpy as np
from numpy.typing import ArrayLike

from topology.graph import skeleton_graph
from topology.grids import Connectivity, Spacing, as_mask
from topology.skeleton import skeletonize


def prune(
    skeleton: ArrayLike,
    *,
    shorter_than: float,
    spacing: Spacing = None,
    connectivity: Connectivity | str = Connectivity.CLOSED,
) -> np.ndarray:
    """The skeleton without its side branches that are shorter than a length: bool. Betti numbers are kept.

    shorter_than  length in the unit of the spacing (pixels without one); a branch goes if one end is free and the other
                  meets others
    Branches go one round at a time, shortest first at each meeting place, because what is left may join into longer
    ones.
    """
    skeleton = as_mask(skeleton).copy()
    while True:
        graph = skeleton_graph(skeleton, spacing=spacing, connectivity=connectivity)
        gone = _short_twigs(graph, shorter_than)
        if not gone:
            return skeleton.view(bool)
        for branch, free in gone:
            pixels = branch.pixels if free == branch.nodes[0] else branch.pixels[::-1]
            skeleton[tuple(pixels[:-1].T)] = 0
        skeleton = skeletonize(skeleton, connectivity=connectivity).view(np.uint8)


def _short_twigs(graph, shorter_than):
    """At most one branch for each meeting place: the shortest with a free end, and the node of that end."""
    shortest = {}
    for branch in graph.branches:
        ends = [graph.nodes[node] for node in branch.nodes if node >= 0]
        free = [
            node
            for node in branch.nodes
            if node >= 0 and graph.nodes[node].degree == 1 and len(graph.nodes[node].pixels) == 1
        ]
        if branch.length < shorter_than and len(free) == 1 and len(ends) == 2:
            base = branch.nodes[0] + branch.nodes[1] - free[0]
            if graph.nodes[base].degree > 2 and (base not in shortest or branch.length < shortest[base][0].length):
                shortest[base] = (branch, free[0])
    return list(shortest.values())
