"""Words for facts on a page: times, durations, sizes and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from app.metric_table import METRICS

MINUTE, HOUR, DAY = 60, 3600, 86400


TOPOLOGY = tuple(metric.name for metric in METRICS.values() if metric.counts)
"""The metrics that count features."""
HEADLINE = ("dice", "cldice", "beta0_error", "beta1_error")
"""The figures a list has room for: two of overlap, two of topology."""

REPORT = {
    "beta0": ("Components (Betti-0)", ""),
    "beta1": ("Loops (Betti-1)", ""),
    "beta2": ("Cavities (Betti-2)", ""),
    "euler": ("Euler characteristic", ""),
    "skeleton_length": ("Skeleton length", "length"),
    "branches": ("Branches", ""),
    "spurs": ("Spurs, branches no longer than the mask is wide", ""),
    "branch_points": ("Branch points", ""),
    "end_points": ("End points", ""),
    "roundness": ("Roundness, mean over components", "share"),
    "foreground": ("Foreground", "pixels"),
}
"""The figures of a topology report in the order they are read, with the kind of their unit."""


def moment(value: str | datetime) -> datetime:
    """An aware datetime from what JSON carries."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def exact(value: str | datetime) -> str:
    """2026-03-01 14:05:09 UTC."""
    return moment(value).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(value: str | datetime, now: datetime | None = None) -> str:
    """How long since, in words; the script says the same words as time goes on."""
    seconds = ((now or datetime.now(UTC)) - moment(value)).total_seconds()
    if seconds < 10:
        return "just now"
    if seconds < MINUTE:
        return f"{int(seconds)} s ago"
    if seconds < HOUR:
        return f"{int(seconds // MINUTE)} min ago"
    if seconds < DAY:
        return f"{int(seconds // HOUR)} h ago"
    days = int(seconds // DAY)
    return (
        "yesterday"
        if days == 1
        else f"{days} days ago"
        if days < 60
        else moment(value).astimezone(UTC).strftime("%d %b %Y")
    )


def duration(seconds: float | None) -> str:
    """1 h 05 min, 3 min 20 s, 12 s, 340 ms; nothing known is a dash."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < MINUTE:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < HOUR:
        return f"{int(seconds // MINUTE)} min {int(seconds % MINUTE):02d} s"
    return f"{int(seconds // HOUR)} h {int(seconds % HOUR // MINUTE):02d} min"


def size(count: int | None) -> str:
    """1.4 MiB."""
    if count is None:
        return "–"
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"


def number(value: Any, digits: int = 3) -> str:
    """A figure for a column: whole numbers whole, others with fixed digits, nothing known as a dash;
    a true minus sign.
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        text = f"{value:,}".replace(",", " ")
    elif isinstance(value, float):
        text = f"{value:,.{digits}f}".replace(",", " ")
    else:
        return str(value)
    return text.replace("-", "−", 1) if text.startswith("-") else text


def significant(value: float) -> str:
    """A figure of unknown size, such as a loss, with three digits that count."""
    return f"{value:.3g}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: always with its sign, so that it is not read as a value."""
    if value is None:
        return "–"
    text = number(float(value), digits)
    if float(text.replace("−", "-").replace(" ", "")) == 0:
        return f"±{text.lstrip('−')}"
    return text if text.startswith("−") else f"+{text}"


def metric_number(value: Any, name: str) -> str:
    """A metric with as many digits as it deserves."""
    return number(value, METRICS[name].digits if name in METRICS else 3)


def by_size(shape: Iterable[float]) -> str:
    """512 × 512, or 2 × 0.5 × 0.7: of numbers that are not whole, four figures."""
    return " × ".join(f"{side:.4g}" if isinstance(side, float) else str(side) for side in shape)


def network_sentence(network: Mapping[str, Any]) -> str:
    """unet in 3D, features 8 / 16."""
    return (
        f"{network.get('name')}{' in 3D' if network.get('dimensions') == 3 else ''}, features"
        f" {' / '.join(map(str, network.get('channels', [])))}"
    )


def loss_sentence(loss: Mapping[str, Any] | None) -> str:
    """cross_entropy + 0.5 skeleton_hard_pixels, neighbour penalty, window 3: what a model was trained with, on one
    line.
    """
    if not loss:
        return "–"
    terms = " + ".join(
        ("" if term.get("weight", 1) == 1 else f"{term['weight']:g} ") + term["name"] for term in loss.get("terms", [])
    )
    penalty = loss.get("neighbour_penalty")
    return terms + (f", neighbour penalty, window {penalty['window']}" if penalty else "")


def better(metric: str, difference: float) -> str:
    """better, worse or equal: a difference in words, so that colour is not alone in saying it."""
    if metric not in METRICS or round(difference, METRICS[metric].digits) == 0:
        return "equal"
    return "better" if (difference > 0) == (METRICS[metric].better == "higher") else "worse"
