"""Branches of a reference that a prediction has whole, shortened, in fragments, or not.

A broken vessel that is there on both sides of the gap can be mended by joining two pieces; one that was never found
cannot. Both cost the same in Betti numbers, so they are told apart here, along the branches of the reference's
skeleton.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from topology.distance import distance_to
from topology.graph import Branch, skeleton_graph
from topology.grids import Connectivity, Spacing, as_mask, same_shape
from topology.skeleton import skeletonize

KINDS = ("whole", "shortened", "fragmented", "missing")


@dataclass(frozen=True)
class BranchComparison:
    """The branches of a reference and what a prediction has of each.

    branches  the branches of the reference's skeleton, as `topology.graph` follows them
    kinds     for each, "whole": every pixel is covered; "missing": less than half of its pixels are; "shortened": only
              its free end is not covered; "fragmented": there is a gap elsewhere
    covered   for each, the share of its pixels that the prediction covers
    """

    branches: tuple[Branch, ...]
    kinds: tuple[str, ...]
    covered: tuple[float, ...]

    def count(self, kind: str) -> int:
        """How many branches are of a kind."""
        return self.kinds.count(kind)

    def length(self, kind: str) -> float:
        """Their total length, in the unit of the spacing."""
        return float(sum(branch.length for branch, each in zip(self.branches, self.kinds, strict=True) if each == kind))


def _kind(covered, free):
    """What a branch is called, from which of its pixels are covered and which of its two ends are free."""
    there = np.flatnonzero(covered)
    if len(there) == len(covered):
        return "whole"
    if 2 * len(there) < len(covered):
        return "missing"
    first, last = (there[0] if free[0] else 0), (there[-1] if free[1] else len(covered) - 1)
    return "shortened" if covered[first : last + 1].all() else "fragmented"


def compare_branches(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    tolerance: float = 0.0,
    skeleton: ArrayLike | None = None,
    spacing: Spacing = None,
    connectivity: Connectivity | str = Connectivity.CLOSED,
) -> BranchComparison:
    """What a prediction has of every branch of a reference: `BranchComparison`.

    prediction, reference  masks of one shape, (rows, columns) or (planes, rows, columns); not 0 is foreground
    tolerance              a pixel of a branch is covered when foreground of the prediction is no further away, in the
                           unit of the spacing; with 0 a gap of a single pixel counts
    skeleton               the skeleton of the reference where it is known; None: `topology.skeleton` makes it
    spacing                pixel size along each axis, e.g. mm; None: pixels
    """
    same_shape(prediction, reference)
    mask = as_mask(prediction)
    near = mask > 0 if tolerance == 0 else distance_to(mask, spacing=spacing) <= tolerance
    lines = skeletonize(reference, connectivity=connectivity) if skeleton is None else skeleton
    graph = skeleton_graph(lines, spacing=spacing, connectivity=connectivity)
    kinds, shares = [], []
    for branch in graph.branches:
        covered = near[tuple(branch.pixels.T)]
        free = [end >= 0 and graph.nodes[end].degree == 1 for end in branch.nodes]
        kinds.append(_kind(covered, free))
        shares.append(float(covered.mean()))
    return BranchComparison(graph.branches, tuple(kinds), tuple(shares))
