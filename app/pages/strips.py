"""Places dots and boxes of per-image figures, which templates draw as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median, quantiles

WIDTH, LEFT, RIGHT, ROW = 360, 12, 12, 46
SPREAD = 7
"""Most pixels by which a dot is moved off its line, so that equal values do not hide each other."""


@dataclass(frozen=True)
class Strip:
    """One candidate: the place of each image's dot, and of its quartiles.

    middle  the height of its line; the name stands above it
    box     places of the lower quartile, the median and the upper one; None of fewer than two images
    """

    name: str
    middle: int
    dots: list[tuple[float, float]]
    box: tuple[float, float, float] | None
    median: float


@dataclass(frozen=True)
class Strips:
    """All candidates on one axis that begins at 0."""

    height: int
    ticks: list[tuple[float, float]]
    """(place, value)."""
    rows: list[Strip]


def draw(figures: Mapping[str, Mapping[str, float]]) -> Strips | None:
    """Strips of {candidate: {image: figure of at least 0}}; None where nothing was measured."""
    known = {name: sorted(values.values()) for name, values in figures.items() if values}
    if not known:
        return None
    most = max(values[-1] for values in known.values()) or 1.0

    def place(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * value / most, 1)

    rows = []
    for number, (name, values) in enumerate(known.items()):
        middle = number * ROW + 30
        dots = [(place(value), middle + _aside(position)) for position, value in enumerate(values)]
        low, high = (quantiles(values, n=4)[i] if len(values) > 1 else values[0] for i in (0, 2))
        box = (place(max(low, 0)), place(median(values)), place(min(high, most))) if len(values) > 1 else None
        rows.append(Strip(name, middle, dots, box, median(values)))
    return Strips(len(known) * ROW + 24, [(place(share * most), share * most) for share in (0, 0.5, 1)], rows)


def _aside(position: int) -> float:
    """By how much the dot of the n-th smallest value is moved: neighbours in opposite directions."""
    return (0, SPREAD, -SPREAD, SPREAD / 2, -SPREAD / 2)[position % 5]
