"""The table of metrics: what is measured of a mask against its reference.

A new metric is a function in `topology` whose figure `topology.metrics.measure` answers under the metric's name, a row
here, and a column of the table `measurements` with its migration. Schemas, gates of aliases, the metrics that a
training may be judged by, pages and docs/reference/metrics.md follow from the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One figure for one class of one image.

    name        its only spelling: in answers of `measure`, columns, schemas and jobs
    label       on pages
    unit        what it counts, or its range
    better      the direction of improvement
    function    where it is computed
    meaning     one sentence
    digits      shown behind the point
    counts      it is a whole number
    dimensions  of the images that have it
    needs_rules it is counted only where rules between classes are given
    """

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"]
    function: str
    meaning: str
    digits: int = 3
    counts: bool = False
    dimensions: tuple[int, ...] = (2, 3)
    needs_rules: bool = False

    @property
    def judges(self) -> bool:
        """Whether a training may choose its best weights by it: every training has it."""
        return self.dimensions == (2, 3) and not self.needs_rules

    @property
    def bound(self) -> str:
        """What a gate calls the bound that it must keep."""
        return ("min_" if self.better == "higher" else "max_") + self.name


def _error(
    name: str, label: str, unit: str, function: str, meaning: str, dimensions: tuple[int, ...] = (2, 3)
) -> Metric:
    return Metric(
        name,
        label,
        unit,
        "lower",
        f"topology.metrics.{function}",
        meaning,
        digits=2,
        counts=True,
        dimensions=dimensions,
    )


METRICS = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice", "0 to 1", "higher", "topology.metrics.overlap", "Overlap of the two masks."),
        Metric(
            "iou", "IoU", "0 to 1", "higher", "topology.metrics.overlap", "Intersection over union of the two masks."
        ),
        Metric(
            "cldice",
            "clDice",
            "0 to 1",
            "higher",
            "topology.metrics.centreline_dice",
            "Overlap of each skeleton with the other mask.",
        ),
        _error(
            "beta0_error",
            "Betti-0 error",
            "components",
            "betti_errors",
            "Difference in the number of connected components.",
        ),
        _error("beta1_error", "Betti-1 error", "loops", "betti_errors", "Difference in the number of loops."),
        _error(
            "beta2_error",
            "Betti-2 error",
            "cavities",
            "betti_errors",
            "Difference in the number of cavities.",
            dimensions=(3,),
        ),
        _error(
            "betti_matching_error",
            "Betti matching error",
            "features",
            "betti_matching",
            "Features without a partner at the same place.",
        ),
        _error("euler_error", "Euler error", "count", "betti_errors", "Difference in Euler characteristic."),
        Metric(
            "rule_violations",
            "Broken rules",
            "places",
            "lower",
            "topology.containment.violations",
            "Places where the class breaks a rule on what it lies inside or touches.",
            digits=2,
            counts=True,
            needs_rules=True,
        ),
        Metric(
            "voi",
            "Variation of information",
            "bits",
            "lower",
            "topology.partitions.variation_of_information",
            "Information lost by splits and merges.",
        ),
        Metric(
            "adapted_rand_error",
            "Adapted Rand error",
            "0 to 1",
            "lower",
            "topology.partitions.adapted_rand",
            "Pixel pairs put together or apart wrongly.",
        ),
        Metric(
            "hd95",
            "HD95",
            "mm or px",
            "lower",
            "topology.surfaces.surface_distances",
            "95th percentile of the distance between the outlines; mm where the spacing is known.",
            digits=2,
        ),
    )
}
"""By name, in the order in which they are read."""
