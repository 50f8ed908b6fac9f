"""Scales images before a network sees them, by figures that the manifest states.

`app.serving.scaling` computes the same from the same figures; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.data import Item

SCALINGS = ("image", "dataset", "percentile", "min_max", "clipped")
DTYPES = ("uint8", "uint16", "int16", "float32")
"""The types that serving can tell apart."""
NEXT_TO_CONSTANT = 1e-6  # added to the divisor, so that a constant image becomes zeros
PERCENTILES = (0.5, 99.5)
"""Between which values are kept, as nnU-Net does; a few pixels may be anything."""
SAMPLED = 100_000
"""Most pixels of an image that percentiles over the training images are taken of."""


def fit_scaling(kind: str, items: Sequence[Item]) -> dict[str, Any]:
    """The scaling as the manifest states it, over the given labelled items.

    image       {"kind"}: each image and channel to mean 0 and deviation 1
    min_max     {"kind"}: each image and channel to 0 to 1
    percentile  {"kind", "low", "high"}: the same between these percentiles of the image, beyond which it is cut off
    dataset     {"kind", "mean", "std", "dtype"}: by mean and deviation of all pixels, one for each channel
    clipped     the same with "low" and "high": of the foreground pixels only, cut off at their percentiles 0.5 and
                99.5, as nnU-Net scales CT, where a grey value means a material
    dtype is that of the images, None where they have several.
    """
    if kind in ("image", "min_max"):
        return {"kind": kind}
    if kind == "percentile":
        return {"kind": kind, "low": PERCENTILES[0], "high": PERCENTILES[1]}
    dtypes = {item.image().dtype.name for item in items}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    figures = _clipped(items) if kind == "clipped" else _moments(items)
    return {"kind": kind, **figures, "dtype": dtype if dtype in DTYPES else None}


def _moments(items):
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for item in items:
        image = np.asarray(item.image(), dtype=np.float64).reshape(item.image().shape[0], -1)
        count, total, squares = count + image.shape[1], total + image.sum(1), squares + (image**2).sum(1)
    mean = total / count
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist()}


def _clipped(items):
    values = np.concatenate([_foreground_values(item) for item in items], axis=1)
    low, high = np.percentile(values, PERCENTILES, axis=1)
    kept = np.clip(values, low[:, None], high[:, None])
    return {"low": low.tolist(), "high": high.tolist(), "mean": kept.mean(1).tolist(), "std": kept.std(1).tolist()}


def _foreground_values(item):
    """(C, n) float64: the pixels of any foreground class, evenly thinned out to SAMPLED."""
    image = item.image()
    places = item.foreground_places()
    places = places[:: max(1, -(-len(places) // SAMPLED))]
    return image.reshape(len(image), -1)[:, places].astype(np.float64)


@dataclass(frozen=True)
class Scale:
    """The scaling of one image, each figure of shape (C, 1, ...): any part of it is scaled as the whole is.

    low, high  values are cut off there before; None: nowhere
    """

    offset: np.ndarray
    divisor: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def __call__(self, part: np.ndarray) -> np.ndarray:
        """(C, ...) of any real dtype to float32."""
        pixels = np.asarray(part, dtype=np.float64)
        if self.low is not None:
            pixels = np.clip(pixels, self.low, self.high)
        return ((pixels - self.offset) / (self.divisor + NEXT_TO_CONSTANT)).astype(np.float32)


def scale_of(image: np.ndarray, scaling: dict[str, Any]) -> Scale:
    """The scaling of an image (C, ...) of any real dtype, as `fit_scaling` states it.

    Sums are taken in float64 over the whole image, so that a tile is scaled as the image it was cut from.
    """
    axes = tuple(range(1, image.ndim))
    kind = scaling["kind"]
    if kind == "image":
        pixels = np.asarray(image, dtype=np.float64)
        return Scale(pixels.mean(axes, keepdims=True), pixels.std(axes, keepdims=True))
    if kind in ("min_max", "percentile"):
        bounds = (scaling["low"], scaling["high"]) if kind == "percentile" else (0, 100)
        flat = np.asarray(image).reshape(len(image), -1)
        low, high = (_per_channel(each, axes) for each in np.percentile(flat, bounds, axis=1))
        return Scale(low, high - low, low, high)
    cut_off = [_per_channel(scaling[name], axes) for name in ("low", "high")] if kind == "clipped" else (None, None)
    return Scale(_per_channel(scaling["mean"], axes), _per_channel(scaling["std"], axes), *cut_off)


def scale(image: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """A whole image (C, ...) of any real dtype to float32, as `fit_scaling` states it."""
    return scale_of(image, scaling)(image)


def _per_channel(figures, axes):
    return np.asarray(figures, dtype=np.float64).reshape((-1,) + (1,) * len(axes))
