"""Makes zip archives for training and testing from a folder of labelled images.

The folder holds `images/` and `masks/` (any accepted format, paired by stem). The held-out part is the last fifth of
the names in order: neighbouring slices and the two eyes of one person have neighbouring names, so they stay together.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FilePair:
    """An image file and its mask file."""

    image: Path
    mask: Path


def labelled_pairs(folder: Path) -> list[FilePair]:
    """Every image that has a mask of the same stem, in order of name; ValueError when there are too few."""
    masks = {path.stem: path for path in sorted((folder / "masks").glob("*.*"))}
    images = sorted((folder / "images").glob("*.*"))
    pairs = [FilePair(image, masks[image.stem]) for image in images if image.stem in masks]
    if len(pairs) < 4:
        raise ValueError(
            f"{folder} holds {len(pairs)} pairs in images/ and masks/ ({len(images)} images, {len(masks)} masks); at"
            " least 4 are needed."
        )
    return pairs


def hold_out(pairs: list[FilePair]) -> tuple[list[FilePair], list[FilePair]]:
    """The pairs to train on and the last fifth (at least one), never trained on."""
    kept = max(1, len(pairs) // 5)
    return pairs[:-kept], pairs[-kept:]


def archive(pairs: list[FilePair], path: Path) -> Path:
    """Write the pairs as `images/` and `masks/` in a zip; already compressed formats are stored as they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for pair in pairs:
            file.write(pair.image, f"images/{pair.image.name}")
            file.write(pair.mask, f"masks/{pair.image.stem}{pair.mask.suffix}")
    return path
