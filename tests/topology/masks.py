"""Masks from drawings, random masks and maps, and labelled real images."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TOPOSERVE_DATA_SHARED", ROOT.parent / "shared" / "data"))


def mask(picture):
    """Bool mask of a drawing: `#` is foreground, `.` background; a blank line starts the next plane."""
    planes = [[line.strip() for line in plane.split("\n") if line.strip()] for plane in picture.strip().split("\n\n")]
    drawn = np.array([[[mark == "#" for mark in line] for line in plane] for plane in planes])
    return drawn[0] if len(drawn) == 1 else drawn


def random_masks(count, *, seed, longest=(16, 9), ndims=(2, 3)):
    """Random masks of random density and shape, white or blotchy, sides from 1 up to `longest` for 2 and 3 axes."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        ndim = int(random.choice(ndims))
        shape = tuple(random.integers(1, longest[ndim - 2] + 1, ndim))
        values = random.random(shape)
        if random.random() < 0.5:
            values = (values + np.roll(values, 1, 0) + np.roll(values, 1, -1)) / 3
        yield values < random.random()


def random_maps(count, *, seed, longest=(16, 9), ndims=(2, 3)):
    """Random float32 maps of random shape: white, smooth, or with plateaus of four values."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        ndim = int(random.choice(ndims))
        values = random.standard_normal(tuple(random.integers(1, longest[ndim - 2] + 1, ndim)))
        texture = random.integers(3)
        if texture == 1:
            values = gaussian_filter(values, 1)
        if texture == 2:
            values = np.clip(np.round(values), -1, 2)
        yield values.astype(np.float32)


def shared_masks(folder, roles):
    """(file, array, Betti numbers by class or None) of every labelled image whose role is asked, from a manifest."""
    manifest = DATA / folder / "manifest.csv"
    if not manifest.exists():
        pytest.skip(f"{folder} is not in {DATA}; set TOPOSERVE_DATA_SHARED to the folder that holds it")
    with manifest.open() as lines:
        for row in csv.DictReader(lines):
            if row["role"] in roles and row["betti"]:
                yield row["file"], _read(DATA / folder / row["file"]), row["betti"]


def _read(path):
    if path.name.endswith(".nii.gz"):
        import nibabel

        return np.asarray(nibabel.load(path).dataobj)
    from PIL import Image

    return np.asarray(Image.open(path))
