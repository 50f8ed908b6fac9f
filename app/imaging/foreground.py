"""Which pixels of a mask or of a probability map are foreground."""

from __future__ import annotations

import numpy as np

from app.errors import UnsupportedColor
from app.imaging.picture import Picture


def is_mask(pixels: np.ndarray) -> bool:
    """True for integer pixels that are 0 or one other value: they say yes or no, whatever the other value is."""
    if pixels.dtype.kind == "f":
        return False
    largest = pixels.max()
    return bool(((pixels == 0) | (pixels == largest)).all())


def fraction(picture: Picture) -> np.ndarray:
    """(...) float32 in [0, 1]: a mask as 0 and 1, integers as a part of their type's range, float as it is.

    UnsupportedColor when there are several channels.
    """
    if picture.channels != 1:
        raise UnsupportedColor(
            f"The image has {picture.channels} channels; a mask or a probability map has one. Send one channel."
        )
    pixels = picture.pixels[0]
    if pixels.dtype.kind == "f":
        return pixels
    if is_mask(pixels):
        return (pixels != 0).astype(np.float32)
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def foreground(picture: Picture, threshold: float, label: int | None = None) -> np.ndarray:
    """(...) bool:
    the pixels of value `label` in an integer image, else those whose `fraction` is above the threshold.
    """
    parts = fraction(picture)
    if label is not None and picture.pixels.dtype.kind != "f":
        return picture.pixels[0] == label
    return parts > threshold
