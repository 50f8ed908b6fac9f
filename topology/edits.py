"""Edits of a mask by hand: connect, cut, fill a hole, remove a component.

The person says where, the map says how: the pixels that change cost the least (`topology.edited_mask`), and the Betti
numbers are counted before and after. "Here" means the pieces of the mask, or of its background, that lie nearest to
the pixel: pieces that meet only elsewhere count as two, so a gap in a ring can be closed and a ring be cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from topology.components import label_components
from topology.cuts import MOST_PIXELS, cheapest_cut, cross_sections, depths, levels_within, ridge
from topology.edited_mask import BACKGROUND, FOREGROUND, EditedMask
from topology.grids import Connectivity, as_map, as_mask, same_shape
from topology.paths import steps_of

Place = Sequence[int] | np.ndarray
"""A pixel: row and column, or plane, row and column."""
TRIED = 64
"""Paths that are tried before it is given up to close a gap."""
MOST_PIECES = 8
"""Pieces around a place that are looked at."""
FIRST_REACH = 2
"""How many pixels around a place are looked at first; more until what is sought is seen."""


class NoEdit(ValueError):
    """There is nothing at the place for this edit to change; the message says what is there."""


@dataclass(frozen=True)
class HandEdit:
    """One edit by hand, not yet made.

    kind          connect, cut, fill or remove
    pixels        (N, ndim) int64 pixels that change, in raster order
    adds          whether they become foreground, or background
    cost          sum over them of |value - threshold|, at least `topology.edited_mask.LEAST` each; 0 for those that the
                  map has so already
    betti_before, betti_after  counted on the whole mask
    """

    kind: str
    pixels: np.ndarray
    adds: bool
    cost: float
    betti_before: tuple[int, ...]
    betti_after: tuple[int, ...]

    def made(self, mask: ArrayLike) -> np.ndarray:
        """A copy of a mask, bool, with the edit made."""
        return changed(mask, self.pixels, self.adds)


def changed(mask: ArrayLike, pixels: ArrayLike, adds: bool) -> np.ndarray:
    """A copy of a mask, bool, in which these pixels, (N, ndim), are foreground or (`adds` false) background."""
    new = np.asarray(mask) != 0
    new[tuple(np.asarray(pixels).T)] = adds
    return new


def connect(
    values: ArrayLike,
    mask: ArrayLike,
    a: Place,
    b: Place | None = None,
    *,
    threshold: float = 0.5,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    check: Callable[[], object] | None = None,
) -> HandEdit:
    """Foreground along the cheapest path that connects two components, or closes a gap of one.

    values  (rows, columns) or (planes, rows, columns) real map; mask: of the same shape, as it is now
    a       a pixel in a gap: the two nearest pieces are connected through it; or one of a component: it is connected to
            the one that is reached at the least cost
    b       connect the components at a and b, perhaps by way of others; if they are one, close the gap between the
            places. A pixel of background stands for the nearest foreground
    check   called some times a second; what it raises ends the work
    returns HandEdit; NoEdit where nothing can be connected
    """
    edited = _start(values, mask, threshold, connectivity, check)
    places = [_place(edited, each) for each in (a, b) if each is not None]
    if b is not None:
        _join_two(edited, FOREGROUND, *places)
    elif edited.flat[places[0]] == FOREGROUND:
        _join_to_next(edited, FOREGROUND, places[0])
    else:
        _join_here(edited, FOREGROUND, places[0])
    return _finish(edited, "connect", True)


def cut(
    values: ArrayLike,
    mask: ArrayLike,
    a: Place,
    b: Place | None = None,
    *,
    threshold: float = 0.5,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    check: Callable[[], object] | None = None,
) -> HandEdit:
    """Background along the cheapest cut at a pixel, or between two.

    a       a pixel of foreground: cut across the structure there
    b       another one: the cheapest cut that parts them; or both in the background: open the cheapest way between them
    The rest as for `connect`.
    """
    edited = _start(values, mask, threshold, connectivity, check)
    places = [_place(edited, each) for each in (a, b) if each is not None]
    sides = {int(edited.flat[place]) for place in places}
    if len(sides) == 2:
        raise NoEdit("One pixel is foreground, the other background. Give two of one kind, or one of foreground.")
    if sides == {FOREGROUND} and b is not None:
        _cut_between(edited, *places)
    elif b is not None:
        _join_two(edited, BACKGROUND, *places)
    elif sides == {BACKGROUND}:
        raise NoEdit(f"The pixel {tuple(a)} is background already; cut at one of foreground.")
    elif edited.ndim == 2:
        _join_here(edited, BACKGROUND, places[0])
    else:
        _cut_across(edited, places[0])
    return _finish(edited, "cut", False)


def fill(
    values: ArrayLike,
    mask: ArrayLike,
    a: Place,
    *,
    threshold: float = 0.5,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    check: Callable[[], object] | None = None,
) -> HandEdit:
    """Foreground in the whole hole [cavity] that a pixel lies in; the rest as for `connect`."""
    return _give_up(_start(values, mask, threshold, connectivity, check), BACKGROUND, a, "fill")


def remove(
    values: ArrayLike,
    mask: ArrayLike,
    a: Place,
    *,
    threshold: float = 0.5,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    check: Callable[[], object] | None = None,
) -> HandEdit:
    """Background in the whole component that a pixel belongs to; the rest as for `connect`."""
    return _give_up(_start(values, mask, threshold, connectivity, check), FOREGROUND, a, "remove")


def _start(values, mask, threshold, connectivity, check):
    values, mask = as_map(values), as_mask(mask)
    same_shape(values, mask, "Map and mask")
    return EditedMask(values, threshold, connectivity, mask=mask, pause=check or (lambda: None))


def _place(edited, at):
    """Framed index of a pixel; a ValueError that names what is none."""
    shape = tuple(side - 2 for side in edited.mask.shape)
    numbers = tuple(at) if isinstance(at, tuple | list | np.ndarray) else (at,)
    whole = all(isinstance(k, int | np.integer) and not isinstance(k, bool) for k in numbers)
    if len(numbers) != len(shape) or not whole or not all(0 <= k < n for k, n in zip(numbers, shape, strict=True)):
        raise ValueError(f"{at!r} is no pixel of an array of shape {shape}: give {len(shape)} whole numbers in it.")
    return edited.index(numbers)


def _finish(edited, kind, adds):
    """The edit that has been tried on the mask."""
    pixels = np.unique(np.concatenate([group.pixels for group in edited.made]))
    after = edited.betti()
    edited.flat[pixels] = BACKGROUND if adds else FOREGROUND
    places = np.stack(np.unravel_index(pixels, edited.mask.shape), axis=1) - 1
    cost = edited.cost_of(pixels, FOREGROUND if adds else BACKGROUND)
    return HandEdit(kind, places, adds, cost, edited.betti(), after)


def _give_up(edited, side, a, kind):
    """Let the component at a pixel come over to the other side."""
    at = _place(edited, a)
    if edited.flat[at] != side:
        there, other = ("foreground", "a hole") if side == BACKGROUND else ("background", "a component")
        raise NoEdit(f"The pixel {tuple(a)} is {there}; to {kind}, give one in {other}.")
    components = edited.components(side)
    label = components.labels.ravel()[at]
    if side == BACKGROUND and label == 1:
        raise NoEdit(f"The background at {tuple(a)} is not enclosed: it is connected to the outside.")
    chosen = np.arange(1, len(components) + 1) == label
    edited.give_up(side, components, chosen, kind, 0 if side == FOREGROUND else edited.ndim - 1)
    return _finish(edited, kind, side == BACKGROUND)


def _take(edited, side, path, what):
    """Let the pixels of a path come over, if that changes the Betti numbers by one in all; whether it does."""
    before = edited.betti()
    edited.set(path[edited.flat[path] != side], side, what, 0)
    if sum(abs(now - was) for now, was in zip(edited.betti(), before, strict=True)) == 1:
        return True
    edited.undo()
    return False


def _nothing(side, where):
    return NoEdit(
        f"Nothing to connect {where}: no two pieces of foreground are found that a path joins without side effects."
        if side == FOREGROUND
        else f"Nothing to cut {where}: no two pieces of background are found between which the mask is cut. Give two"
        " pixels, one on each side of the cut."
    )


def _join_to_next(edited, side, at):
    """Join the component at a pixel to the one that is reached at the least cost."""
    components = edited.components(side)
    regions = edited.regions(side, components.labels, len(components), every=True)
    paths, mine = regions.paths(), components.labels.ravel()[at]
    for k in _in_order(edited, paths, (paths.labels == mine).any(1), at, at):
        if _take(edited, side, regions.between(*paths.ends[k]), "connect"):
            return
    raise _nothing(side, "to this component")


def _join_here(edited, side, at):
    """Join the two pieces of a side that lie nearest to a pixel, through it."""
    place = np.array(np.unravel_index(at, edited.mask.shape))
    reach = FIRST_REACH
    while True:
        labels, count, limit = _pieces_within(edited, side, place, reach)
        if count > 1 and _join_pieces(edited, side, at, labels, count, limit):
            return
        if (place - reach <= 0).all() and (place + reach >= np.array(edited.mask.shape) - 1).all():
            raise _nothing(side, f"at {tuple((place - 1).tolist())}")
        reach = reach * 4 // 3 + 1


def _pieces_within(edited, side, place, reach):
    """Framed labels of the pieces that a side has within a ball, how many, and what all other pixels of it cost."""
    box = tuple(slice(max(k - reach, 0), k + reach + 1) for k in place)
    here = np.ogrid[tuple(slice(each.start, min(each.stop, n)) for each, n in zip(box, edited.mask.shape, strict=True))]
    ball = sum((axis - k) ** 2 for axis, k in zip(here, place, strict=True)) <= reach**2
    connectivity = Connectivity.CLOSED if edited.full(side) else Connectivity.OPEN
    found, count = label_components((edited.mask[box] == side) & ball, connectivity=connectivity)
    labels = np.zeros(edited.mask.shape, np.int32)
    labels[box] = found
    between = np.abs(edited.values[box][ball & (edited.mask[box] != side)] - edited.prices[0])
    return labels, count, float(np.maximum(np.nan_to_num(between), edited.prices[1]).sum(dtype=np.float64))


def _join_pieces(edited, side, at, labels, count, limit):
    """Join two of the pieces through a pixel, those nearest to it first; whether that could be done."""
    arms = []
    for piece in range(1, min(count, MOST_PIECES) + 1):
        way = edited.regions(side, (labels == piece).astype(np.int32), 1, limit=limit, every=True).way(at)
        if len(way):
            arms.append((edited.cost_of(way, side), len(way), piece, way))
    arms.sort(key=lambda arm: arm[:3])
    pairs = [(one[0] + two[0], k, one[3], two[3]) for k, two in enumerate(arms) for one in arms[:k]]
    for _, _, one, two in sorted(pairs, key=lambda pair: pair[:2]):
        way = np.union1d(one, two)
        if _take(edited, side, way, "connect"):
            if _parts_more(edited, side, way):
                return True
            edited.undo()
    return False


def _parts_more(edited, side, way):
    """Whether what a way has parted, if anything, is more than the way itself: no corner is cut off."""
    around = np.unique(way[:, None] + steps_of(edited.mask.shape, edited.full(1 - side)))
    components = edited.components(1 - side)
    beside = np.unique(components.labels.ravel()[around[edited.flat[around] != side]])
    return len(beside) < 2 or components.pixels[beside - 1].min() > len(way)


def _join_two(edited, side, first, second):
    """Join the components at two pixels at the least cost, perhaps by way of others; close the gap of a single one."""
    components = edited.components(side)
    labels = components.labels.ravel()
    ends = [_nearest(edited, side, at) for at in (first, second)]
    one, two = (int(labels[end]) for end in ends)
    if one == two:
        _close(edited, side, components.labels, one, ends)
        return
    pair = np.where(components.labels == one, 1, np.where(components.labels == two, 2, 0)).astype(np.int32)
    regions = edited.regions(side, pair, 2, every=True)
    paths = regions.paths()
    direct = [
        (paths.costs[k], [regions.between(*paths.ends[k])]) for k in _in_order(edited, paths, True, first, second)[:1]
    ]
    regions = edited.regions(side, components.labels, len(components), every=True)
    route = _route(regions.paths(), len(components), one - 1, two - 1)
    ways = direct + [(sum(cost for cost, _ in route), [regions.between(*ends) for _, ends in route])] * bool(route)
    for _, paths in sorted(ways, key=lambda way: way[0]):
        made = len(edited.made)
        edited.join(side, components, paths, most=len(components), kind="connect", dimension=0)
        joined = edited.components(side).labels.ravel()
        if joined[ends[0]] == joined[ends[1]]:
            return
        while len(edited.made) > made:
            edited.undo()
    raise _nothing(side, "between these two")


def _nearest(edited, side, at):
    """The pixel of a side that lies nearest to a pixel, the first of equals."""
    if edited.flat[at] == side:
        return at
    members = np.argwhere(edited.mask == side)
    if not len(members):
        raise _nothing(side, "in an empty mask")
    away = ((members - np.array(np.unravel_index(at, edited.mask.shape))) ** 2).sum(1)
    return int(np.ravel_multi_index(tuple(members[np.argmin(away)]), edited.mask.shape))


def _in_order(edited, paths, chosen, first, second):
    """Numbers of the chosen paths, the cheapest first, of equal ones the nearest to the middle of two pixels."""
    shape = edited.mask.shape
    middle = sum(np.array(np.unravel_index(at, shape)) for at in (first, second)) / 2
    away = ((np.stack(np.unravel_index(paths.ends, shape), axis=-1).mean(1) - middle) ** 2).sum(1)
    order = np.lexsort((away, paths.sizes, paths.costs.round(12)))
    return order[np.broadcast_to(chosen, len(paths))[order]]


def _route(paths, count, start, stop):
    """(cost, ends) of the paths of the cheapest way from one component to another over others; empty: there is none."""
    low, high = paths.labels.min(1) - 1, paths.labels.max(1) - 1
    _, first = np.unique(low * np.int64(count) + high, return_index=True)
    costs = paths.costs[first] + np.finfo(float).tiny  # a path that costs nothing is one, too
    graph = csr_array((costs, (low[first], high[first])), shape=(count, count))
    _, before = dijkstra(graph, directed=False, indices=start, return_predecessors=True)
    number = {(int(low[k]), int(high[k])): k for k in first}
    route = []
    while stop != start:
        if before[stop] < 0:
            return []
        k = number[tuple(sorted((int(stop), int(before[stop]))))]
        route.append((paths.costs[k], paths.ends[k]))
        stop = int(before[stop])
    return route


def _close(edited, side, labels, label, ends):
    """Join what a component has around two of its pixels, by a path that leaves it."""
    places = [np.array(np.unravel_index(end, labels.shape)) for end in ends]
    reach = np.sqrt(((places[0] - places[1]) ** 2).sum()) / 2
    members = np.argwhere(labels == label)
    away = [((members - place) ** 2).sum(1) for place in places]
    pieces = np.zeros(labels.shape, np.int32)
    for number, mine, others in ((1, *away), (2, *away[::-1])):
        pieces[tuple(members[(mine <= reach**2) & (mine < others)].T)] = number
    regions = edited.regions(side, pieces, 2, every=True)
    paths = regions.paths()
    for k in _in_order(edited, paths, True, *ends)[:TRIED]:
        if _take(edited, side, regions.between(*paths.ends[k]), "connect"):
            return
    raise _nothing(side, "between these two")


def _cut_between(edited, first, second):
    """Part two pixels of a component, leaving around each as much as it is thick there."""
    steps, inside = steps_of(edited.mask.shape, edited.full(FOREGROUND)), edited.flat == FOREGROUND
    around = levels_within(inside, np.array([first]), steps, inside.size)
    pixels, apart = np.flatnonzero(around), int(around[second]) - 1
    if apart < 0:
        raise NoEdit("The two pixels are in different components already.")
    if apart < 2:
        raise NoEdit("The two pixels touch; there is nothing between them to cut.")
    if len(pixels) > MOST_PIXELS:
        raise NoEdit(
            f"The component has {len(pixels)} pixels; at most {MOST_PIXELS} are searched for a cut between two. Cut at"
            " one pixel."
        )
    costs, depth = edited.costs_of(pixels, BACKGROUND), depths(edited)
    middles = [ridge(depth, at, steps_of(edited.mask.shape, True)) for at in (first, second)]
    most = (apart - 1) // 2
    # What is left around each: as much as it is thick there; where that leaves nothing between them, less.
    for around_each in (
        [([at, middle], depth[middle]) for at, middle in zip((first, second), middles, strict=True)],
        [([at], depth[at]) for at in (first, second)],
        [([at], 0) for at in (first, second)],
    ):
        near = [
            levels_within(inside, np.array(starts), steps, min(int(reach), most))[pixels] > 0
            for starts, reach in around_each
        ]
        if (near[0] & near[1]).any():
            continue
        parted = cheapest_cut(pixels, costs, steps, *near)
        if parted is not None:
            edited.set(pixels[parted], BACKGROUND, "cut", 0)
            return
    raise NoEdit("The two pixels are so close that nothing lies between them.")


def _cut_across(edited, at):
    """Cut across the structure that passes through a voxel, where it is cheapest nearby."""
    for voxels in cross_sections(edited, at):
        if _take(edited, BACKGROUND, voxels, "cut"):
            return
    raise _nothing(BACKGROUND, "here")
