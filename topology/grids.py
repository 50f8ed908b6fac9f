"""The conventions, stated once: axes, dual connectivities, what lies outside, which pixel is older.

Axes.          A map is (rows, columns) or (planes, rows, columns), C order. Coordinates, boxes and spacing follow the
               axes.
Connectivity.  Foreground and background must not use the same neighbourhood, or a diagonal line would both close and
               leak.
               `closed` (default): pixels are closed cubes, foreground 8 [26], background 4 [6]   (construction T).
               `open`: pixels are open cubes (grid vertices), foreground 4 [6], background 8 [26]  (construction V).
Outside.       Everything outside the array is background.
Filtration.    Superlevel: the largest value comes first. A feature is born at its larger value and dies at its smaller
               one.
Ties.          Of two equal values, the smaller linear index is older; so every result is reproducible, plateaus
               included.
Boxes.         Half open: `start <= coordinate < stop`.
"""

import enum
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

Spacing = Sequence[float] | np.ndarray | None
"""Pixel sizes, one for each axis, in the order of the axes; None means 1 pixel each."""
NAMES = {"closed": "closed", "open": "open", "8/4": "closed", "26/6": "closed", "4/8": "open", "6/26": "open"}


class Connectivity(enum.Enum):
    """Which pixels touch: a dual pair for foreground and background, valid in the plane and in space.

    `Connectivity("8/4")` and `Connectivity("26/6")` are `Connectivity.CLOSED`; "4/8" and "6/26" are `OPEN`.
    """

    CLOSED = "closed"
    OPEN = "open"

    @classmethod
    def _missing_(cls, value):
        if value in NAMES:
            return cls(NAMES[value])
        raise ValueError(f"Connectivity {value!r} is not known. Use one of {', '.join(NAMES)}.")

    def pair(self, ndim: int) -> str:
        """The pair as people write it: "8/4", "4/8", "26/6" or "6/26"."""
        large, small = (8, 4) if ndim == 2 else (26, 6)
        return f"{large}/{small}" if self is Connectivity.CLOSED else f"{small}/{large}"


def is_closed(connectivity: Connectivity | str) -> bool:
    """True for closed cubes; accepts a `Connectivity` or any of its names."""
    return Connectivity(connectivity) is Connectivity.CLOSED


def refuse_shape(array: np.ndarray, what: str) -> None:
    """Refuses (ValueError) other than 2 or 3 axes, a side of 0, and more pixels than 31 bits can index."""
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{what} has {array.ndim} axes; 2 (rows, columns) or 3 (planes, rows, columns) are supported. Select one"
            " channel."
        )
    if 0 in array.shape:
        raise ValueError(f"{what} has shape {array.shape}; every side must be at least 1 pixel.")
    if array.size >= 2**31 - 2**24:
        raise ValueError(
            f"{what} has {array.size} pixels; at most {2**31 - 2**24} can be indexed. Split it into blocks."
        )


def as_mask(mask: ArrayLike) -> np.ndarray:
    """C-ordered uint8 copy or view with 0 for background, 1 for foreground (every value that is not 0).

    Refuses (ValueError) other than 2 or 3 axes, a side of 0, and NaN, which is neither foreground nor background.
    """
    mask = np.asarray(mask)
    refuse_shape(mask, "Mask")
    if mask.dtype.kind in "fc" and np.isnan(mask).any():
        raise ValueError(
            f"Mask holds {int(np.isnan(mask).sum())} NaN of {mask.size} pixels. Replace them before asking for"
            " topology."
        )
    binary = mask if mask.dtype == np.bool_ else mask != 0
    return np.ascontiguousarray(binary).view(np.uint8)


def _lost_digits(given, values):
    """Whether a float64 copy differs from what was given."""
    if given.dtype.kind == "f":
        return given.dtype.itemsize > 8 and bool((values != given)[~np.isnan(given)].any())
    return given.dtype.itemsize == 8 and bool(given.max() > 2**53 or int(given.min()) < -(2**53))


def as_map(values: ArrayLike) -> np.ndarray:
    """C-ordered, native float32 (or float64 where float32 would lose digits) copy or view of a real map.

    Refuses (ValueError) other than 2 or 3 axes, a side of 0, complex numbers, NaN or infinity, which leave no room
    outside, and numbers that float64 cannot tell apart.
    """
    values = np.asarray(values)
    refuse_shape(values, "Map")
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"Map has dtype {values.dtype}; real numbers are needed. Take the magnitude or one part first."
        )
    narrow = (
        values.dtype.kind == "b"
        or values.dtype.itemsize <= 2
        or values.dtype in (np.dtype(np.float32), np.dtype(">f4"))
    )
    given = values
    values = np.ascontiguousarray(values, dtype=np.float32 if narrow else np.float64)
    if _lost_digits(given, values):
        raise ValueError(
            f"Map of dtype {given.dtype} holds numbers that float64 cannot tell apart, such as whole numbers beyond"
            " 2**53. Subtract an offset or scale it first."
        )
    if not np.isfinite(values).all():
        nan = int(np.isnan(values).sum())
        infinite = int(np.isinf(values).sum())
        raise ValueError(
            f"Map holds {nan} NaN and {infinite} infinite values of {values.size}. Replace or clip them first."
        )
    return values


def as_spacing(spacing: Spacing, ndim: int) -> np.ndarray:
    """float64 (ndim,) pixel sizes, one per axis; None means 1 pixel each.

    Refuses sizes that are not positive and finite.
    """
    spacing = np.ones(ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if spacing.shape != (ndim,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise ValueError(
            f"Spacing {spacing.tolist()} does not fit {ndim} axes: give {ndim} positive finite numbers, in the order of"
            " the axes."
        )
    return spacing


def as_volume(array: np.ndarray) -> np.ndarray:
    """View of a plane as a volume of one plane, so that one kernel serves both; volumes pass through."""
    return array if array.ndim == 3 else array[np.newaxis]


def same_shape(first: ArrayLike, second: ArrayLike, names: str = "Prediction and reference") -> None:
    """Refuses (ValueError) two arrays whose shapes differ."""
    if np.shape(first) != np.shape(second):
        raise ValueError(
            f"{names} differ in shape: {np.shape(first)} and {np.shape(second)}. Resample one onto the other first."
        )
