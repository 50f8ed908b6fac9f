"""Prediction of whole images by a torch network, and their topology beside the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from models.data import Dataset, Item
from models.networks import Network
from models.scaling import scale

if TYPE_CHECKING:
    from topology.containment import Rule

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]
LOWER_IS_BETTER = frozenset({"error", "violations", "voi", "hd95"})
"""A metric with one of these words in its name is a distance; every other one is an agreement."""
TILE = {2: 512, 3: 96}
"""Side, in pixels, of the piece of an image that is predicted at once; with its surroundings it fits any device."""


def activate(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities: sigmoid for one channel, softmax over classes for more."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


@torch.no_grad()
def predict(
    network: Network, image: np.ndarray, *, device: str | torch.device = "cpu", tile: int | None = None
) -> np.ndarray:
    """Probabilities (K, ...) float32 of one scaled image (C, ...) float32 of any sides.

    The image is cut into tiles; each is seen with the network's whole receptive field around it, so the pieces fit
    together as if the image had been seen at once; a field that is the whole image is a quarter of a tile. Sides are
    filled up to the network's multiple by repeating the last pixel.
    """
    tile, field = tile or TILE[network.dimensions], network.receptive_field
    halo = _round_up(tile // 4 if field is None else field // 2, network.multiple)
    tile = _round_up(tile, network.multiple)
    sides = image.shape[1:]
    padded = _pad(torch.from_numpy(np.ascontiguousarray(image))[None].to(device), network.multiple)
    answer = padded.new_empty(0)
    for start in np.ndindex(*[math.ceil(side / tile) for side in padded.shape[2:]]):
        inner = [slice(i * tile, min((i + 1) * tile, side)) for i, side in zip(start, padded.shape[2:], strict=True)]
        outer = [
            slice(max(s.start - halo, 0), min(s.stop + halo, side))
            for s, side in zip(inner, padded.shape[2:], strict=True)
        ]
        prob = activate(network(padded[(..., *outer)]).float())
        if not len(answer):
            answer = prob.new_empty((prob.shape[1], *padded.shape[2:]))
        within = [slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True)]
        answer[(slice(None), *inner)] = prob[0][(slice(None), *within)]
    return answer[(slice(None), *map(slice, sides))].cpu().numpy()


def _round_up(number, multiple):
    return -(-number // multiple) * multiple


def _pad(batch, multiple):
    """Repeat the last pixel of each axis until every side is a multiple."""
    padding = [amount for side in reversed(batch.shape[2:]) for amount in (0, -side % multiple)]
    return F.pad(batch, padding, mode="replicate") if any(padding) else batch


def masks(prob: np.ndarray, threshold: float) -> np.ndarray:
    """One bool mask per foreground class (K', ...):
    above the threshold for one channel, the likeliest class for more.
    """
    if len(prob) == 1:
        return prob > threshold
    return prob.argmax(0) == np.arange(1, len(prob)).reshape(-1, *[1] * (prob.ndim - 1))


def measure_item(
    prob: np.ndarray,
    item: Item,
    dataset: Dataset,
    threshold: float,
    rules: Sequence[Rule] = (),
    change: Change | None = None,
) -> dict[str, dict[str, Any]]:
    """{class: metrics} of one whole image; pixels that are not labelled count nowhere.

    rules   `topology.containment.Rule`s between classes; their subjects have `rule_violations` too
    change  (masks, references), each (K', ...) bool -> the masks that are measured instead
    """
    from topology.containment import broken_rules  # compiled kernels: loaded by the first validation, not by the import
    from topology.metrics import measure

    label = np.asarray(item.label())
    ignored = None if dataset.ignore is None else label == dataset.ignore
    answered = masks(prob, threshold)
    references = label == np.arange(1, len(dataset.classes)).reshape(-1, *[1] * label.ndim)
    if change is not None:
        answered = change(answered if ignored is None else answered & ~ignored, references)
    reports = {
        name: measure(mask, reference, spacing=item.spacing_mm, ignore=ignored)
        for name, mask, reference in zip(dataset.classes[1:], answered, references, strict=True)
    }
    if rules:
        for subject, found in broken_rules(prob.argmax(0), label, rules, ignore=ignored).items():
            reports[dataset.classes[subject]]["rule_violations"] = sum(each["count"] for each in found)
    return reports


def mean_metrics(reports: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over reports; a figure that is undefined somewhere (None or NaN) is left out there, and is None when
    undefined everywhere.
    """
    names = dict.fromkeys(name for report in reports for name, value in report.items() if _is_number(value))
    return {name: _mean([report.get(name) for report in reports]) for name in names}


def _is_number(value):
    return value is None or (isinstance(value, (int, float, np.number)) and not isinstance(value, bool))


def _mean(values):
    values = [float(value) for value in values if value is not None and math.isfinite(value)]
    return sum(values) / len(values) if values else None


def as_numbers(report: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int | float | None]]:
    """{class: {metric: int, float or None}} of a report, as JSON can hold it."""
    return {
        name: {
            key: value.item() if isinstance(value, np.number) else value
            for key, value in found.items()
            if _is_number(value)
        }
        for name, found in report.items()
    }


def evaluate(
    network: Network,
    items: Sequence[Item],
    dataset: Dataset,
    *,
    scaling: dict[str, Any],
    threshold: float,
    rules: Sequence[Rule] = (),
    change: Change | None = None,
    device: str | torch.device = "cpu",
    keep_going: Callable[[], bool] = lambda: True,
) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]], list[dict[str, dict[str, Any]]]] | None:
    """(means over images and foreground classes, {class: means over images}, [{class: metrics}] of each item), or None
    when `keep_going` said no.

    Always whole images: patches cut loops open and components apart. `change`: see `measure_item`.
    """
    training, reports = network.training, []
    network.eval()
    try:
        for item in items:
            if not keep_going():
                return None
            prob = predict(network, scale(item.image(), scaling), device=device)
            reports.append(measure_item(prob, item, dataset, threshold, rules, change))
    finally:
        network.train(training)
    per_class = {name: mean_metrics([report[name] for report in reports]) for name in dataset.classes[1:]}
    return mean_metrics([metrics for report in reports for metrics in report.values()]), per_class, reports


def better(metric: str, candidate: float | None, best: float | None) -> bool:
    """True when the candidate's figure beats the best one's; undefined loses to everything."""
    if candidate is None:
        return False
    lower = not LOWER_IS_BETTER.isdisjoint(metric.split("_"))
    return best is None or (candidate < best if lower else candidate > best)
