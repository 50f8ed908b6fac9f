"""Metrics of a binary mask, alone and beside its reference.

They are of the whole image, under one stated convention.

Published topology numbers disagree because connectivity, padding and threshold are left unsaid. Here they are a
`MetricSpec`, which travels with every answer and whose digest names it. Degenerate cases are decided once: where both
masks are empty they agree (overlap 1, distance 0); where one is empty they disagree fully (overlap 0, distance the
diagonal of the image).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from topology.branches import compare_branches
from topology.components import (
    betti_numbers,
    euler_characteristic,
    label_background,
    label_components,
    label_holes,
    sizes_and_boxes,
)
from topology.graph import skeleton_totals
from topology.grids import Connectivity, Spacing, as_map, as_mask, as_spacing, same_shape
from topology.matching import match
from topology.partitions import adapted_rand, variation_of_information
from topology.regions import region_graph
from topology.roundness import roundness
from topology.skeleton import skeletonize
from topology.surfaces import surface_distances


@dataclass(frozen=True)
class MetricSpec:
    """The convention behind a number; two numbers compare only if their digests are equal.

    connectivity  "closed" (8/4, 26/6) or "open" (4/8, 6/26)
    threshold     a real map is foreground where it is larger than this; masks (bool or integer) are foreground where
                  not 0
    padding       what lies outside the image: "background", or "foreground" so that structures that touch the border
                  close up
    spacing       pixel size along each axis (mm), or None for pixels; the `spacing` argument of a call goes first
    smallest_object, smallest_hole  components and holes [cavities] of fewer pixels are removed before counting features
    loops         "homology": loops in the true sense; "background": background components under the foreground's large
                  neighbourhood (8 [26]) instead, as some papers count
    voi           "sum" of the two conditional entropies, or their "mean"
    tolerance     distance up to which surfaces agree in `surface_dice`, in the unit of the spacing
    patch         side in pixels of the windows of the patch-wise Betti errors
    version       changes whenever a definition changes; 2: skeletons thinned evenly from all sides, with no branches
                  for a rough outline (clDice, skeleton length and points)
    name          what people call it
    """

    connectivity: str = "closed"
    threshold: float = 0.5
    padding: str = "background"
    spacing: tuple | None = None
    smallest_object: int = 0
    smallest_hole: int = 0
    loops: str = "homology"
    voi: str = "sum"
    tolerance: float = 1.0
    patch: int = 64
    version: str = "2"
    name: str = "exact"

    def __post_init__(self):
        Connectivity(self.connectivity)
        if self.padding not in ("background", "foreground"):
            raise ValueError(f'Padding {self.padding!r} is not known. Use "background" or "foreground".')
        if self.loops not in ("homology", "background"):
            raise ValueError(f'Loops {self.loops!r} is not known. Use "homology" or "background".')
        if self.voi not in ("sum", "mean"):
            raise ValueError(f'VOI {self.voi!r} is not known. Use "sum" or "mean".')
        if not 0 <= self.tolerance < np.inf:
            raise ValueError(f"Tolerance {self.tolerance!r} is no distance. Give 0 or a positive number.")
        if self.patch != int(self.patch) or self.patch < 1:
            raise ValueError(f"Patches of side {self.patch!r} hold no pixel. Give a whole number of at least 1.")
        if self.spacing is not None:
            object.__setattr__(self, "spacing", tuple(float(step) for step in self.spacing))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"spacing": None if self.spacing is None else list(self.spacing)}

    def digest(self) -> str:
        """16 hex digits that name this convention: SHA-256 of its sorted JSON."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


EXACT = MetricSpec()
SHPM2023 = MetricSpec(smallest_object=100, smallest_hole=10, loops="background", voi="mean", name="shpm2023")
"""The counting of the SHPM paper's tables, offered so that its numbers can be quoted beside exact ones."""
SPECS = {spec.name: spec for spec in (EXACT, SHPM2023)}


def binarise(values: ArrayLike, spec: MetricSpec = EXACT) -> np.ndarray:
    """uint8 mask of a mask (not 0) or of a real map (larger than the threshold of the spec)."""
    values = np.asarray(values)
    return as_mask(as_map(values) > spec.threshold) if values.dtype.kind == "f" else as_mask(values)


def _framed(mask, spec):
    """The mask with its outside made explicit when that outside is foreground."""
    return mask if spec.padding == "background" else np.pad(mask, 1, constant_values=1)


def _spacing(spacing, spec, ndim):
    return as_spacing(spec.spacing if spacing is None else spacing, ndim)


def _components(mask, spec, spacing, most):
    """{components: the largest, by size; roundness: mean over all}."""
    labels, count = label_components(mask, connectivity=spec.connectivity)
    sizes, boxes = sizes_and_boxes(labels, count)
    round_ = roundness(labels, count, sizes, spacing=spacing) if mask.ndim == 2 else None
    largest = np.argsort(-sizes, kind="stable")[:most]
    each = [None] * len(largest) if round_ is None else round_[largest].tolist()
    listed = [
        {"size": size, "box": box, "roundness": r}
        for size, box, r in zip(sizes[largest].tolist(), boxes[largest].tolist(), each, strict=True)
    ]
    return {"roundness": None if round_ is None or not count else float(round_.mean()), "components": listed}


def report(
    mask: np.ndarray, *, spacing: Spacing = None, spec: MetricSpec = EXACT, most_components: int | None = None
) -> dict[str, Any]:
    """The topology of one mask: Betti numbers, Euler characteristic, skeleton length and points, and its components.

    mask     (rows, columns) or (planes, rows, columns), binary or a real map that `spec` thresholds
    spacing  pixel size along each axis, e.g. mm; `skeleton_length` is in its unit, else in pixels
    most_components  how many components are listed (None: all); the counts and the mean know all
    returns  dict: beta0, beta1[, beta2], euler, foreground, skeleton_length, skeleton_length_px, branch_points,
             end_points, branches,
             spurs (see `graph.SkeletonTotals`), roundness (mean over the components, None where there is none and in
             volumes), components (largest first: {size in pixels, box [start, stop), roundness}), spec, spec_digest
    Components and skeleton are those of the mask itself; padding concerns only the counts. Time is linear in the
    pixels.
    """
    mask = binarise(mask, spec)
    spacing = _spacing(spacing, spec, mask.ndim)
    betti = betti_numbers(_framed(mask, spec), connectivity=spec.connectivity)
    lines = skeleton_totals(
        skeletonize(mask, connectivity=spec.connectivity), mask, spacing=spacing, connectivity=spec.connectivity
    )
    return {
        **{f"beta{k}": number for k, number in enumerate(betti)},
        "euler": sum(number * (-1) ** k for k, number in enumerate(betti)),
        "foreground": int(np.count_nonzero(mask)),
        "skeleton_length": lines.length,
        "skeleton_length_px": lines.length_px,
        "branch_points": lines.branch_points,
        "end_points": lines.end_points,
        "branches": lines.branches,
        "spurs": lines.spurs,
        **_components(mask, spec, spacing, most_components),
        "spec": spec.as_dict(),
        "spec_digest": spec.digest(),
    }


def _ratio(part, whole, empty):
    return float(part / whole) if whole else float(empty)


def overlap(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Dice and intersection over union of two 0/1 masks; both 1 when both are empty."""
    both, one, other = (int(np.count_nonzero(m)) for m in (prediction & reference, prediction, reference))
    return _ratio(2 * both, one + other, 1), _ratio(both, one + other - both, 1)


def centreline_dice(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    skeletons: Sequence[np.ndarray] | None = None,
) -> float:
    """clDice: harmonic mean of how much of each skeleton lies in the other mask; both empty 1, one empty 0.

    skeletons  of both masks where they are known
    Source: Shit et al., CVPR 2021, with our exact skeletons in place of the published ones.
    """
    if not prediction.any() or not reference.any():
        return float(not prediction.any() and not reference.any())
    lines = skeletons or [skeletonize(mask, connectivity=connectivity) for mask in (prediction, reference)]
    precision = np.count_nonzero(lines[0] & reference.view(bool)) / np.count_nonzero(lines[0])
    sensitivity = np.count_nonzero(lines[1] & prediction.view(bool)) / np.count_nonzero(lines[1])
    return _ratio(2 * precision * sensitivity, precision + sensitivity, 0)


def _without_small(mask, spec):
    """The mask without its holes and then its components that are smaller than the spec asks."""
    for smallest, label, value in ((spec.smallest_hole, label_holes, 1), (spec.smallest_object, label_components, 0)):
        if smallest > 0:
            labels, count = label(mask, connectivity=spec.connectivity)
            small = np.concatenate([[False], sizes_and_boxes(labels, count)[0] < smallest])
            mask = np.where(small[labels], value, mask).astype(np.uint8)
    return mask


def _counts(mask, spec):
    """Betti numbers as the spec counts them."""
    framed = _framed(_without_small(mask, spec), spec)
    betti = betti_numbers(framed, connectivity=spec.connectivity)
    if spec.loops == "homology":
        return betti
    return (betti[0], label_components(framed == 0)[1], *betti[2:])


def betti_errors(prediction: np.ndarray, reference: np.ndarray, spec: MetricSpec = EXACT) -> dict[str, Any]:
    """Absolute differences of the Betti numbers and of the Euler characteristic: {beta0_error, beta1_error[,
    beta2_error], euler_error}.
    """
    ours, theirs = (_counts(m, spec) for m in (prediction, reference))
    euler = [
        euler_characteristic(_framed(_without_small(m, spec), spec), connectivity=spec.connectivity)
        for m in (prediction, reference)
    ]
    errors = {f"beta{k}_error": abs(a - b) for k, (a, b) in enumerate(zip(ours, theirs, strict=True))}
    return errors | {"euler_error": abs(euler[0] - euler[1])}


def patch_betti_errors(prediction: np.ndarray, reference: np.ndarray, spec: MetricSpec = EXACT) -> dict[str, Any]:
    """Means over windows of the absolute differences of the Betti numbers: {patch_beta0_error, patch_beta1_error[,
    patch_beta2_error]}.

    Windows of `spec.patch` pixels a side tile the image from its first pixel; those at the far borders may be smaller.
    Whatever leaves a window ends there. So a feature in the wrong place counts twice, unlike in `betti_errors`. Source:
    Hu et al., "Topology-Preserving Deep Image Segmentation", NeurIPS 2019, who draw the windows at random.
    """
    starts = np.stack(np.meshgrid(*(range(0, side, spec.patch) for side in prediction.shape), indexing="ij"), axis=-1)
    windows = [tuple(slice(k, k + spec.patch) for k in start) for start in starts.reshape(-1, prediction.ndim)]
    errors = [
        np.abs(np.subtract(*(_counts(mask[where], spec) for mask in (prediction, reference)))) for where in windows
    ]
    return {f"patch_beta{k}_error": float(error) for k, error in enumerate(np.mean(errors, axis=0))}


class Shared(NamedTuple):
    """Features of one dimension: of both masks, of the prediction alone, of the reference alone."""

    matched: int
    spurious: int
    missing: int

    @property
    def f1(self) -> float:
        """Topological F1: twice the matched features over those of both masks, in [0, 1]; 1 where neither has any.

        Where the reference has none, p features of the prediction give 0.5 / (p + 0.5), so that fewer are better.
        """
        if self.spurious and not self.matched + self.missing:
            return 0.5 / (self.spurious + 0.5)
        return _ratio(2 * self.matched, 2 * self.matched + self.spurious + self.missing, 1)


def shared_features(prediction: np.ndarray, reference: np.ndarray, spec: MetricSpec = EXACT) -> list[Shared]:
    """Betti matching of two 0/1 masks: a `Shared` for each dimension.

    Source: Stucki et al., ICML 2023; the essential components count as features and are matched to each other when both
    masks have foreground.
    """
    framed = [_framed(mask, spec).astype(np.float32) for mask in (prediction, reference)]
    found = match(*framed, connectivity=spec.connectivity)
    dimensions = (
        found.prediction.dimension[found.matched[:, 0]],
        found.prediction.dimension[found.only_prediction],
        found.reference.dimension[found.only_reference],
    )
    counts = np.stack([np.bincount(dimension, minlength=prediction.ndim) for dimension in dimensions], axis=1)
    # The essential bar of an empty mask is its background: no feature.
    void = [not mask.any() for mask in framed]
    counts[0] += -any(void), void[1] and not void[0], void[0] and not void[1]
    return [Shared(*row) for row in counts.tolist()]


def topo_f1(shared: Sequence[Shared]) -> float:
    """Mean of the topological F1 over the dimensions in which either mask has a feature; 1 where there is none.

    The weights 0.34, 0.33 and 0.33 are those of the Vesuvius Challenge (see `vesuvius_score`).
    """
    active = [(weight, each.f1) for weight, each in zip((0.34, 0.33, 0.33), shared, strict=False) if any(each)]
    return _ratio(sum(weight * f1 for weight, f1 in active), sum(weight for weight, _ in active), 1)


def betti_matching(shared: Sequence[Shared]) -> dict[str, Any]:
    """{betti_matching_error, betti_matched, betti_spurious, betti_missing, topo_f1, topo_f1_0, topo_f1_1[, topo_f1_2]}
    of `shared_features`; the error is the number of features without a partner.
    """
    matched, spurious, missing = (sum(column) for column in zip(*shared, strict=True))
    return {
        "betti_matching_error": spurious + missing,
        "betti_matched": matched,
        "betti_spurious": spurious,
        "betti_missing": missing,
        "topo_f1": topo_f1(shared),
        **{f"topo_f1_{k}": each.f1 for k, each in enumerate(shared)},
    }


def _kind(false, touched, change):
    """What a critical region is called: (kind, dimension), from which mask has it, what it touches and what it would
    change.
    """
    if touched == 0:
        return ("spurious" if false else "missing"), 0
    if touched > 1:
        return ("merge" if false else "break"), 0
    dimension = int(np.flatnonzero(change)[0])
    if change[dimension] > 0:
        return ("merge" if false else "break"), dimension
    return ("missing" if false else "hole"), dimension


def locate_errors(
    prediction: np.ndarray, reference: np.ndarray, *, ignore: np.ndarray | None = None, spec: MetricSpec = EXACT
) -> list[dict[str, Any]]:
    """Where the topology of a prediction is wrong: one entry for each wrong region that matters, the most severe first.

    prediction  binary mask, or real map that `spec` thresholds; reference likewise
    returns     list of {kind, dimension, position, box, size, persistence}
    kind        break: the reference is connected [closes a loop] here; merge: the prediction connects [closes] what is
                apart;
                spurious: a component that is not there; missing: a component, or a hole that the prediction fills;
                hole: one too many
    position    pixel of the region nearest to its centre; box: half open; size: pixels
    persistence how far the threshold would have to move until no pixel of the region is wrong, in units of the map (a
    mask: 1)
    """
    same_shape(prediction, reference)
    values = np.asarray(prediction)
    masks = [binarise(image, spec) for image in (prediction, reference)]
    if ignore is not None:
        same_shape(prediction, ignore, "Prediction and ignore")
        masks = [mask * (as_mask(ignore) == 0) for mask in masks]
    regions = region_graph(*masks, connectivity=spec.connectivity)
    depth = np.abs(values - spec.threshold) if values.dtype.kind == "f" else np.ones(values.shape)
    lasting = np.zeros(len(regions.false) + 1)
    np.maximum.at(lasting, regions.labels.ravel(), depth.ravel())
    errors = []
    for k in np.flatnonzero(regions.critical):
        kind, dimension = _kind(regions.false[k], regions.touched[k], regions.changes[k])
        place, box = regions.places[k].tolist(), regions.boxes[k].tolist()
        errors.append(
            {
                "kind": kind,
                "dimension": dimension,
                "position": place,
                "box": box,
                "size": int(regions.sizes[k]),
                "persistence": float(lasting[k + 1]),
            }
        )
    return sorted(errors, key=lambda error: (-error["persistence"], -error["size"], error["position"]))


def _compared(prediction, reference, ignore, spec):
    """Both masks without the pixels to leave out, and which pixels are kept (None: all)."""
    same_shape(prediction, reference)
    prediction, reference = binarise(prediction, spec), binarise(reference, spec)
    if ignore is None:
        return prediction, reference, None
    same_shape(prediction, ignore, "Prediction and ignore")
    keep = as_mask(ignore) == 0
    return prediction * keep, reference * keep, keep


def measure(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    spacing: Spacing = None,
    ignore: np.ndarray | None = None,
    spec: MetricSpec = EXACT,
) -> dict[str, Any]:
    """Every metric of one binary class on the whole image: a flat dict of numbers.

    prediction  binary mask, or real map that `spec` thresholds
    reference   the same, of equal shape
    spacing     pixel size along each axis, e.g. mm; distances are in its unit, else in pixels
    ignore      bool, pixels to leave out (not labelled): out of the partitions, and background in both masks for all
                the rest
    returns     dice, iou, cldice, voi (bits), voi_split, voi_merge, adapted_rand_error, adapted_rand_precision,
                adapted_rand_recall, beta0_error, beta1_error[, beta2_error], euler_error, patch_beta0_error,
                patch_beta1_error[, patch_beta2_error], betti_matching_error, betti_matched, betti_spurious,
                betti_missing, topo_f1, topo_f1_0, topo_f1_1[, topo_f1_2], branches_fragmented, branches_missing,
                surface_dice, average_surface_distance, hausdorff, hd95

    The partitions behind VOI and adapted Rand are the background components (cells between membranes) with the
    foreground as label 0: VOI compares all pixels, adapted Rand those whose reference label is not 0.
    """
    prediction, reference, keep = _compared(prediction, reference, ignore, spec)
    dice, iou = overlap(prediction, reference)
    cells = [label_background(mask, connectivity=spec.connectivity)[0] for mask in (reference, prediction)]
    split, merge = variation_of_information(*cells, keep=keep)
    pairs = adapted_rand(*cells, keep=keep)
    lines = [skeletonize(mask, connectivity=spec.connectivity) for mask in (prediction, reference)]
    branches = compare_branches(prediction, reference, skeleton=lines[1], connectivity=spec.connectivity)
    apart = surface_distances(prediction, reference, spacing=_spacing(spacing, spec, prediction.ndim))
    return {
        "dice": dice,
        "iou": iou,
        "cldice": centreline_dice(prediction, reference, skeletons=lines),
        "voi": (split + merge) / (1 if spec.voi == "sum" else 2),
        "voi_split": split,
        "voi_merge": merge,
        "adapted_rand_error": pairs.error,
        "adapted_rand_precision": pairs.precision,
        "adapted_rand_recall": pairs.recall,
        **betti_errors(prediction, reference, spec),
        **patch_betti_errors(prediction, reference, spec),
        **betti_matching(shared_features(prediction, reference, spec)),
        "branches_fragmented": branches.count("fragmented"),
        "branches_missing": branches.count("missing"),
        "surface_dice": apart.dice(spec.tolerance),
        "average_surface_distance": apart.average,
        "hausdorff": apart.hausdorff(),
        "hd95": apart.hausdorff(95),
    }


class VesuviusScore(NamedTuple):
    """The score of the Vesuvius Challenge and what it is made of, each in [0, 1], larger is better.

    score         0.30 topo_f1 + 0.35 surface_dice + 0.35 voi_score
    topo_f1       mean of the topological F1 over components, loops and cavities
    surface_dice  at a tolerance of 2, in the unit of the spacing
    voi_score     1 / (1 + 0.3 VOI), of the components of both masks over the union of their foregrounds
    """

    score: float
    topo_f1: float
    surface_dice: float
    voi_score: float


def vesuvius_score(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    spacing: Spacing = None,
    ignore: np.ndarray | None = None,
    spec: MetricSpec = EXACT,
) -> VesuviusScore:
    """The score by which the Vesuvius Challenge of 2026 ranked segmentations of surfaces: `VesuviusScore`.

    Arguments as for `measure`; pixels to leave out are background in both masks. Source: "Topological metrics for 3D
    instance segmentation of surfaces", the published scorer of the challenge, whose surface Dice weighs triangles by
    their area (see `topology.surfaces`) and whose matching leaves out the component of each mask that never dies.
    """
    prediction, reference, _ = _compared(prediction, reference, ignore, spec)
    labels = [label_components(mask, connectivity=spec.connectivity)[0] for mask in (reference, prediction)]
    voi = sum(variation_of_information(*labels, keep=prediction | reference))
    apart = surface_distances(prediction, reference, spacing=_spacing(spacing, spec, prediction.ndim))
    parts = topo_f1(shared_features(prediction, reference, spec)), apart.dice(2.0), 1 / (1 + 0.3 * voi)
    return VesuviusScore(sum(weight * part for weight, part in zip((0.30, 0.35, 0.35), parts, strict=True)), *parts)
