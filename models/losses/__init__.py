"""Every loss a specification may name.

A loss is a pure function `(logits, target, *, <hyper-parameters>, ignore=None) -> (N,)`; `models.losses.pixels` states
the shapes. `terms[].name` is a key of LOSSES, and the other fields of the term are its keyword arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.losses.centrelines import cbdice
from models.losses.containment import inside, must_not_touch, must_touch
from models.losses.distances import boundary, region_wise
from models.losses.grayscale import grayscale_cldice
from models.losses.hard_pixels import persistence_hard_pixels, skeleton_hard_pixels, threshold_hard_pixels
from models.losses.matching import betti_matching
from models.losses.morse import dmt_loss
from models.losses.neighbours import neighbour_loss
from models.losses.overlap import cross_entropy, dice, focal, loss_max_pooling, topk, tversky
from models.losses.persistence import betti_prior, landscape_distance, topo_loss, topology_layer
from models.losses.region_graph import dense_matching, topograph
from models.losses.simple_points import csp_skeleton_loss
from models.losses.skeletons import skeleton_recall, soft_cldice
from models.losses.transport import sat_loss
from models.losses.warping import homotopy_warping

_CATALOGUE = (
    (cross_entropy, dice, tversky, focal, loss_max_pooling, topk, boundary, region_wise, neighbour_loss),
    (soft_cldice, skeleton_recall, csp_skeleton_loss, grayscale_cldice, cbdice),
    (threshold_hard_pixels, persistence_hard_pixels, skeleton_hard_pixels, homotopy_warping),
    (topo_loss, betti_prior, topology_layer, landscape_distance),
    (betti_matching, sat_loss, dmt_loss, topograph, dense_matching),
    (inside, must_touch, must_not_touch),
)
LOSSES = {loss.__name__: loss for family in _CATALOGUE for loss in family}

PIXEL_LOSSES = frozenset(loss.__name__ for loss in _CATALOGUE[0])
"""Losses of every pixel: the base beside which the others are weighed."""

RULE_LOSSES = frozenset(loss.__name__ for loss in _CATALOGUE[-1])
"""Losses on rules between classes: for two foreground classes or more, and only with `pairs`."""


@dataclass(frozen=True)
class Usual:
    """What a term is that says nothing about it.

    weight   factor of the loss in the sum
    balance  "gradient": its gradient is held to the norm of that of the pixel losses; None: it is not
    """

    weight: float = 1.0
    balance: str | None = None


_USUAL = {
    "boundary": Usual(0.005),
    "region_wise": Usual(0.3),
    "neighbour_loss": Usual(0.5),
    "skeleton_recall": Usual(0.2),
    "csp_skeleton_loss": Usual(0.5, "gradient"),
    "grayscale_cldice": Usual(0.5, "gradient"),
    "threshold_hard_pixels": Usual(0.1, "gradient"),
    "persistence_hard_pixels": Usual(0.1, "gradient"),
    "skeleton_hard_pixels": Usual(0.1, "gradient"),
    "homotopy_warping": Usual(0.1, "gradient"),
    "topo_loss": Usual(0.05, "gradient"),
    "betti_prior": Usual(0.01, "gradient"),
    "topology_layer": Usual(0.01, "gradient"),
    "landscape_distance": Usual(1.0, "gradient"),
    "betti_matching": Usual(0.05, "gradient"),
    "sat_loss": Usual(0.1, "gradient"),
    "dmt_loss": Usual(0.1, "gradient"),
    "topograph": Usual(0.5, "gradient"),
    "dense_matching": Usual(0.1, "gradient"),
    "inside": Usual(0.5, "gradient"),
    "must_touch": Usual(0.5, "gradient"),
    "must_not_touch": Usual(0.5, "gradient"),
}


def usual(name: str) -> Usual:
    """The one place of default weights (`Usual`) of terms, by HTTP and by `python -m models train` alike.

    Chosen on training runs: benchmarks/defaults.py. The schemas of the service state the same for their readers; a test
    holds them to this.
    """
    return _USUAL.get(name, Usual())


REFERENCE_FREE = frozenset({"betti_prior", "topology_layer"})
"""Losses that do not look at the target, so they learn from images without labels too.

All others never see such an image.
"""

CONTEXT = frozenset({"ignore", "spacing"})
"""Keyword arguments that come from the data, not from the specification."""


def hyper_parameters(loss: str | Callable[..., Any]) -> dict[str, Any]:
    """{name: default} of what a specification may set for this loss (a function, or a key of LOSSES).

    A default of `inspect.Parameter.empty` means that it must.
    """
    loss = LOSSES[loss] if isinstance(loss, str) else loss
    parameters = inspect.signature(loss).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in CONTEXT}


def context_of(loss: Callable[..., Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the context that this loss takes: `spacing` says nothing to a loss that counts pixels."""
    return {name: value for name, value in context.items() if name in inspect.signature(loss).parameters}
