"""Small labelled pictures for tests: bright tubes on a dark, noisy ground."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def tubes(seed: int, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A grey image (side, side) uint8 of two crossing tubes and its mask (0 or 255)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    middle = rng.uniform(0.3, 0.7, 2) * side
    mask = (np.abs(rows - middle[0] - 4 * np.sin(columns / 6)) < 3) | (np.abs(columns - middle[1]) < 2)
    image = np.where(mask, 170, 60) + rng.normal(0, 12, (side, side))
    return image.clip(0, 255).astype(np.uint8), np.where(mask, 255, 0).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    """The array as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def tiny_dataset(path: Path, *, pairs: int = 5, side: int = 48, first_image: Path | None = None) -> Path:
    """A zip of `images/` and `masks/`; the first image also as a file of its own when a path is given."""
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(pairs):
            image, mask = tubes(index, side)
            archive.writestr(f"images/{index:03d}.png", png(image))
            archive.writestr(f"masks/{index:03d}.png", png(mask))
            if first_image is not None and index == 0:
                first_image.write_bytes(png(image))
    return path
