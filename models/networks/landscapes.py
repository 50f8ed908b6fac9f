"""PLLay: persistence landscapes of a map as features for the layers that follow."""

from __future__ import annotations

import torch
from torch import nn

from models.losses.persistence import landscapes


class LandscapeLayer(nn.Module):
    """(N, K, ...) maps in [0, 1] to (N, units) features: a linear reading of the landscapes of every map.

    dimensions  Betti dimensions that are looked at
    depth       landscapes a dimension
    points      levels between 0 and 1
    For training and analysis in torch: a network that holds it in its answer cannot leave as ONNX, because persistence
    is a search. Source: Kim et al., NeurIPS 2020; the superlevel filtration of the map itself.
    """

    def __init__(self, maps, units, *, dimensions=(0, 1), depth=2, points=25):
        super().__init__()
        self.options = {"dimensions": tuple(dimensions), "depth": depth, "points": points}
        self.linear = nn.Linear(maps * len(self.options["dimensions"]) * depth * points, units)

    def forward(self, prob: torch.Tensor) -> torch.Tensor:
        return self.linear(landscapes(prob, **self.options).flatten(1))
