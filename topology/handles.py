"""Loops in space, taken away: cut across the handle that makes them, or filled with a disc.

One side of the mask is grown again from a point of each component, the deepest voxel first, and only by voxels that
change no Betti number (`topology.simple`). What cannot be added in the end parts what was grown from itself: of the
foreground, surfaces across handles where they are thinnest; of the background, discs that span loops. Each such piece
is an edit, and is made if a count of the Betti numbers agrees, the cheapest first.
"""

import numpy as np
from numba import njit

from topology.components import label_components
from topology.edited_mask import BACKGROUND, FOREGROUND, off
from topology.grids import Connectivity
from topology.paths import pieces_at, rise, steps_of, tables, take, window_of

AT_ONCE = 1 << 14
"""Voxels that are looked at between two looks at the clock."""


@njit(cache=True, nogil=True)
def _reach(heap, n, at, steps, inside, grown, costs, sizes, places):
    """Put the neighbours of a grown voxel into the heap, also those that were passed over before; the new length."""
    for step in steps:
        other = at + step
        if inside[other] and not grown[other] and places[other] <= 0:
            heap[n] = other
            rise(heap, n, costs, sizes, places)
            n += 1
    return n


@njit(cache=True, nogil=True)
def _grow(heap, n, most, steps, window, tables, inside, grown, full, costs, sizes, places):
    """Look at up to so many voxels, the deepest first, and add those that are simple; what is left in the heap."""
    for _ in range(most):
        if n == 0:
            return 0
        at = np.int64(take(heap, n, costs, sizes, places))
        n -= 1
        own, other = pieces_at(grown, at, 1, full, window, tables)
        if own == 1 and other == 1:
            grown[at] = 1
            n = _reach(heap, n, at, steps, inside, grown, costs, sizes, places)
    return n


@njit(cache=True, nogil=True)
def _deepest(labels, depth, count):
    """The deepest voxel of each component, the first of equals."""
    best = np.full(count, -1)
    for at in range(labels.size):
        label = labels[at] - 1
        if label >= 0 and (best[label] < 0 or depth[at] > depth[best[label]]):
            best[label] = at
    return best


def _remainder(edited, side, pause):
    """Framed voxels of a side, uint8, that cannot be added when it is grown from a point of each component."""
    components, others = edited.components(side), edited.components(1 - side)
    # How deep a voxel lies is what a way to it from the other side costs.
    depth = edited.regions(1 - side, others.labels, len(others), anywhere=True, pause=pause).costs
    shape, full = edited.mask.shape, edited.full(side)
    steps, window = steps_of(shape, full), window_of(shape)
    inside = (edited.flat == side).view(np.uint8)
    grown = np.zeros(inside.size, np.uint8)
    if side == BACKGROUND:
        frame = np.ones(shape, bool)
        frame[edited.inner] = False
        grown[frame.ravel()] = 1
    costs, sizes, places = -depth, np.zeros(inside.size, np.int32), np.zeros(inside.size, np.int32)
    heap, n = np.empty(inside.size, np.int64), 0
    seeds = _deepest(components.labels.ravel(), depth, len(components))
    if side == BACKGROUND:
        seeds = seeds[1:]
        n = _shell(heap, np.flatnonzero(grown), steps, inside, grown, costs, sizes, places)
    grown[seeds] = 1
    for seed in seeds:
        n = _reach(heap, n, seed, steps, inside, grown, costs, sizes, places)
    while n:
        pause()
        n = _grow(heap, n, AT_ONCE, steps, window, tables(), inside, grown, full, costs, sizes, places)
    return inside & ~grown & 1


@njit(cache=True, nogil=True)
def _shell(heap, frame, steps, inside, grown, costs, sizes, places):
    """Put the neighbours of the frame into the heap; how many."""
    n = 0
    for at in frame:
        for step in steps:
            other = at + step
            if 0 <= other < inside.size and inside[other] and not grown[other] and places[other] <= 0:
                heap[n] = other
                rise(heap, n, costs, sizes, places)
                n += 1
    return n


def remove_loops(edited, wanted, pause):
    """Cut or fill loops of a volume until no more than wanted are left, or nothing more helps.

    wanted  Betti numbers; None: free
    """
    while edited.betti()[1] > wanted[1]:
        pieces = sorted(_pieces(edited, FOREGROUND, pause) + _pieces(edited, BACKGROUND, pause), key=lambda p: p[:3])
        made = False
        for _, _, _, side, voxels in pieces:
            pause()
            now = _try(edited, side, voxels, wanted, pause)
            if now is not None:
                made = True
            if now is not None and now[1] <= wanted[1]:
                return
        if not made:
            return


def _try(edited, side, voxels, wanted, pause):
    """Let a piece come over if that brings the Betti numbers nearer; they, or None where it does not."""
    before = edited.betti()
    edited.set(voxels, 1 - side, "open" if side == FOREGROUND else "fill", 1)
    if edited.betti()[1] < wanted[1]:
        edited.undo()
        voxels = _enough(edited, side, voxels, wanted, pause)
        edited.set(voxels, 1 - side, "open" if side == FOREGROUND else "fill", 1)
    now = edited.betti()
    if off(now, wanted) < off(before, wanted) and now[1] >= wanted[1]:
        return now
    edited.undo()
    return None


def _enough(edited, side, voxels, wanted, pause):
    """The part of a piece that has to come over where all of it would take too many loops away."""
    window = window_of(edited.mask.shape)
    edited.flat[voxels] = 1 - side
    left = list(voxels)
    for at in voxels[np.argsort(-edited.costs_of(voxels, 1 - side), kind="stable")]:
        pause()
        simple = pieces_at(edited.flat, at, side, edited.full(side), window, tables()) == (1, 1)
        before = None if simple else off(edited.betti(), wanted)
        edited.flat[at] = side
        if simple or off(edited.betti(), wanted) < before:
            left.remove(at)
        else:
            edited.flat[at] = 1 - side
    edited.flat[voxels] = side
    return np.array(left)


def _pieces(edited, side, pause):
    """Edits of one side that may take a loop away: (cost, size, first voxel, side, framed voxels)."""
    left = _remainder(edited, side, pause).reshape(edited.mask.shape)
    labels, count = label_components(left, connectivity=Connectivity.CLOSED)
    labels = labels.ravel()
    voxels = np.flatnonzero(labels)
    voxels = voxels[np.argsort(labels[voxels], kind="stable")]
    pieces = np.split(voxels, np.flatnonzero(np.diff(labels[voxels])) + 1) if count else []
    return [(edited.cost_of(each, 1 - side), len(each), int(each[0]), side, each) for each in pieces]
