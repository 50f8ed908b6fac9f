"""How close each component of a plane is to a disc."""

import numpy as np
from numba import njit

from topology.grids import Spacing, as_spacing


@njit(cache=True, nogil=True)
def _crossings(labels, count):
    """(count, 3) int64: ends of the chords that each label leaves on the lines along rows, along columns and along both
    diagonals.
    """
    found = np.zeros((count, 3), np.int64)
    rows, columns = labels.shape
    for y in range(rows):
        for x in range(columns):
            label = labels[y, x]
            if label == 0:
                continue
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    inside = 0 <= y + dy < rows and 0 <= x + dx < columns
                    if not inside or labels[y + dy, x + dx] != label:
                        found[label - 1, 0 if dy == 0 else 1 if dx == 0 else 2] += 1
    return found


def _crofton_weights(spacing):
    """Length that one chord end stands for, along (rows, columns, diagonals): half the line distance times the angle of
    the direction.
    """
    height, width = spacing
    diagonal = np.hypot(height, width)
    slope = np.arctan2(height, width)
    angles = np.array([slope, np.pi / 2 - slope, np.pi / 4])
    return angles * np.array([height, width, height * width / diagonal]) / 2


def perimeters(labels: np.ndarray, count: int, *, spacing: Spacing = None) -> np.ndarray:
    """Length of the outline of each label, holes included, in the unit of the spacing (else pixels): (count,) float64.

    labels  (rows, columns) int32, 0 for background, 1..count; what lies outside the image is background
    Crofton's formula in four directions: the length of a curve is half the integral, over all lines of the plane, of
    how often a line meets it; the lines are those along rows, columns and both diagonals, each weighted by the angle
    nearest to it. Source: Lehmann and Legland, Insight Journal 2012; with square pixels these are the weights of
    Rivollier (thesis, 2010).
    """
    return _crossings(labels, count) @ _crofton_weights(as_spacing(spacing, 2))


def roundness(labels: np.ndarray, count: int, sizes: np.ndarray, *, spacing: Spacing = None) -> np.ndarray:
    """Roundness 4 pi area / perimeter^2 of each label, 1 for a disc and towards 0 for a line: (count,) float64 in (0,
    1].

    sizes   pixels of each label, (count,); for labels and spacing see `perimeters`
    No plane shape exceeds 1 (isoperimetric inequality), but the estimated perimeter of a few pixels is too short; such
    values are cut to 1, as ImageJ does with its circularity. Digital discs of radius 5.5 to 100 pixels come out above
    0.9; the four pixels that stick out of the disc of radius 5 about a pixel cost it 0.1 (0.88), and smaller shapes
    tell even less.
    """
    area = sizes * np.prod(as_spacing(spacing, 2))
    return np.minimum(4 * np.pi * area / perimeters(labels, count, spacing=spacing) ** 2, 1.0)
