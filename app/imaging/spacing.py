"""Sizes of pixels that a sender states for a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from app.errors import Invalid
from app.imaging.picture import Picture

SAME = 1e-3
"""Sizes that differ by less than this part are the same: files keep them as float32, or rounded."""


def sized(picture: Picture, spacing_mm: Sequence[float] | None) -> Picture:
    """The picture with the pixel size that was stated for it, or as it is for None; where it lies is not changed.

    Raises Invalid for another number of sizes than the image has axes.
    """
    if spacing_mm is None:
        return picture
    refuse_other_axes(picture.shape, spacing_mm)
    return replace(picture, spacing_mm=tuple(spacing_mm))


def refuse_other_axes(shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    """Raise Invalid for another number of sizes than an image of this shape has axes."""
    if len(spacing_mm) != len(shape):
        axes = "planes, rows, columns" if len(shape) == 3 else "rows, columns"
        raise Invalid(
            f"spacing_mm has {len(spacing_mm)} sizes and the image {len(shape)} axes. State one size for each: {axes}.",
            errors=[{"pointer": "/spacing_mm", "detail": f"{len(shape)} sizes: {axes}"}],
        )


def contradiction(picture: Picture, spacing_mm: Sequence[float] | None) -> str | None:
    """What to say where the file states another pixel size than was stated for it; None where they agree."""
    if spacing_mm is None or picture.spacing_mm is None or same(picture.spacing_mm, spacing_mm):
        return None
    return f"The file says pixels of {in_mm(picture.spacing_mm)}, spacing_mm {in_mm(spacing_mm)}; spacing_mm counts."


def same(first: Sequence[float] | None, second: Sequence[float] | None) -> bool:
    """Whether two pixel sizes are the same but for rounding; unknown is the same as unknown only."""
    if first is None or second is None or len(first) != len(second):
        return first is second
    return all(math.isclose(here, there, rel_tol=SAME) for here, there in zip(first, second, strict=True))


def in_mm(spacing_mm: Sequence[float]) -> str:
    """`5 x 0.7 x 0.7 mm`."""
    return f"{' x '.join(f'{size:.4g}' for size in spacing_mm)} mm"
