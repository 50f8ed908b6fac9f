"""Scales images as in training: cut off at bounds, less an offset, divided.

The value is (x - offset) / (divisor + 1e-6). Figures are float64 over the whole image, or those of the training images;
the result is float32.

The figures are taken once over the image and applied to one tile at a time, so that a large image is never held as
floats. Small integer types go through a table with one entry per grey level: exact sums, and one look-up per pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from app.serving.contract import (
    ClippedScaling,
    DatasetScaling,
    ImageScaling,
    MinMaxScaling,
    PercentileScaling,
    TrainingFigures,
)

NEXT_TO_CONSTANT = 1e-6
"""Added to the divisor, so that a constant image becomes zeros. Training adds the same."""
WHITE = {"uint8": 255, "uint16": 65535}
"""The largest value of the types that use all of their range."""
CHUNK = 1 << 17
"""Pixels looked at together: 1 MiB of float64."""


class Table(NamedTuple):
    """How a small integer type goes through a table with an entry for each of its values."""

    place: type[np.unsignedinteger]
    """What its bits are read as to find the entry."""
    square: type[np.integer]
    """What holds the square of every value."""


TABLES: dict[type[np.generic], Table] = {
    np.uint8: Table(np.uint8, np.uint16),
    np.uint16: Table(np.uint16, np.uint32),
    np.int16: Table(np.uint16, np.int32),
}


class Figures(NamedTuple):
    """What one channel is scaled by: cut off at `low` and `high`, less `offset`, divided by `divisor`."""

    offset: float
    divisor: float
    low: float = -math.inf
    high: float = math.inf


class Scaler:
    """Scales tiles of one image.

    pixels      (C, ...) of any real dtype; kept, not copied
    conversion  "depth": its values are brought to the range of the training images' type; "depth_unknown": they may
                need it and nobody can say; None: they are as in training
    """

    def __init__(
        self,
        pixels: np.ndarray,
        scaling: ImageScaling | MinMaxScaling | PercentileScaling | DatasetScaling | ClippedScaling,
    ):
        self.conversion: str | None = None
        self._factor = 1.0
        if isinstance(scaling, TrainingFigures):
            self._factor, self.conversion = depth_factor(pixels, scaling.dtype)
        self._table = TABLES.get(pixels.dtype.type)
        if isinstance(scaling, ClippedScaling):
            bounds = zip(scaling.mean, scaling.std, scaling.low, scaling.high, strict=True)
            self.figures = [Figures(*each) for each in bounds]
        elif isinstance(scaling, DatasetScaling):
            self.figures = [Figures(*each) for each in zip(scaling.mean, scaling.std, strict=True)]
        elif isinstance(scaling, ImageScaling):
            self.figures = [self._moments(channel) for channel in pixels]
        else:
            percentiles = (scaling.low, scaling.high) if isinstance(scaling, PercentileScaling) else (0.0, 100.0)
            self.figures = [_range(channel, percentiles) for channel in pixels]
        self._entries: list[np.ndarray] = []
        if self._table is not None:
            place = self._table.place
            levels = np.arange(np.iinfo(place).max + 1, dtype=place).view(pixels.dtype)
            self._entries = [self._scaled(levels, c) for c in range(len(pixels))]

    def __call__(self, tile: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(C, ...) of the image's dtype to float32, in `out` if there is one."""
        out = np.empty(tile.shape, np.float32) if out is None else out
        for c, channel in enumerate(tile):
            if self._table is not None:
                # "clip": no place is beyond the table, and checking copies `out`.
                self._entries[c].take(channel.view(self._table.place), out=out[c], mode="clip")
            else:
                out[c] = self._scaled(channel, c)
        return out

    def _scaled(self, values: np.ndarray, channel: int) -> np.ndarray:
        figures = self.figures[channel]
        values = values.astype(np.float64) * self._factor
        if figures.low > -math.inf or figures.high < math.inf:
            np.clip(values, figures.low, figures.high, out=values)
        return ((values - figures.offset) / (figures.divisor + NEXT_TO_CONSTANT)).astype(np.float32)

    def _moments(self, channel: np.ndarray) -> Figures:
        """Mean and deviation: of integers from exact sums, of others in two passes so that a large offset costs no
        digits.
        """
        if self._table is not None:
            wide = self._table.square
            total = sum(int(part.sum(dtype=np.int64)) for part in _chunks(channel))
            squares = sum(int(np.square(part, dtype=wide).sum(dtype=np.int64)) for part in _chunks(channel))
            return Figures(total / channel.size, math.sqrt(channel.size * squares - total**2) / channel.size)
        mean = sum(float(part.sum(dtype=np.float64)) for part in _chunks(channel)) / channel.size
        spread = sum(float(np.square(part.astype(np.float64) - mean).sum()) for part in _chunks(channel))
        return Figures(mean, float(np.sqrt(spread / channel.size)))


def _range(channel: np.ndarray, percentiles: tuple[float, float]) -> Figures:
    """What brings two percentiles of a channel to 0 and 1 and cuts it off beyond them."""
    if percentiles == (0.0, 100.0):
        low, high = float(channel.min()), float(channel.max())  # in place, where percentiles sort a copy
    else:
        low, high = (float(each) for each in np.percentile(channel, percentiles))
    return Figures(low, high - low, low, high)


def depth_factor(pixels: np.ndarray, trained: str | None) -> tuple[float, str | None]:
    """What to multiply pixels by, so that the same scene has the values that it had in training, and what to say of it.

    White is 255 in uint8, 65535 in uint16 and 1 in float whose values lie in [0, 1]. Other numbers, such as int16, have
    no white, and nothing is done to them.
    """
    if trained == pixels.dtype.name or (trained is None and pixels.dtype == np.uint8):
        return 1.0, None
    white = WHITE.get(pixels.dtype.name)
    if pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1:
        white = 1
    due = 1 if trained == "float32" else WHITE.get(trained or "")
    return (due / white, "depth") if due and white else (1.0, "depth_unknown")


def _chunks(channel: np.ndarray) -> Iterator[np.ndarray]:
    """Flat pieces of whole rows (or planes), about CHUNK pixels each."""
    step = max(1, CHUNK // max(1, channel[0].size))
    for start in range(0, len(channel), step):
        yield channel[start : start + step].reshape(-1)
