"""Components and holes that a mask lacks, added where its map nearly has them.

A bar of the map that the threshold misses says where: a peak just below it or a saddle just above it that keeps two
peaks together (components); a pit just above it or a saddle just below it that leaves a ring open (holes, cavities).
Of the nearest ones those are taken first that cost the least change, each only if a count of the Betti numbers agrees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from topology.cuts import cross_sections
from topology.edited_mask import BACKGROUND, FOREGROUND, EditedMask, off
from topology.paths import steps_of
from topology.persistence import persistence

CONSIDERED = 64
"""Bars beyond those lacking whose change is worked out before the cheapest are chosen."""
AT_ONCE = 128
"""Edits that are made before a count."""


def add_lacking(edited: EditedMask, wanted: Sequence[int | None]) -> None:
    """Add components and holes [cavities] until none lacks or no bar is left to try.

    wanted  Betti numbers; None: free
    """
    top, failed = edited.ndim - 1, set[tuple[str, int]]()
    while True:
        have = edited.betti()
        lacking = [0 if want is None else max(want - has, 0) for want, has in zip(wanted, have, strict=True)]
        room = {dimension: lacking[dimension] for dimension in (0, top) if lacking[dimension]}
        if not room:
            return
        batch = []
        for dimension, number in room.items():
            found = [each for each in _proposals(edited, dimension, number) if each[2:4] not in failed]
            batch += found[:number]
        if not batch:
            return
        for start in range(0, len(batch), AT_ONCE):
            _make(edited, batch[start : start + AT_ONCE], wanted, failed)


def _make(edited, batch, wanted, failed):
    """Make those edits of a batch that each bring the numbers nearer by one; note the others."""
    edited.pause()
    before = off(edited.betti(), wanted)
    for _, _, kind, _, dimension, side, pixels in batch:
        edited.set(pixels[edited.flat[pixels] != side], side, kind, dimension)
    if off(edited.betti(), wanted) <= before - len(batch):
        return
    for _ in batch:
        edited.undo()
    if len(batch) == 1:
        failed.add(batch[0][2:4])
        return
    half = len(batch) // 2
    _make(edited, batch[:half], wanted, failed)
    _make(edited, batch[half:], wanted, failed)


def _proposals(edited, dimension, number):
    """Edits that may add a feature, the cheapest first: (cost, size, kind, place, dimension, side, framed pixels)."""
    values = edited.map()
    bars = persistence(values, connectivity=edited.connectivity, dimensions=[dimension])
    threshold = float(edited.threshold)
    below, above = threshold - bars.birth_values.astype(np.float64), bars.death_values.astype(np.float64) - threshold
    missed = (below >= 0) | (above > 0)
    distance = np.where(below >= 0, below, above)
    order = np.flatnonzero(missed)
    order = order[np.argsort(distance[order], kind="stable")][: CONSIDERED + 2 * number]
    framed = np.pad(values, 1, constant_values=np.nan).ravel()
    regions, found = {}, []
    for k in order:
        appears = bool(below[k] >= 0)
        place = (bars.births if appears else bars.deaths)[k]
        side = FOREGROUND if appears else BACKGROUND
        kind = (("split", "plant"), ("punch", "close"))[min(dimension, 1)][appears]
        at = edited.index(place)
        pixels = np.array([at])
        if kind == "split" and edited.ndim == 3:
            pixels = next(cross_sections(edited, at), pixels)
        elif kind in ("split", "close"):
            if side not in regions:
                regions[side] = _regions(edited, side)
            pixels = _through(edited, framed, regions[side], at, side)
        cost = edited.cost_of(pixels, side)
        found.append((cost, len(pixels), kind, at, dimension, side, pixels))
    return sorted(found, key=lambda each: each[:4])


def _regions(edited, side):
    components = edited.components(side)
    return edited.regions(side, components.labels, len(components), every=True)


def _through(edited, values, regions, saddle, side):
    """Framed pixels of the cheapest ways from a saddle to a side, one from each piece of the saddle's way up (down)."""
    steps = steps_of(edited.mask.shape, edited.full(side))
    sign = 1 if side == FOREGROUND else -1
    around = [saddle + step for step in steps if not np.isnan(values[saddle + step])]
    ahead = sorted((o for o in around if sign * values[o] >= sign * values[saddle]), key=lambda o: -sign * values[o])
    taken = {o for o in ahead if edited.flat[o] == side}
    ways = [np.array([saddle])]
    for other in ahead:
        if other not in taken and not any(other + step in taken for step in steps):
            ways.append(regions.way(other))
        taken.add(other)
    return np.unique(np.concatenate(ways))
