"""Minimum cuts: the pixels of least total cost whose removal separates two places.

The minimum cut between two sets of pixels is the maximum flow between them when each pixel lets through no more than it
costs (Ford and Fulkerson, 1956; Dinic's algorithm in SciPy). Each pixel is two nodes of the flow network, with an arc
of its cost from one to the other; arcs between neighbours let through anything.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import njit
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from topology.components import label_components
from topology.edited_mask import BACKGROUND, FOREGROUND, EditedMask
from topology.paths import steps_of

MOST_PIXELS = 400_000
"""Pixels among which a cut is sought; more take minutes."""
FINEST = 2**11
"""Steps of a cost that are told apart: of the most expensive pixel."""
ENDLESS = 2**30


def cheapest_cut(
    pixels: np.ndarray, costs: np.ndarray, neighbours: np.ndarray, sources: np.ndarray, sinks: np.ndarray
) -> np.ndarray | None:
    """Which pixels part the sources from the sinks at the least total cost; None where only they themselves could.

    pixels      (N,) framed indices of the region, sorted
    costs       (N,) float64; inf: not to be cut. Of equal sums fewer pixels decide
    neighbours  (K,) offsets of the neighbours through which the side is connected
    sources, sinks  (N,) bool, apart from each other
    returns     (N,) bool
    """
    count, top = len(pixels), max(costs[np.isfinite(costs)].max(initial=0), np.finfo(float).tiny)
    capacity = np.where(np.isfinite(costs), np.rint(np.nan_to_num(costs / top, posinf=0) * FINEST) + 1, ENDLESS)
    capacity[sources | sinks] = ENDLESS
    inner = np.arange(count)
    tails, heads = [inner], [inner + count]
    for step in neighbours:
        place = np.searchsorted(pixels, pixels + step)
        there = (place < count) & (pixels[np.minimum(place, count - 1)] == pixels + step)
        tails.append(inner[there] + count)
        heads.append(place[there])
    tails += [np.full(sources.sum(), 2 * count), np.flatnonzero(sinks) + count]
    heads += [np.flatnonzero(sources), np.full(sinks.sum(), 2 * count + 1)]
    tail, head = np.concatenate(tails), np.concatenate(heads)
    through = np.full(len(tail), ENDLESS, np.int32)
    through[:count] = capacity
    network = csr_array((through, (tail, head)), shape=(2 * count + 2,) * 2)
    flow = maximum_flow(network, 2 * count, 2 * count + 1)
    if flow.flow_value >= ENDLESS:
        return None
    left = network - flow.flow
    left.eliminate_zeros()
    reached = np.zeros(2 * count + 2, bool)
    reached[breadth_first_order(left, 2 * count, return_predecessors=False)] = True
    return reached[:count] & ~reached[count : 2 * count]


@njit(cache=True, nogil=True)
def levels_within(inside, starts, steps, most):
    """How many steps from the starts each pixel is within a set, plus 1; 0 where more than `most` or not at all."""
    levels = np.zeros(inside.size, np.int32)
    queue = np.empty(inside.size, np.int64)
    n = 0
    for at in starts:
        levels[at] = 1
        queue[n] = at
        n += 1
    head = 0
    while head < n:
        at = queue[head]
        head += 1
        if levels[at] > most:
            continue
        for step in steps:
            other = at + step
            if inside[other] and levels[other] == 0:
                levels[other] = levels[at] + 1
                queue[n] = other
                n += 1
    return levels


@njit(cache=True, nogil=True)
def _border(mask, steps):
    """Pixels of foreground that touch background."""
    found = [np.int64(0)]
    for at in range(mask.size):
        if mask[at]:
            for step in steps:
                if not mask[at + step]:
                    found.append(at)
                    break
    return np.array(found[1:])


def depths(edited: EditedMask) -> np.ndarray:
    """(framed pixels,) how many steps from the background each pixel of foreground lies; 0 in the background."""
    around = steps_of(edited.mask.shape, True)
    return levels_within(edited.flat == FOREGROUND, _border(edited.flat, around), around, edited.flat.size)


def ridge(depth: np.ndarray, at: int, steps: np.ndarray) -> int:
    """The pixel that is reached from a pixel by going deeper, the first of equals, until there is no deeper one."""
    while True:
        deeper = at + steps[np.argmax(depth[at + steps])]
        if depth[deeper] <= depth[at]:
            return at
        at = deeper


def cross_sections(edited: EditedMask, at: int) -> Iterator[np.ndarray]:
    """Framed pixels of cuts near a pixel of foreground that part what leads away from it on one side from the rest.

    Balls around the pixel, in steps within the foreground, of which one is sought that the foreground leaves in two
    places or more. The cheapest cut of each ball first. The cut stays where the pixel is: within half the thickness
    there, measured along the structure.
    """
    steps = steps_of(edited.mask.shape, edited.full(FOREGROUND))
    inside, depth = edited.flat == FOREGROUND, depths(edited)
    middle = ridge(depth, at, steps_of(edited.mask.shape, True))
    thick = int(depth[middle])
    # A wide ball first, which bumps do not leave; a small one where the structure is short.
    for reach in (*range(2 * thick + 2, 8 * thick + 8, thick + 1), *range(2 * thick + 1, thick, -1)):
        levels = levels_within(inside, np.array([middle]), steps, reach)
        pixels = np.flatnonzero(levels) if levels[at] else np.empty(0, np.int64)
        ends = np.zeros(edited.mask.shape, bool)
        ends.ravel()[pixels[levels[pixels] > thick + 1]] = True
        labels = label_components(ends, connectivity=edited.connectivity)[0]
        shell = labels.ravel()[pixels] * (levels[pixels] > reach)
        arms = np.unique(shell[shell > 0])
        if len(arms) > 1 and len(pixels) <= MOST_PIXELS:
            cuts = [_cross_section(edited, at, pixels, shell, arm, thick, steps) for arm in arms]
            found = sorted((each for each in cuts if each is not None), key=lambda each: each[0])
            yield from (voxels for _, voxels in found)


def _cross_section(edited, at, pixels, shell, arm, thick, steps):
    """(cost, voxels) of the cheapest cut near a voxel that parts one arm from the others; None: there is none."""
    inside = np.zeros(edited.flat.size, bool)
    inside[pixels] = True
    along = levels_within(inside, pixels[shell == arm], steps, inside.size)[pixels]
    here = along[np.searchsorted(pixels, at)]
    costs = edited.costs_of(pixels, BACKGROUND)
    costs[np.abs(along - here) > 1 + thick // 2] = np.inf
    costs[np.searchsorted(pixels, at)] = 0.0
    parted = cheapest_cut(pixels, costs, steps, shell == arm, (shell > 0) & (shell != arm))
    if parted is None:
        return None
    return float(edited.costs_of(pixels[parted], BACKGROUND).sum()), pixels[parted]
