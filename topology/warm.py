"""Compiles every kernel once, on a small plane and a small volume."""

import numpy as np

from topology.components import betti_numbers, euler_characteristic, label_background, label_components, label_holes
from topology.distance import distance_inside
from topology.edits import connect, cut, fill, remove
from topology.graph import skeleton_graph
from topology.grayscale_thinning import grayscale_thinning
from topology.matching import match
from topology.metrics import measure, report
from topology.morse import ridge_presence
from topology.persistence import persistence
from topology.pruning import prune
from topology.regions import region_graph
from topology.simple import simple_points
from topology.simplify import simplify_below, simplify_to
from topology.skeleton import skeletonize, zhang_suen
from topology.soft_thinning import Thinning, simple_score
from topology.warping import unreached


def _ring(ndim):
    """A ring (plane) or a hollow box (volume) with a tail."""
    mask = np.zeros((9,) * ndim, bool)
    mask[(slice(1, 6),) * ndim] = True
    mask[(slice(2, 5),) * ndim] = False
    mask[(3,) * (ndim - 1) + (slice(5, 9),)] = True
    return mask


def _warm_masks(mask):
    for notion in (
        betti_numbers,
        euler_characteristic,
        label_components,
        label_background,
        label_holes,
        simple_points,
        skeletonize,
    ):
        for connectivity in ("closed", "open"):
            notion(mask, connectivity=connectivity)
    skeleton_graph(skeletonize(mask), mask=mask)
    distance_inside(mask)
    report(mask)
    measure(mask, ~mask, ignore=mask)
    measure(mask, mask)
    unreached(mask, np.flip(mask))


def _warm_maps(values):
    for connectivity in ("closed", "open"):
        persistence(values.astype(np.float32), connectivity=connectivity)
        match(values.astype(np.float32), np.flip(values).astype(np.float32), connectivity=connectivity)
        regions = region_graph(values > 3, np.flip(values) > 2, connectivity=connectivity)
        for fact in ("changes", "boxes"):  # computed when first asked for
            getattr(regions, fact)
        grayscale_thinning(values, connectivity=connectivity)
        for kind in (np.float32, np.float64):
            simplify_below(values.astype(kind), 2.0, connectivity=connectivity)
            for betti in ((1,) + (0,) * (values.ndim - 1), (3,) + (None,) * (values.ndim - 1)):
                options = {"threshold": 3.5, "connectivity": connectivity, "partial": True}
                simplify_to(values.astype(kind), betti, **options)
            _warm_edits(values.astype(kind), connectivity)
        ridge_presence(values, 3.0, 1.0, connectivity=connectivity)
    persistence(values)
    if values.ndim == 2:
        zhang_suen(values > 2)
    prune(values > 2, shorter_than=2)
    simple_score(values / 7)
    for kind in (np.float32, np.float64):
        Thinning((values / 7).astype(kind), iterations=1).back(values)


def _warm_edits(values, connectivity):
    """Each edit by hand, of a bar with a gap and a hole."""
    middle, options = (2,) * (values.ndim - 1), {"connectivity": connectivity}
    bar = np.zeros((5,) * (values.ndim - 1) + (24,), bool)
    bar[(slice(1, 4),) * (values.ndim - 1) + (slice(1, 23),)] = True
    hole, gap = bar.copy(), bar.copy()
    hole[(*middle, 4)] = gap[..., 10:12] = False
    flat = np.resize(values, bar.shape)
    fill(flat, hole, (*middle, 4), **options)
    connect(flat, gap, (*middle, 10), **options)
    connect(flat, gap, (*middle, 4), (*middle, 18), **options)
    remove(flat, gap, (*middle, 4), **options)
    cut(flat, bar, (*middle, 11), **options)
    cut(flat, bar, (*middle, 3), (*middle, 20), **options)


def warm() -> None:
    """Load every kernel, compiling the ones whose machine code is not cached yet."""
    for ndim in (2, 3):
        _warm_masks(_ring(ndim))
        _warm_maps(np.arange(5.0**ndim).reshape((5,) * ndim) % 7)
