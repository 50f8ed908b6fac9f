"""Images scaled as in training: (x - mean) / (std + 1e-6), figures in float64 over the whole image, result float32.

The figures are taken once over the image and applied to one tile at a time, so that a large image is never held as
floats. Small integer types go through a table with one entry per grey level: exact sums, and one look-up per pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from app.serving.contract import DatasetScaling, ImageScaling

NEXT_TO_CONSTANT = 1e-6
"""Added to the deviation, so that a constant image becomes zeros. Training adds the same."""
TABULATED = {np.uint8: (np.uint8, np.uint16), np.uint16: (np.uint16, np.uint32), np.int16: (np.uint16, np.int32)}
"""Types that go through a table: how their bits are read as a place in it, and what holds their squares."""
CHUNK = 1 << 17
"""Pixels looked at together: 1 MiB of float64."""


class Scaler:
    """Scales tiles of one image.

    pixels  (C, ...) of any real dtype; kept, not copied
    """

    def __init__(self, pixels: np.ndarray, scaling: ImageScaling | DatasetScaling):
        self._places, self._wide = TABULATED.get(pixels.dtype.type, (None, None))
        if isinstance(scaling, DatasetScaling):
            figures = list(zip(scaling.mean, scaling.std, strict=True))
        else:
            figures = [self._figures(channel) for channel in pixels]
        self.mean, self.std = np.array(figures, dtype=np.float64).T
        if self._places is not None:
            levels = np.arange(np.iinfo(self._places).max + 1, dtype=self._places).view(pixels.dtype)
            self._tables = [self._scaled(levels, c) for c in range(len(pixels))]

    def __call__(self, tile: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(C, ...) of the image's dtype to float32, in `out` if there is one."""
        out = np.empty(tile.shape, np.float32) if out is None else out
        for c, channel in enumerate(tile):
            if self._places is not None:
                self._tables[c].take(
                    channel.view(self._places), out=out[c], mode="clip"
                )  # no place is beyond the table, and checking copies `out`
            else:
                out[c] = self._scaled(channel, c)
        return out

    def _scaled(self, values: np.ndarray, channel: int) -> np.ndarray:
        return ((values.astype(np.float64) - self.mean[channel]) / (self.std[channel] + NEXT_TO_CONSTANT)).astype(
            np.float32
        )

    def _figures(self, channel: np.ndarray) -> tuple[float, float]:
        """Mean and deviation: of integers from exact sums, of others in two passes so that a large offset costs no
        digits.
        """
        if self._places is not None:
            total = sum(int(part.sum(dtype=np.int64)) for part in _chunks(channel))
            squares = sum(int(np.square(part, dtype=self._wide).sum(dtype=np.int64)) for part in _chunks(channel))
            return total / channel.size, math.sqrt(channel.size * squares - total**2) / channel.size
        mean = sum(float(part.sum(dtype=np.float64)) for part in _chunks(channel)) / channel.size
        squares = sum(float(np.square(part.astype(np.float64) - mean).sum()) for part in _chunks(channel))
        return mean, float(np.sqrt(squares / channel.size))


def _chunks(channel: np.ndarray) -> Iterator[np.ndarray]:
    """Flat pieces of whole rows (or planes), about CHUNK pixels each."""
    step = max(1, CHUNK // max(1, channel[0].size))
    for start in range(0, len(channel), step):
        yield channel[start : start + step].reshape(-1)
