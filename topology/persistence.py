"""Cubical persistence with coordinates: births, deaths and lifetimes of features.

Superlevel filtration: the threshold falls from the largest value. A component [loop, cavity] is born at the pixel that
starts [closes] it and dies at the pixel that joins it to an older one [fills it]. Components and, by Alexander duality,
the features of the top dimension are mergers of the two sides of the map; loops in space are paired in
`topology.loops`. Bars whose birth and death values are equal are not features and are left out. Births and deaths are
exact pixels; on plateaus, where several would do, the order of `topology.grids` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.critical_points import CriticalPoints, rank, survey
from topology.grids import Connectivity, as_map, is_closed
from topology.loops import pair_loops
from topology.sorting import falling_key, ordered_level, sort_by

Bars = tuple[int, np.ndarray, np.ndarray]
"""Dimension, births and deaths as linear indices; a death of -1 is that of the essential component."""
Found = TypeVar("Found")


@dataclass(frozen=True)
class Barcode:
    """The features of one map, sorted by dimension, then birth (oldest first).

    dimension     (K,) int8: 0 components, 1 loops, 2 cavities
    births        (K, ndim) int64 coordinates of the pixel where the feature appears
    deaths        (K, ndim) int64 coordinates of the pixel where it ends; -1 for the essential component, which never
                  does
    birth_values  (K,) values there, the larger ones
    death_values  (K,) values there; -inf for the essential component
    """

    dimension: np.ndarray
    births: np.ndarray
    deaths: np.ndarray
    birth_values: np.ndarray
    death_values: np.ndarray

    def __len__(self) -> int:
        return len(self.dimension)

    def __getitem__(self, chosen: np.ndarray | slice) -> Barcode:
        """The bars at an index array, bool array or slice."""
        fields = (self.dimension, self.births, self.deaths, self.birth_values, self.death_values)
        return Barcode(*(field[chosen] for field in fields))

    @property
    def persistence(self) -> np.ndarray:
        """(K,) how long each feature lives, in units of the map; infinite for the essential component."""
        return self.birth_values - self.death_values

    def of(self, dimension: int) -> Barcode:
        """The bars of one dimension."""
        return self[self.dimension == dimension]

    def finite(self) -> Barcode:
        """The bars that die."""
        return self[np.isfinite(self.death_values)]


def _pairs(points, dimension):
    """(birth, death) of the finite bars of one dimension, in framed linear indices."""
    top = len(points.shape) - 1
    if 0 < dimension < top:
        edges, squares = pair_loops(points)
        return (squares, edges) if points.closed else (edges, squares)
    starts = dimension == 0
    extremum, saddle = points.merge(up=starts == points.closed)
    return (extremum, saddle) if starts else (saddle, extremum)


def _lasting(levels, points, dimension):
    """Unframed (births, deaths) of the finite bars of one dimension without those of length 0."""
    births, deaths = (points.unframe(side) for side in _pairs(points, dimension))
    return _longer_than_none(levels, births, deaths)


@njit(cache=True, nogil=True)
def _longer_than_none(levels, births, deaths):
    """The (births, deaths) whose levels differ."""
    n = 0
    kept = np.empty((2, births.size), np.int64)
    for k in range(births.size):
        kept[0, n], kept[1, n] = births[k], deaths[k]
        n += levels[births[k]] > levels[deaths[k]]
    return kept[0, :n], kept[1, :n]


def _bars(levels, points, dimension):
    """As `_lasting`, with the dimension before and the essential component last, its death -1."""
    births, deaths = _lasting(levels, points, dimension)
    if dimension == 0:
        births, deaths = np.append(births, np.argmax(levels)), np.append(deaths, -1)
    return dimension, births, deaths


@njit(cache=True, nogil=True)
def _coordinates(linear, shape):
    """(K, ndim) int64 coordinates of linear indices; -1 stays -1."""
    places = np.empty((linear.size, len(shape)), np.int64)
    for k in range(linear.size):
        rest = np.uint32(max(linear[k], 0))
        for axis in range(len(shape) - 1, 0, -1):
            line = np.uint32(rest // np.uint32(shape[axis]))
            places[k, axis] = rest - line * np.uint32(shape[axis])
            rest = line
        places[k, 0] = rest
        if linear[k] < 0:
            places[k] = -1
    return places


@njit(cache=True, nogil=True)
def _oldest_first(keys, births, deaths):
    """Positions of bars by the key of their birth, then birth, then death."""
    order = np.arange(births.size)
    order = sort_by((deaths + 1).astype(np.uint32), order)
    order = sort_by(births.astype(np.uint32), order)
    return sort_by(keys[births], order)


@njit(cache=True, nogil=True)
def _falling_keys(levels):
    keys = np.empty(levels.size, np.uint32)
    for k in range(levels.size):
        keys[k] = falling_key(levels[k])
    return keys


@njit(cache=True, nogil=True)
def _falling_keys_of_floats(values):
    keys = np.empty(values.size, np.uint32)
    for k in range(values.size):
        keys[k] = falling_key(ordered_level(values[k]))
    return keys


def _longest_first(lengths):
    """Positions of bars by their length, those of equal length in their order."""
    if lengths.dtype == np.float32:
        return sort_by(_falling_keys_of_floats(lengths), np.arange(len(lengths)))
    return np.argsort(-lengths, kind="stable")


def barcode_from(
    values: np.ndarray, parts: Sequence[Bars], levels: np.ndarray | None = None
) -> tuple[Barcode, np.ndarray]:
    """Barcode of (dimension, births, deaths) parts in linear indices, dimensions ascending, and where each bar, in the
    order given, went. levels: float32 or ranks in the order of the values, where they are known.
    """
    flat = values.ravel()
    if levels is None:
        levels = flat if flat.dtype == np.float32 else rank(flat)
    keys = _falling_keys_of_floats(levels) if levels.dtype == np.float32 else _falling_keys(levels)
    offsets = np.cumsum([0, *(len(part[1]) for part in parts)])
    order = np.concatenate(
        [_oldest_first(keys, *part[1:]) + start for part, start in zip(parts, offsets[:-1], strict=True)]
    )
    dimension = np.repeat(np.array([part[0] for part in parts], np.int8), np.diff(offsets))
    births, deaths = (np.concatenate([part[k] for part in parts])[order] for k in (1, 2))
    ends = np.where(deaths < 0, flat.dtype.type(-np.inf), flat[deaths])
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    born, ended = (_coordinates(side, values.shape) for side in (births, deaths))
    return Barcode(dimension, born, ended, flat[births], ends), place


def persistence(
    values: ArrayLike,
    *,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    dimensions: Iterable[int] | None = None,
    min_persistence: float = 0.0,
) -> Barcode:
    """All features of a map with the pixels where they are born and die.

    values           (rows, columns) or (planes, rows, columns) real map; the superlevel filtration (negate it for
                     sublevels)
    connectivity     "closed" (construction T: superlevel sets 8 [26]-connected) or "open" (construction V: 4
                     [6]-connected)
    dimensions       which of 0, 1[, 2] to compute; None means all. In space, dimension 1 costs the most
    min_persistence  bars that live no longer than this are left out; 0 leaves out those of no length
    returns          Barcode, coordinates in the axes of `values`; the essential component is in dimension 0 and has no
                     death
    """
    checked, wanted, levels, points = _survey(values, connectivity, dimensions)
    code, _ = barcode_from(checked, [_bars(levels, points, dimension) for dimension in wanted], levels)
    return code[code.persistence > min_persistence] if min_persistence > 0 else code


def finite_bars(
    values: ArrayLike,
    *,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    dimensions: Iterable[int] | None = None,
    min_persistence: float = 0.0,
) -> list[Bars]:
    """The features of a map that die, where they lie in memory: [(dimension, births, deaths), ...], the longest of each
    dimension first.

    births, deaths  (K,) int64 linear indices in C order; the rest as for `persistence`, whose finite bars these are
    For those who read many maps: without coordinates it takes a third less time where bars are many.
    """
    checked, wanted, levels, points = _survey(values, connectivity, dimensions)
    flat, found = checked.ravel(), []
    for dimension in wanted:
        births, deaths = _lasting(levels, points, dimension)
        lengths = flat[births] - flat[deaths]
        order = _longest_first(lengths)
        order = order[: np.count_nonzero(lengths > min_persistence)]
        found.append((dimension, births[order], deaths[order]))
    return found


def _survey(
    values: ArrayLike, connectivity: Connectivity | str, dimensions: Iterable[int] | None
) -> tuple[np.ndarray, list[int], np.ndarray, CriticalPoints]:
    """The map and the dimensions, checked; its levels, flat, and its critical points."""
    values = as_map(values)
    wanted = list(range(values.ndim)) if dimensions is None else sorted(set(dimensions))
    if not set(wanted) <= set(range(values.ndim)):
        raise ValueError(
            f"Dimensions {wanted} of a map with {values.ndim} axes; choose from {list(range(values.ndim))}."
        )
    levels = values if values.dtype == np.float32 else rank(values)
    return values, wanted, levels.ravel(), survey(levels, closed=is_closed(connectivity))
