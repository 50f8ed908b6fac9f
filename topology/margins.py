"""Margins: how far a threshold may move before the topology of {map > threshold} changes.

A bar of the superlevel filtration is a feature that exists for death <= threshold < birth. One that contains the
threshold is a feature of the mask, and its margin is the way to its nearer end. One that does not is a feature the mask
nearly has, or just has no more: a gap that a lower threshold closes, a bridge that a higher one breaks; its margin is
the way to the bar. Margins shift with the map: a constant added to map and threshold changes none.

A margin bounds a move of the threshold, or of all values together. It does not bound noise that moves each pixel by
itself: where many pixels are near the threshold, much smaller noise makes and breaks features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from topology.grids import Connectivity, as_map
from topology.persistence import Barcode, persistence

NEAR = 0.1
"""How far from the threshold a feature that the mask has not is still told."""


@dataclass(frozen=True)
class Margins:
    """Features of one map around a threshold, the least certain first.

    bars       Barcode of the features listed
    present    (K,) bool: whether the mask has the feature
    rising     (K,) bool: whether a rising threshold changes it (at `birth` if present, else at `death`); a falling one
               otherwise
    margins    (K,) float64 how far the threshold moves until then, in units of the map
    places     (K, ndim) int64 pixel where that happens
    counts     (present, near): features of the mask, and features it has not within reach, listed or not
    """

    bars: Barcode
    present: np.ndarray
    rising: np.ndarray
    margins: np.ndarray
    places: np.ndarray
    counts: tuple[int, int]

    def __len__(self) -> int:
        return len(self.bars)

    def __getitem__(self, chosen: np.ndarray | slice) -> Margins:
        """The features at an index array, bool array or slice; counts stay those of the map."""
        bars, places = self.bars[chosen], self.places[chosen]
        return Margins(bars, self.present[chosen], self.rising[chosen], self.margins[chosen], places, self.counts)


def margins(
    values: ArrayLike,
    threshold: float,
    *,
    near: float = NEAR,
    most: int | None = None,
    dimensions: Iterable[int] | None = None,
    connectivity: Connectivity | str = Connectivity.CLOSED,
) -> Margins:
    """Every feature of {values > threshold} with its margin, and those that are no further from existing than `near`.

    values     (rows, columns) or (planes, rows, columns) real map
    near       features that the mask has not are listed up to this margin
    most       how many are listed, the nearest to the threshold first (None: all)
    dimensions which of 0, 1[, 2] (None: all); in space, dimension 1 costs the most
    returns    Margins; those the mask has are as many by dimension as its Betti numbers
    """
    values = as_map(values)
    level = float(values.dtype.type(threshold))
    bars = persistence(values, connectivity=connectivity, dimensions=dimensions)
    up = bars.birth_values.astype(np.float64) - level
    down = level - bars.death_values.astype(np.float64)
    present = (up > 0) & (down >= 0)
    # Present: the nearer end. Absent: a bar below the threshold (up <= 0) is reached by falling, one above it (down <
    # 0) by rising.
    rising = np.where(present, up <= down, down < 0)
    margin = np.where(present, np.minimum(up, down), np.where(rising, -down, -up))
    close = present | (margin <= near)
    places = np.where((rising == present)[:, None], bars.births, bars.deaths)
    listed = np.flatnonzero(close)
    listed = listed[np.lexsort((~present[listed], margin[listed]))][:most]
    counts = int(present.sum()), int((close & ~present).sum())
    return Margins(bars[listed], present[listed], rising[listed], margin[listed], places[listed], counts)
