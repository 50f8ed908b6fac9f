"""Exact Euclidean distance transform with pixel spacing, in linear time.

One axis at a time: along each line the squared distance is the lower envelope of parabolas that stand on the pixels
(Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions", 2012). The first axis has only 0 and
infinity to look at.
"""

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.grids import Spacing, as_mask, as_spacing, as_volume

FAR = 1e30
"""Squared distance where no site exists; a finite number, because infinity minus infinity would poison the envelope."""


@njit(cache=True, nogil=True)
def _envelope(values, step, out, feet, meets):
    """Squared distances along one line: out[i] = min_j values[j] + (step (i - j))^2."""
    n = values.size
    top = 0
    feet[0] = 0
    meets[0] = -FAR
    square = step * step
    for j in range(1, n):
        while True:
            i = feet[top]
            meet = ((values[j] - values[i]) / square + j * j - i * i) / (2.0 * (j - i))
            if meet > meets[top] or top == 0:
                break
            top -= 1
        if meet <= meets[top]:
            feet[0] = j
            continue
        top += 1
        feet[top] = j
        meets[top] = meet
    k = 0
    for i in range(n):
        while k < top and meets[k + 1] < i:
            k += 1
        gap = step * (i - feet[k])
        out[i] = values[feet[k]] + gap * gap


@njit(cache=True, nogil=True)
def _squared(sites, spacing):
    """Squared distance from every pixel of a volume to the nearest site."""
    planes, rows, columns = sites.shape
    squared = np.empty(sites.shape, np.float64)
    longest = max(planes, rows, columns)
    values = np.empty(longest)
    out = np.empty(longest)
    feet = np.empty(longest, np.int64)
    meets = np.empty(longest + 1)
    for z in range(planes):
        for y in range(rows):
            gap = FAR
            for x in range(columns):
                gap = 0.0 if sites[z, y, x] else gap + spacing[2]
                squared[z, y, x] = gap
            gap = FAR
            for x in range(columns - 1, -1, -1):
                gap = 0.0 if sites[z, y, x] else gap + spacing[2]
                gap = min(gap, squared[z, y, x])
                squared[z, y, x] = gap * gap if gap < FAR else FAR
    if rows > 1:
        for z in range(planes):
            for x in range(columns):
                values[:rows] = squared[z, :, x]
                _envelope(values[:rows], spacing[1], out[:rows], feet, meets)
                squared[z, :, x] = out[:rows]
    if planes > 1:
        for y in range(rows):
            for x in range(columns):
                values[:planes] = squared[:, y, x]
                _envelope(values[:planes], spacing[0], out[:planes], feet, meets)
                squared[:, y, x] = out[:planes]
    return squared


def distance_to(sites: ArrayLike, *, spacing: Spacing = None) -> np.ndarray:
    """Distance from every pixel to the nearest pixel of `sites`, float64, in the unit of `spacing`; infinite without
    sites.
    """
    sites = as_mask(sites)
    volume_spacing = np.ones(3)
    volume_spacing[3 - sites.ndim :] = as_spacing(spacing, sites.ndim)
    if not sites.any():
        return np.full(sites.shape, np.inf)
    return np.sqrt(_squared(as_volume(sites), volume_spacing)).reshape(sites.shape)


def distance_inside(mask: ArrayLike, *, spacing: Spacing = None) -> np.ndarray:
    """Distance from every foreground pixel to the nearest background pixel, the outside of the array included; 0 in
    background.

    The local radius of a vessel is this value on its centre line, give or take half a pixel.
    """
    mask = as_mask(mask)
    padded = np.pad(mask, 1)
    inner = (slice(1, -1),) * mask.ndim
    return distance_to(padded == 0, spacing=spacing)[inner]
