"""Removes loops in space: by a cut across the handle, or by a disc.

One side of the mask is grown again from a point of each component, the deepest voxel first, and only by voxels that
change no Betti number (`topology.simple`). What cannot be added in the end parts what was grown from itself: of the
foreground, surfaces across handles where they are thinnest; of the background, discs that span loops. Each such piece
is an edit, and is made if a count of the Betti numbers agrees, the cheapest first.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from topology.components import label_components
from topology.edited_mask import BACKGROUND, FOREGROUND, EditedMask, off
from topology.grids import Connectivity
from topology.paths import empty_heap, pieces_at, pop, push, steps_of, tables, window_of

FREE, WAITING, TAKEN = 0, 1, 2
"""What a voxel is: not grown yet; in the heap; grown, or of the other side."""
AT_ONCE = 1 << 14
"""Voxels that are looked at between two looks at the clock."""


@njit(cache=True, nogil=True)
def _reach(heap, n, grown, steps, free, depth):
    """Put the neighbours of grown voxels into the heap, also those that were passed over before; the new length."""
    for at in grown:
        for step in steps:
            other = at + step
            if 0 <= other < free.size and free[other] == FREE:
                free[other] = WAITING
                n = push(heap[0], heap[1], n, -depth[other], 0, other)
    return n


@njit(cache=True, nogil=True)
def _grow(heap, n, most, steps, window, tables, free, grown, full, depth):
    """Look at up to so many voxels, the deepest first, and add those that are simple; what is left in the heap."""
    for _ in range(most):
        if n == 0:
            return 0
        at, n = pop(heap[0], heap[1], n)
        own, other = pieces_at(grown, at, 1, full, window, tables)
        if own == 1 and other == 1:
            grown[at] = 1
            free[at] = TAKEN
            n = _reach(heap, n, np.array([at]), steps, free, depth)
        else:
            free[at] = FREE
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


def _remainder(edited, side):
    """Framed voxels of a side, uint8, that cannot be added when it is grown from a point of each component."""
    components, others = edited.components(side), edited.components(1 - side)
    # How deep a voxel lies is what a way to it from the other side costs.
    depth = edited.regions(1 - side, others.labels, len(others), anywhere=True).costs
    shape, full = edited.mask.shape, edited.full(side)
    steps, window = steps_of(shape, full), window_of(shape)
    free = np.where(edited.flat == side, FREE, TAKEN).astype(np.int8)
    grown = np.zeros(free.size, np.uint8)
    seeds = _deepest(components.labels.ravel(), depth, len(components))
    if side == BACKGROUND:  # the outside is grown from the frame
        frame = np.ones(shape, bool)
        frame[edited.inner] = False
        seeds = np.append(np.flatnonzero(frame), seeds[1:])
    grown[seeds] = 1
    free[seeds] = TAKEN
    heap = empty_heap(free.size)
    n = _reach(heap, 0, seeds, steps, free, depth)
    while n:
        edited.pause()
        n = _grow(heap, n, AT_ONCE, steps, window, tables(), free, grown, full, depth)
    return (free == FREE).view(np.uint8)


def remove_loops(edited: EditedMask, wanted: tuple[int | None, ...]) -> None:
    """Cut or fill loops of a volume until no more than wanted are left, or nothing more helps.

    wanted  Betti numbers; None: free
    """
    most = wanted[1]
    while most is not None and edited.betti()[1] > most:
        pieces = sorted(_pieces(edited, FOREGROUND) + _pieces(edited, BACKGROUND), key=lambda piece: piece[:3])
        made = False
        for _, _, _, side, voxels in pieces:
            edited.pause()
            now = _try(edited, side, voxels, wanted)
            made |= now is not None
            if now is not None and now[1] <= most:
                return
        if not made:
            return


def _try(edited, side, voxels, wanted):
    """Let a piece come over if that brings the Betti numbers nearer; they, or None where it does not."""
    before = edited.betti()
    edited.set(voxels, 1 - side, "open" if side == FOREGROUND else "fill", 1)
    if edited.betti()[1] < wanted[1]:
        edited.undo()
        voxels = _enough(edited, side, voxels, wanted)
        edited.set(voxels, 1 - side, "open" if side == FOREGROUND else "fill", 1)
    now = edited.betti()
    if off(now, wanted) < off(before, wanted) and now[1] >= wanted[1]:
        return now
    edited.undo()
    return None


def _enough(edited, side, voxels, wanted):
    """The part of a piece that has to come over where all of it would take too many loops away."""
    left = list(voxels)
    edited.flat[voxels] = 1 - side
    try:
        for at in voxels[np.argsort(-edited.costs_of(voxels, 1 - side), kind="stable")]:
            edited.pause()
            if _may_stay(edited, side, at, wanted):
                left.remove(at)
    finally:
        edited.flat[voxels] = side
    return np.array(left)


def _may_stay(edited, side, at, wanted):
    """Give a voxel back to a side if that changes no Betti number, or brings them nearer; whether it was given."""
    window = window_of(edited.mask.shape)
    simple = pieces_at(edited.flat, at, side, edited.full(side), window, tables()) == (1, 1)
    before = None if simple else off(edited.betti(), wanted)
    edited.flat[at] = side
    if simple or off(edited.betti(), wanted) < before:
        return True
    edited.flat[at] = 1 - side
    return False


def _pieces(edited, side):
    """Edits of one side that may take a loop away: (cost, size, first voxel, side, framed voxels)."""
    left = _remainder(edited, side).reshape(edited.mask.shape)
    labels, count = label_components(left, connectivity=Connectivity.CLOSED)
    labels = labels.ravel()
    voxels = np.flatnonzero(labels)
    voxels = voxels[np.argsort(labels[voxels], kind="stable")]
    pieces = np.split(voxels, np.flatnonzero(np.diff(labels[voxels])) + 1) if count else []
    return [(edited.cost_of(each, 1 - side), len(each), int(each[0]), side, each) for each in pieces]
