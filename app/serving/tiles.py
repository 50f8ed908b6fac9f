"""Cutting a large image into overlapping tiles and putting the answers together without a seam.

A convolution network sees zeros beyond the border of what it is given. So along a cut, a tile's answer is wrong up to
half its receptive field: the *margin*. Each tile counts for nothing in its margin. Tiles start at multiples of the
network's own stride, so that pooling windows fall where they would in one pass. When the overlap is at least two
margins, both neighbours therefore say in its middle what one pass would say; there the seam is a step, each pixel is
the answer of one tile, and a seam can neither cut nor create a component or a loop. (A mean of two equal answers would
not do: it rounds, which moved 10 of 8.2 million pixels across a threshold.) Where the overlap cannot be that large, a
tile's weight rises linearly from 0 to 1 over the overlap between the margins while its neighbour's falls.

Weights are products of one weight per axis, and those add up to 1, so nothing is divided afterwards and each part of a
tile can be handed on as soon as it is finished. What is remembered is what a tile shares with its neighbours to come:
along the first axis an overlap as long and wide as the image, along the next an overlap within one row of tiles, and so
on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, product
from math import ceil

import numpy as np

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Cuts:
    """Where the tiles of one axis start, their common length, and what each of its positions counts."""

    length: int
    side: int
    starts: tuple[int, ...]
    weights: tuple[np.ndarray, ...]  # (side,) float32 each; add up to 1 at every position of the axis

    @property
    def arriving(self) -> list[int]:
        """How many positions each tile but the first shares with the one before."""
        return [start + self.side - following for start, following in zip(self.starts, self.starts[1:], strict=False)]

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        return (
            (slice(start, start + self.side), weights) for start, weights in zip(self.starts, self.weights, strict=True)
        )


@dataclass(frozen=True)
class Seam:
    """How tiles of one axis overlap: `overlap` positions shared, of which the outer `margin` count for nothing."""

    overlap: int
    margin: int
    exact: bool
    """Both tiles are right in the middle of what they share."""


def seam(tile: int, *, receptive_field: int | None, overlap: float, multiple: int) -> Seam:
    """The narrowest seam that keeps the answer exact, or the asked-for part of a tile where that is impossible.

    Exact needs two margins of half a receptive field; impossible when they are more than half a tile or when the
    receptive field is the whole image (None).
    """
    if receptive_field is not None:
        margin = receptive_field // 2
        exact = _up(2 * margin, multiple)
        if exact <= tile // 2:
            return Seam(exact, margin, True)
    shared = min(_up(round(overlap * tile), multiple), tile // 2 // multiple * multiple)
    return Seam(shared, shared // 4, False)


def cut(length: int, tile: int, seam: Seam, *, multiple: int, shrink: bool = True) -> Cuts:
    """The fewest tiles of at most `tile` positions that cover an axis, made as small as they can be if they may shrink.

    `length`, `tile` and the overlap are multiples of `multiple`, and so are all starts.
    """
    if length <= tile:
        return Cuts(length, length, (0,), (np.ones(length, np.float32),))
    count = ceil((length - seam.overlap) / (tile - seam.overlap))
    side = _up(ceil((length + (count - 1) * seam.overlap) / count), multiple) if shrink else tile
    starts = tuple(min(start, length - side) for start in range(0, length - seam.overlap, side - seam.overlap))
    weights = _steps(length, side, starts) if seam.exact else _ramps(length, side, starts, seam)
    return Cuts(length, side, starts, weights)


def _steps(length: int, side: int, starts: Sequence[int]) -> tuple[np.ndarray, ...]:
    """1 up to the middle of what a tile shares with its neighbour, 0 beyond."""
    ends = [*((start + side + following) // 2 for start, following in pairwise(starts)), length]
    positions = np.arange(side)
    return tuple(
        ((positions >= begin - start) & (positions < end - start)).astype(np.float32)
        for start, begin, end in zip(starts, [0, *ends], ends, strict=False)
    )


def _ramps(length: int, side: int, starts: Sequence[int], seam: Seam) -> tuple[np.ndarray, ...]:
    ramp = seam.overlap - 2 * seam.margin
    rise = np.clip((np.arange(side) + 0.5 - seam.margin) / max(ramp, 1), 0, 1)
    raw = []
    for start in starts:
        weight = np.ones(side)
        if start > 0:  # the border of the image itself is no cut
            weight = np.minimum(weight, rise)
        if start + side < length:
            weight = np.minimum(weight, rise[::-1])
        raw.append(weight)
    total = np.zeros(length)
    for start, weight in zip(starts, raw, strict=True):
        total[start : start + side] += weight
    return tuple(
        (weight / total[start : start + side]).astype(np.float32) for start, weight in zip(starts, raw, strict=True)
    )


Block = tuple[Window, np.ndarray]
"""Where a finished part of the answer belongs, and it: (K, *sides) float32."""


def stitch(axes: Sequence[Cuts], predict: Callable[[list[Window]], np.ndarray], *, batch: int) -> Iterator[Block]:
    """The whole answer, block by block, each position once.

    predict  windows of at most `batch` tiles -> (tiles, K, *sides) float32, which is written to
    """
    windows = (tuple(window for window, _ in place) for place in product(*axes))
    answers = (answer for chosen in iter(lambda: list(islice(windows, batch)), []) for answer in predict(chosen))
    return _joined(axes, 0, answers)


def _joined(axes: Sequence[Cuts], done: int, answers: Iterator[np.ndarray]) -> Iterator[Block]:
    """Tiles joined along all axes from number `done` on; their windows start with that axis.

    The last axis varies fastest, so each axis joins what the ones after it have finished. What waits for the next tile
    is the overlap with it alone.
    """
    if done == len(axes):
        yield (), next(answers)
        return
    axis, others = axes[done], axes[done + 1 :]
    pending: np.ndarray | None = None
    before = (slice(None),) * (done + 1)  # K and the axes that are joined later
    for (window, weights), following, arriving in zip(
        axis, [*axis.starts[1:], axis.length], [0, *axis.arriving], strict=True
    ):
        finished, leaving = following - window.start, window.stop - following
        for place, block in _joined(axes, done + 1, answers):
            if len(axis.starts) > 1:
                np.multiply(block, weights.reshape(-1, *[1] * len(others)), out=block)
            if arriving and pending is not None:
                block[(*before, slice(arriving))] += pending[(*before, slice(arriving), *place)]
            if leaving:
                if pending is None:
                    sides = max(axis.arriving), *(other.length for other in others)
                    pending = np.empty((*block.shape[: done + 1], *sides), np.float32)
                pending[(*before, slice(leaving), *place)] = block[(*before, slice(finished, None))]
            yield (slice(window.start, following), *place), block[(*before, slice(finished))]


def _up(value: int, multiple: int) -> int:
    return ceil(value / multiple) * multiple
