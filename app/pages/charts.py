"""Computes the ticks and paths of line charts, which templates draw as SVG.

A chart is 360 x 220 user units and is never shown much smaller or larger than that, so that its lettering stays
legible at 390 px and at 1280 px. Series differ by dash as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 30
MOST_POINTS = 240

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A gridline: where, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One series: its path, the circle of a lone or last point, and the newest value for the legend."""

    name: str
    path: str
    last: tuple[float, float]
    value: float


@dataclass(frozen=True)
class Chart:
    """All that the template needs to draw."""

    title: str
    unit: str
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    data: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """The points as drawn; the script's readout and the table below the chart read them."""
    marks: list[Tick] = field(default_factory=list)
    """Steps worth pointing at, such as the best one."""
    plot: dict[str, float] = field(default_factory=dict)
    """Where the plot lies and which steps it spans, for the script's readout."""


def draw(
    title: str,
    unit: str,
    series: dict[str, Points],
    *,
    end: float | None = None,
    marks: dict[str, float] | None = None,
    log: bool = False,
) -> Chart:
    """A chart of one or more series of (step, value).

    end     the last step that is planned, so that a running job shows how far it still has to go
    marks   label -> step
    log     on a logarithmic scale, which leaves out what is not above 0
    Points that are not finite are left out; a chart without points has no lines.
    """
    kept = {
        name: thin([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)])
        for name, points in series.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return Chart(title, unit)
    xs = [x for points in kept.values() for x, _ in points]
    level: Callable[[float], float] = math.log10 if log else float
    ys = [level(y) for points in kept.values() for _, y in points]
    x_low, x_high = min(0.0, *xs), max(end or 0.0, *xs) or 1.0
    x_values, y_values = round_steps(x_low, x_high, 4), round_steps(min(ys), max(ys), 4)
    across = _scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    up = _scale(y_values[0], y_values[-1], HEIGHT - BOTTOM, TOP)
    return Chart(
        title,
        unit,
        [Tick(round(across(x), 1), _tick(x)) for x in x_values if x <= x_high],
        [Tick(round(up(y), 1), _tick(float(f"{10**y:.2g}") if log else y)) for y in y_values],
        [_line(name, points, across, lambda value: up(level(value))) for name, points in kept.items()],
        kept,
        [Tick(round(across(step), 1), label) for label, step in (marks or {}).items() if step <= x_high],
        {
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "top": TOP,
            "bottom": HEIGHT - BOTTOM,
            "width": WIDTH,
            "low": x_low,
            "high": x_high,
        },
    )


def thin(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points, keeping the lowest and the highest of every stretch, so that a spike is never hidden."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(len(points) / (most // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def round_steps(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose [low, high] in about so many steps."""
    if high <= low:
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _line(name: str, points: Points, across: Callable[[float], float], up: Callable[[float], float]) -> Line:
    placed = [(round(across(x), 1), round(up(y), 1)) for x, y in points]
    path = "M" + " L".join(f"{x:g} {y:g}" for x, y in placed)
    return Line(name, path, placed[-1], points[-1][1])


def _tick(value: float) -> str:
    if value and abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}".replace("-", "−")
