"""Cheapest paths that join the components of one side of a mask, foreground or background.

A pixel of the other side costs what its value must change to come over, and at least a stated sum. All components grow
at once, the nearest pixel first (Dijkstra's algorithm from many sources; of equal costs the fewer pixels, then the
smaller index), so plateaus are walked through; where two grown regions meet, the two ways back are a path. Regions
start only at pixels that change no Betti number when they come over, or that join components of different numbers at
once (`topology.simple`), and a cheapest path touches nothing else on its way. So each path joins exactly two components
and changes nothing else, and a minimum spanning tree of the meeting regions is one of all pairs of components
(Mehlhorn, Information Processing Letters 27, 1988).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit

from topology.components import root_of
from topology.simple import pieces_in_space, ring_pieces, space_tables

AT_ONCE = 1 << 16
"""Pixels that are settled between two looks at the clock."""
INDEX_BITS = 33
"""Of a tag in a heap; the others hold how many pixels a way has."""
WAITING, SETTLED, BLOCKED = 1, -1, -2
"""What a pixel is: in the heap; reached by its cheapest way; not to be entered. 0: not reached yet."""


def steps_of(shape: tuple[int, ...], full: bool) -> np.ndarray:
    """(K,) int64 offsets of the neighbours in an array of this shape, by sides first, or (full) by corners too."""
    steps = np.stack(np.unravel_index(np.arange(3 ** len(shape)), (3,) * len(shape)), axis=1) - 1
    reach = np.abs(steps).sum(1)
    steps = steps[np.argsort(reach, kind="stable")][1 : None if full else 1 + 2 * len(shape)]
    return steps @ np.array([int(np.prod(shape[k + 1 :])) for k in range(len(shape))])


def window_of(shape: tuple[int, ...]) -> np.ndarray:
    """(3^ndim,) int64 offsets of a pixel's window in raster order, itself included."""
    return np.sort(np.append(steps_of(shape, True), 0))


@cache
def tables() -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Tables of `pieces_at`."""
    return np.ascontiguousarray(ring_pieces().astype(np.int64)), space_tables()


@njit(cache=True, nogil=True)
def pieces_at(mask, at, side, full, window, tables):
    """Pieces of a side, and of the other, that the window of a pixel holds and that touch the pixel.

    full: the side is connected through corners too
    """
    ring, space = tables
    code = 0
    for k in range(window.size):
        code |= np.int64((mask[at + window[k]] == side) == full) << k
    if window.size == 9:
        closed, other = ring[0, code], ring[1, 511 - code]
    else:
        closed, other = pieces_in_space(code, space)
    return (closed, other) if full else (other, closed)


@njit(cache=True, nogil=True)
def cost_at(values, at, prices, side):
    """What it costs that a pixel comes over to a side, 0 where its value belongs there; prices: (threshold, least)."""
    threshold, least = prices
    if (values[at] > threshold) == (side == 1):
        return 0.0
    return max(abs(np.float64(values[at]) - threshold), least)


@njit(cache=True, nogil=True)
def push(costs, tags, n, cost, size, at):
    """Put a pixel into a heap of n; the new length. Less cost comes first, then fewer pixels, then a smaller index."""
    tag = np.int64(size) << INDEX_BITS | at
    k = n
    while k > 0:
        above = (k - 1) // 4
        if costs[above] < cost or (costs[above] == cost and tags[above] < tag):
            break
        costs[k] = costs[above]
        tags[k] = tags[above]
        k = above
    costs[k] = cost
    tags[k] = tag
    return n + 1


@njit(cache=True, nogil=True)
def pop(costs, tags, n):
    """Take the first pixel off a heap of n: the pixel, and the new length."""
    first = tags[0] & ((np.int64(1) << INDEX_BITS) - 1)
    n -= 1
    cost, tag = costs[n], tags[n]
    k = 0
    while True:
        child = 4 * k + 1
        if child >= n:
            break
        for other in range(child + 1, min(child + 4, n)):
            if costs[other] < costs[child] or (costs[other] == costs[child] and tags[other] < tags[child]):
                child = other
        if cost < costs[child] or (cost == costs[child] and tag < tags[child]):
            break
        costs[k] = costs[child]
        tags[k] = tags[child]
        k = child
    costs[k] = cost
    tags[k] = tag
    return first, n


def empty_heap(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A heap for so many pixels: costs, and numbers of pixels with indices. What is not used of it takes no memory."""
    return np.empty(size, np.float64), np.empty(size, np.int64)


@njit(cache=True, nogil=True)
def _labels_around(labels, at, steps, found):
    """Different labels of the neighbours of a pixel, written into `found`; how many."""
    n = 0
    for step in steps:
        label = labels[at + step]
        if label == 0:
            continue
        known = False
        for k in range(n):
            known |= found[k] == label
        if not known:
            found[n] = label
            n += 1
    return n


@njit(cache=True, nogil=True)
def _start(mask, labels, values, prices, side, full, steps, window, tables, state, anywhere):
    """Put pixels from which ways may start into the heap; how many, and (label, label, pixel) of those that join."""
    heap, costs, sizes, nearest, _, status = state
    found = np.empty(steps.size, np.int32)
    joined = np.empty((64, 3), np.int64)
    n = pairs = 0
    for at in range(mask.size):
        if mask[at] == side or np.isnan(values[at]):
            status[at] = BLOCKED
            continue
        touches = _labels_around(labels, at, steps, found)
        if touches == 0:
            continue
        own, other = (1, 1) if anywhere else pieces_at(mask, at, side, full, window, tables)
        if own == 1 and other == 1:
            costs[at] = cost_at(values, at, prices, side)
            sizes[at] = 1
            nearest[at] = found[0]
            status[at] = WAITING
            n = push(heap[0], heap[1], n, costs[at], 1, at)
            continue
        status[at] = BLOCKED
        if own == touches and other == (own if window.size == 9 else 1):
            for k in range(1, touches):
                if pairs == len(joined):
                    joined = np.concatenate((joined, np.empty_like(joined)))
                joined[pairs, 0], joined[pairs, 1], joined[pairs, 2] = found[0], found[k], at
                pairs += 1
    return n, joined[:pairs].copy()


@njit(cache=True, nogil=True)
def _unite(parent, a, b, cost, apart):
    """Note that a path of this cost joins two components; apart: how many are not yet joined, the costliest path."""
    a, b = root_of(parent, np.int64(a)), root_of(parent, np.int64(b))
    if a != b:
        parent[max(a, b)] = min(a, b)
        apart[0] -= 1
        apart[1] = max(apart[1], cost)


@njit(cache=True, nogil=True)
def _spread(values, prices, side, steps, state, n, most, limit, parent, apart):
    """Settle at most so many pixels; the number left in the heap, 0 when no way of at most `limit` is left.

    A way costs what its pixels cost, so the first neighbour to be settled is the best to come from, and no pixel in
    the heap ever becomes cheaper. Ends early once all are joined: dearer paths than those found by then are in no
    spanning tree.
    """
    (heap_costs, tags), costs, sizes, nearest, back, status = state
    for _ in range(most):
        if n == 0 or heap_costs[0] > (min(limit, apart[1]) if apart[0] == 0 else limit):
            return 0
        at, n = pop(heap_costs, tags, n)
        status[at] = SETTLED
        for k in range(steps.size):
            other = at + steps[k]
            if status[other] == 0:
                costs[other] = costs[at] + cost_at(values, other, prices, side)
                sizes[other] = sizes[at] + 1
                nearest[other] = nearest[at]
                back[other] = k + 1
                status[other] = WAITING
                n = push(heap_costs, tags, n, costs[other], sizes[other], other)
            elif status[other] == SETTLED:
                if nearest[other] != nearest[at]:
                    _unite(parent, nearest[at], nearest[other], costs[at] + costs[other], apart)
            elif status[other] == WAITING and back[other] > k + 1:
                # Of ways that are equal, the one that goes by sides.
                before = other - steps[back[other] - 1]
                if costs[before] == costs[at] and sizes[before] == sizes[at]:
                    back[other] = k + 1
                    nearest[other] = nearest[at]
    return n


@njit(cache=True, nogil=True)
def _meetings(steps, nearest, status):
    """Neighbouring settled pixels of different regions: (first label, second label, pixel, pixel)."""
    ahead = steps[steps > 0]
    total = 0
    for at in range(status.size):
        if status[at] == SETTLED:
            for step in ahead:
                total += status[at + step] == SETTLED and nearest[at + step] != nearest[at]
    labels = np.empty((total, 2), np.int32)
    pixels = np.empty((total, 2), np.int64)
    n = 0
    for at in range(status.size):
        if status[at] == SETTLED:
            for step in ahead:
                if status[at + step] == SETTLED and nearest[at + step] != nearest[at]:
                    labels[n] = nearest[at], nearest[at + step]
                    pixels[n] = at, at + step
                    n += 1
    return labels, pixels


@njit(cache=True, nogil=True)
def _costs_at(values, status, prices, side):
    costs = np.empty(status.size)
    for k in range(status.size):
        costs[k] = cost_at(values, status[k], prices, side)
    return costs


@dataclass(frozen=True)
class Paths:
    """Cheapest paths between components, the cheapest first; several may join the same two.

    labels  (K, 2) int32 the components that each joins
    costs   (K,) float64 sum of what its pixels must change
    sizes   (K,) int64 its pixels
    ends    (K, 2) int64 the two framed pixels where the regions meet; the same one twice where a single pixel joins
    """

    labels: np.ndarray
    costs: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.costs)


class Regions:
    """What each component of one side reaches at the least cost.

    mask, labels, values  framed by one pixel: uint8 0 or 1, background outside; int32 components of the side, 0
                          elsewhere; the map, NaN outside
    count                 of the components
    prices                (threshold, what a pixel costs at least)
    side, full            which side, 1 or 0, and whether it is connected through corners too
    limit                 ways that cost more are not looked for
    anywhere              ways may start wherever they touch a component, also where that changes a Betti number
    every                 look for ways to every pixel, also once all components are joined
    pause                 called some times a second; what it raises ends the search
    costs                 (framed pixels,) float64 what the way to each pixel costs; 0 where none leads
    """

    def __init__(
        self,
        mask: np.ndarray,
        labels: np.ndarray,
        count: int,
        values: np.ndarray,
        prices: tuple[float, float],
        side: int,
        full: bool,
        *,
        limit: float = np.inf,
        anywhere: bool = False,
        every: bool = False,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        shape = mask.shape
        self.steps, window = steps_of(shape, full), window_of(shape)
        mask, labels, values = mask.ravel(), labels.ravel(), values.ravel()
        # Zeros that are never written take no memory, and few regions grow far.
        size = mask.size
        self.costs, self._sizes = np.zeros(size, np.float64), np.zeros(size, np.int32)
        self._nearest, self._back, self._status = (np.zeros(size, kind) for kind in (np.int32, np.int8, np.int8))
        state = (empty_heap(size), self.costs, self._sizes, self._nearest, self._back, self._status)
        n, self._joined = _start(
            mask, labels, values, prices, side, full, self.steps, window, tables(), state, anywhere
        )
        self._alone = _costs_at(values, self._joined[:, 2], prices, side)
        parent, apart = np.arange(count + 1), np.array([np.inf if anywhere or every else count - 1.0, 0.0])
        for (first, second, _), cost in zip(self._joined, self._alone, strict=True):
            _unite(parent, first, second, cost, apart)
        while n:
            pause()
            n = _spread(values, prices, side, self.steps, state, n, AT_ONCE, limit, parent, apart)
        pause()
        self._limit = limit
        self._corners = np.setdiff1d(self.steps, steps_of(shape, False))

    def paths(self) -> Paths:
        """Paths, among them a minimum spanning tree of all components."""
        labels, ends = _meetings(self.steps, self._nearest, self._status)
        alone = self._joined
        labels = np.concatenate([alone[:, :2], labels])
        costs = np.concatenate([self._alone, self.costs[ends].sum(1)])
        sizes = np.concatenate([np.ones(len(alone), np.int64), self._sizes[ends].sum(1)])
        ends = np.concatenate([alone[:, [2, 2]], ends])
        order = np.lexsort((ends[:, 0], np.isin(abs(ends[:, 1] - ends[:, 0]), self._corners), sizes, costs))
        order = order[costs[order] <= self._limit]
        return Paths(labels[order], costs[order], sizes[order], ends[order])

    def between(self, first: int, second: int) -> np.ndarray:
        """Framed pixels of a path in an order in which they can come over: from either component to the middle."""
        way = self.way(first)
        return way if first == second else np.concatenate([way, self.way(second)])

    def way(self, at: int) -> np.ndarray:
        """Framed pixels from the nearest component to a pixel; empty where no way leads there."""
        if self._nearest[at] == 0 and self._status[at] != BLOCKED:
            return np.empty(0, np.int64)
        way = [int(at)]
        while self._back[way[-1]]:
            way.append(way[-1] - int(self.steps[self._back[way[-1]] - 1]))
        return np.array(way[::-1])
