"""A mask cut from a map, with its components, edits and their costs.

A pixel whose state differs from the map's costs |value - threshold|, which is how sure the map is of it, and at least
`LEAST` of the mean over the map: a pixel at the threshold is not free, or changing a thousand of them would be. One
that is changed back costs nothing. Map and mask are framed by one pixel of outside, so that no neighbour needs a check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numba import njit

from topology.components import betti_numbers, label_components, label_holes
from topology.grids import Connectivity, is_closed
from topology.paths import Regions, cost_at, pieces_at, steps_of, tables, window_of

FOREGROUND, BACKGROUND = 1, 0
LEAST = 0.1
"""What a pixel costs at least, in units of the mean of |value - threshold| over the pixels that are not at it."""


def off(have: Sequence[int], wanted: Sequence[int | None]) -> int:
    """How far Betti numbers are from those wanted; None is free."""
    return sum(abs(has - want) for has, want in zip(have, wanted, strict=True) if want is not None)


@dataclass(frozen=True)
class Edit:
    """One change of a mask.

    kind       erase, bridge, plant or split a component; fill, open, close or punch a loop [cavity]
    dimension  of the feature: 0 component, 1 loop, 2 cavity
    position   the pixel that changes most
    box        half open: (start, stop)
    pixels     how many change
    change     the largest change of a value
    cost       sum of the changes of its pixels, each at least `LEAST`
    """

    kind: str
    dimension: int
    position: tuple[int, ...]
    box: tuple[tuple[int, ...], ...]
    pixels: int
    change: float
    cost: float


@dataclass(frozen=True, eq=False)
class Edits(Sequence[Edit]):
    """Many edits, a column for each fact of `Edit`; a sequence of Edit."""

    kinds: np.ndarray
    dimensions: np.ndarray
    positions: np.ndarray
    boxes: np.ndarray
    pixels: np.ndarray
    changes: np.ndarray
    costs: np.ndarray

    @classmethod
    def none(cls, ndim: int) -> Edits:
        """No edit of an array with so many axes."""
        empty = np.empty(0, np.int64)
        places = empty.reshape(0, ndim)
        return cls(empty.astype(str), empty, places, np.empty((0, 2, ndim), np.int64), empty, empty * 1.0, empty * 1.0)

    def sorted(self) -> Edits:
        """The most expensive first; of equal ones the order stays."""
        order = np.argsort(-self.costs, kind="stable")
        return Edits(*(getattr(self, each.name)[order] for each in fields(self)))

    def __len__(self) -> int:
        return len(self.costs)

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return tuple(self[each] for each in range(*k.indices(len(self))))
        return Edit(
            str(self.kinds[k]),
            int(self.dimensions[k]),
            tuple(self.positions[k].tolist()),
            tuple(map(tuple, self.boxes[k].tolist())),
            int(self.pixels[k]),
            float(self.changes[k]),
            float(self.costs[k]),
        )

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", ..." if len(self) > 3 else "")
        return f"{len(self)} edits: [{shown}]"


@dataclass(frozen=True)
class _Group:
    """Edits of one kind made together: their framed pixels, one edit after the other, and where each starts."""

    kind: str
    dimension: int
    pixels: np.ndarray
    starts: np.ndarray


@njit(cache=True, nogil=True)
def _facts(labels, values, prices, side, count):
    """(count + 1,) cost of giving up each component of a side, its pixels without the frame, and its first pixel."""
    masses = np.zeros(count + 1)
    pixels = np.zeros(count + 1, np.int64)
    first = np.full(count + 1, -1)
    for at in range(labels.size):
        label = labels[at]
        if label == 0:
            continue
        if first[label] < 0:
            first[label] = at
        if not np.isnan(values[at]):
            masses[label] += cost_at(values, at, prices, 1 - side)
            pixels[label] += 1
    return masses, pixels, first


@njit(cache=True, nogil=True)
def _members(labels, chosen, pixels):
    """Pixels of the chosen components, one component after the other, and where each starts."""
    starts = np.zeros(len(chosen) + 1, np.int64)
    for label in range(len(chosen)):
        starts[label + 1] = starts[label] + (pixels[label] if chosen[label] else 0)
    places = starts[:-1].copy()
    members = np.empty(starts[-1], np.int64)
    for at in range(labels.size):
        if chosen[labels[at]]:
            members[places[labels[at]]] = at
            places[labels[at]] += 1
    return members, starts


@njit(cache=True, nogil=True)
def _oldest(parent, label):
    while parent[label] != label:
        label = parent[label]
    return label


@njit(cache=True, nogil=True)
def _groups_around(mask, labels, parent, at, side, steps, found):
    """Different groups of joined components that a pixel touches, written into `found`; how many."""
    n = 0
    for step in steps:
        if labels[at + step] == 0 or mask[at + step] != side:
            continue
        group = _oldest(parent, np.int64(labels[at + step]))
        known = False
        for k in range(n):
            known |= found[k] == group
        if not known:
            found[n] = group
            n += 1
    return n


@njit(cache=True, nogil=True)
def _join(mask, labels, parent, path, side, full, most, steps, window, tables):
    """Let the pixels of a path come over one by one; how many components fewer that leaves, from 1 to `most`.

    0, and nothing is changed, where a pixel would do anything else than grow a component or join different ones.
    """
    moved = np.empty(len(path), np.int64)
    united = np.empty(len(path) * steps.size, np.int64)
    around = np.empty(steps.size, np.int64)
    n = unions = 0
    good = True
    for at in path:
        if mask[at] == side:
            continue
        own, other = pieces_at(mask, at, side, full, window, tables)
        groups = _groups_around(mask, labels, parent, at, side, steps, around)
        good = own == groups and own > 0 and other == (own if window.size == 9 else 1)
        if not good or unions + groups - 1 > most:
            good = False
            break
        oldest = around[:groups].min()
        for group in around[:groups]:
            if group != oldest:
                parent[group] = oldest
                united[unions] = group
                unions += 1
        mask[at] = side
        labels[at] = oldest
        moved[n] = at
        n += 1
    if good and unions > 0:
        return unions
    for at in moved[:n]:
        mask[at] = 1 - side
        labels[at] = 0
    for group in united[:unions]:
        parent[group] = group
    return 0


@njit(cache=True, nogil=True)
def _least(values, threshold):
    """What a pixel costs at least."""
    total, count = 0.0, 0
    for value in values.ravel():
        if value != threshold:
            total += abs(np.float64(value) - threshold)
            count += 1
    return LEAST * total / max(count, 1)


@dataclass
class Components:
    """Components of one side of a mask, numbered from 1; of the background, 1 is the outside.

    labels  framed int32
    masses  (count,) what giving each up costs; inf for the outside
    pixels  (count,) int64
    first   (count,) framed index of the first pixel in raster order
    """

    labels: np.ndarray
    masses: np.ndarray
    pixels: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.masses)


class EditedMask:
    """See the module; `values` is the checked map, and the mask {values > threshold} unless another is given.

    pause  called some times a second while there is work; what it raises ends the work between two edits
    """

    def __init__(
        self,
        values: np.ndarray,
        threshold: float,
        connectivity: Connectivity | str,
        *,
        mask: np.ndarray | None = None,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        self.threshold, self.connectivity = values.dtype.type(threshold), connectivity
        self.prices = (np.float64(self.threshold), _least(values, np.float64(self.threshold)))
        self.values = np.pad(values, 1, constant_values=np.nan)
        self.mask = np.pad((values > self.threshold if mask is None else mask).astype(np.uint8), 1)
        self.inner = (slice(1, -1),) * values.ndim
        self.flat = self.mask.ravel()
        self.made: list[_Group] = []
        self.pause = pause

    @property
    def ndim(self) -> int:
        return self.mask.ndim

    def full(self, side: int) -> bool:
        """Whether a side is connected through corners too."""
        return (side == FOREGROUND) == is_closed(self.connectivity)

    def betti(self) -> tuple[int, ...]:
        """Betti numbers, counted anew."""
        return betti_numbers(self.mask[self.inner], connectivity=self.connectivity)

    def components(self, side: int) -> Components:
        """Components of a side with what giving each up costs."""
        if side == FOREGROUND:
            labels, count = label_components(self.mask, connectivity=self.connectivity)
        else:
            labels, count = label_holes(self.mask, connectivity=self.connectivity)
            labels += self.mask == 0
            count += 1
        masses, pixels, first = _facts(labels.ravel(), self.values.ravel(), self.prices, side, count)
        if side == BACKGROUND:
            masses[1] = np.inf
        return Components(labels, masses[1:], pixels[1:], first[1:])

    def enclosing(self, inner: Components, outer: Components) -> np.ndarray:
        """(len(inner),) number of the component of the other side that encloses each; -1 for the outside itself."""
        above = inner.first - self.mask.shape[-1] if self.ndim == 2 else inner.first - self.mask[0].size
        return np.where(above < 0, -1, outer.labels.ravel()[np.maximum(above, 0)] - 1)

    def regions(self, side: int, labels: np.ndarray, count: int, **options: Any) -> Regions:
        """What each of `count` labelled pieces of a side reaches: `topology.paths.Regions`, with its options."""
        return Regions(
            self.mask, labels, count, self.values, self.prices, side, self.full(side), pause=self.pause, **options
        )

    def give_up(self, side: int, components: Components, chosen: np.ndarray, kind: str, dimension: int) -> None:
        """Let the chosen components (a bool array) come over to the other side, an edit each."""
        chosen = np.append(False, chosen)
        members, starts = _members(components.labels.ravel(), chosen, np.append(0, components.pixels))
        self.flat[members] = 1 - side
        self.made.append(_Group(kind, dimension, members, starts[:-1][chosen]))

    def join(
        self,
        side: int,
        components: Components,
        paths: Iterable[np.ndarray],
        *,
        most: int,
        kind: str,
        dimension: int,
    ) -> None:
        """Take the paths, each if it joins components and does nothing else, until there are `most` components fewer.

        paths  iterable of framed pixel arrays
        """
        full, shape = self.full(side), self.mask.shape
        steps, window, labels = steps_of(shape, full), window_of(shape), components.labels.ravel()
        parent = np.arange(len(components) + 1)
        for path in paths:
            if most == 0:
                return
            self.pause()
            new = path[self.flat[path] != side]
            fewer = _join(self.flat, labels, parent, path, side, full, most, steps, window, tables())
            if fewer:
                self.made.append(_Group(kind, dimension, new, np.zeros(1, np.int64)))
                most -= fewer

    def set(self, pixels: np.ndarray, side: int, kind: str, dimension: int) -> None:
        """Let pixels come over to a side, as one edit."""
        self.flat[pixels] = side
        self.made.append(_Group(kind, dimension, pixels, np.zeros(1, np.int64)))

    def undo(self) -> None:
        """Take the last edits back that were made together."""
        pixels = self.made.pop().pixels
        self.flat[pixels] = 1 - self.flat[pixels]

    def changed(self) -> np.ndarray:
        """Framed indices of the pixels that are not as the map has them."""
        values = self.values.ravel()
        return np.flatnonzero((self.flat != (values > self.threshold)) & ~np.isnan(values))

    def cost(self) -> tuple[float, int]:
        """(sum of what the changed pixels cost, how many there are)."""
        changed = self.changed()
        return float(self._costs(changed)[1].sum()), len(changed)

    def costs_of(self, pixels: np.ndarray, side: int) -> np.ndarray:
        """(len(pixels),) what it costs that each comes over to a side."""
        as_mapped = (self.values.ravel()[pixels] > self.threshold) == (side == FOREGROUND)
        return np.where(as_mapped, 0.0, self._costs(pixels)[1])

    def cost_of(self, pixels: np.ndarray, side: int) -> float:
        """What it costs in all."""
        return float(self.costs_of(pixels, side).sum())

    def _costs(self, pixels):
        """How much the value of each pixel must change, and what that costs."""
        change = np.abs(self.values.ravel()[pixels].astype(np.float64) - self.prices[0])
        return change, np.maximum(change, self.prices[1])

    def index(self, place: Sequence[int] | np.ndarray) -> int:
        """Framed index of a pixel of the map."""
        return int(np.ravel_multi_index(tuple(np.asarray(place) + 1), self.mask.shape))

    def map(self) -> np.ndarray:
        """The map with the changed pixels put just to the other side of the threshold."""
        new, changed = self.values.copy(), self.changed()
        up = np.nextafter(self.threshold, self.threshold.dtype.type(np.inf))
        new.ravel()[changed] = np.where(self.flat[changed] == FOREGROUND, up, self.threshold)
        return new[self.inner].copy()

    def edits(self) -> Edits:
        """What is left of each edit in the end, the most expensive first; a pixel belongs to the last that moved it."""
        changed = self.changed()
        pixels = np.concatenate([np.empty(0, np.int64), *(group.pixels for group in self.made)])
        sizes = [np.diff(np.append(group.starts, len(group.pixels))) for group in self.made]
        number = np.repeat(np.arange(sum(map(len, sizes))), np.concatenate([np.empty(0, np.int64), *sizes]))
        last = len(pixels) - 1 - np.unique(pixels[::-1], return_index=True)[1]
        last = np.sort(last[np.isin(pixels[last], changed, assume_unique=True)])
        pixels, number = pixels[last], number[last]
        change, costs = self._costs(pixels)
        where = np.stack(np.unravel_index(pixels, self.mask.shape), axis=1) - 1
        most = np.lexsort((pixels, -change, number))
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        if not len(starts):
            return Edits.none(self.ndim)
        kinds = np.repeat([group.kind for group in self.made], [len(each) for each in sizes])
        dimensions = np.repeat([group.dimension for group in self.made], [len(each) for each in sizes])
        boxes = np.stack([np.minimum.reduceat(where, starts), np.maximum.reduceat(where, starts) + 1], axis=1)
        found = Edits(
            kinds[number[starts]],
            dimensions[number[starts]],
            where[most[starts]],
            boxes,
            np.diff(np.append(starts, len(number))),
            change[most[starts]],
            np.add.reduceat(costs, starts),
        )
        return found.sorted()
