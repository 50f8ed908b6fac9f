"""How far the surfaces of two masks are apart: surface Dice, average and Hausdorff distances.

The surface of a mask is its foreground pixels with a background pixel, or the outside, across a side. Distances run
between pixel centres, exactly, in the unit of the spacing. Degenerate cases are those of `topology.metrics`: two empty
masks agree, and an empty one is the diagonal of the image away from any other, the largest distance it can hold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from topology.distance import distance_to
from topology.grids import Spacing, as_mask, as_spacing, same_shape


class SurfaceDistances(NamedTuple):
    """Distance from each surface pixel of either mask to the surface of the other, in the unit of the spacing.

    prediction  (P,) float64, for the surface pixels of the prediction
    reference   (R,) float64, for those of the reference
    """

    prediction: np.ndarray
    reference: np.ndarray

    def dice(self, tolerance: float) -> float:
        """Surface Dice, or normalised surface distance: the share of both surfaces that lies within a tolerance of the
        other, in [0, 1].

        Every surface pixel weighs the same. Source: Nikolov et al., Journal of Medical Internet Research 23 (2021),
        whose code weighs pieces of a triangulated surface by their area instead.
        """
        total = len(self.prediction) + len(self.reference)
        if not len(self.prediction) or not len(self.reference):
            return float(total == 0)
        return sum(int(np.count_nonzero(side <= tolerance)) for side in self) / total

    @property
    def average(self) -> float:
        """Average symmetric surface distance: the mean over the pixels of both surfaces."""
        both = np.concatenate(self)
        return float(both.mean()) if both.size else 0.0

    def hausdorff(self, percentile: float = 100.0) -> float:
        """Hausdorff distance, or a percentile of the distances in its place: the larger of both directions."""
        return max((float(np.percentile(side, percentile)) for side in self if side.size), default=0.0)


def surface(mask: ArrayLike) -> np.ndarray:
    """Foreground pixels with a background pixel (or the outside) across a side: bool."""
    mask = as_mask(mask)
    core = np.pad(mask, 1)
    inside = mask.astype(bool)
    for axis in range(mask.ndim):
        for shift in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(shift, shift + mask.shape[axis])
            inside &= core[tuple(window)] > 0
    return mask.astype(bool) & ~inside


def surface_distances(prediction: ArrayLike, reference: ArrayLike, *, spacing: Spacing = None) -> SurfaceDistances:
    """How far each surface pixel of two masks lies from the surface of the other: `SurfaceDistances`.

    prediction, reference  masks of one shape, (rows, columns) or (planes, rows, columns); not 0 is foreground
    spacing                pixel size along each axis, e.g. mm; None: pixels
    """
    same_shape(prediction, reference)
    masks = as_mask(prediction), as_mask(reference)
    spacing = as_spacing(spacing, masks[0].ndim)
    first, second = (surface(mask) for mask in masks)
    diagonal = float(np.linalg.norm((np.array(first.shape) - 1) * spacing))
    return SurfaceDistances(
        *(
            distance_to(there, spacing=spacing)[here] if there.any() else np.full(np.count_nonzero(here), diagonal)
            for here, there in ((first, second), (second, first))
        )
    )
