"""Small images, masks and archives for tests, as arrays and as files."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

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


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def drawing(text: str) -> np.ndarray:
    """A boolean mask from lines of `#` and `.`."""
    rows = [line.strip() for line in text.strip().splitlines()]
    return np.array([[letter == "#" for letter in row] for row in rows])


def png(array: np.ndarray) -> bytes:
    """A PNG of these numbers; True becomes 255."""
    file = io.BytesIO()
    Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(file, "png")
    return file.getvalue()


def noise_png(*shape: int, seed: int = 0) -> bytes:
    """A PNG of random pixels, 24 x 32 if no shape is given; another seed is another image."""
    return png(noise(*(shape or (24, 32)), seed=seed))


def hollow_png(width: int, height: int) -> bytes:
    """A PNG whose header claims these sides and whose pixels are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def archive(entries: dict[str, bytes], **options: Any) -> bytes:
    """A zip that holds these files; always the same bytes, so that a request can be repeated."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as target:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, (2026, 1, 5, 10, 0, 0))
            entry.external_attr = 0o600 << 16
            target.writestr(entry, content, compress_type=target.compression)
    return file.getvalue()


def pairs(count: int = 4, size: tuple[int, int] = (64, 48), *, seed: int = 0) -> dict[str, bytes]:
    """Images and masks of bright bars on noise, as files of an archive."""
    entries = {}
    generator = np.random.default_rng(seed)
    for number in range(count):
        mask = np.zeros(size, bool)
        mask[8:-8, 6 + 3 * number : 12 + 3 * number] = True
        image = (generator.integers(0, 80, size) + mask * 120).astype(np.uint8)
        entries[f"images/{number:02d}.png"] = png(image)
        entries[f"masks/{number:02d}.png"] = png(mask)
    return entries


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


def drawn(text):
    """A probability map as pixels of 0 to 250: each character is a tenth and a half, `.` nothing."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return np.array([[0 if c == "." else 25 * int(c) + 12 for c in line] for line in lines], np.uint8)
