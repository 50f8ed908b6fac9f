"""Measures how hard each term of a loss pulls on some batches, without learning anything."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from models.errors import NotANumber
from models.events import Events
from models.losses import PIXEL_LOSSES
from models.losses.combine import Objective, Schedule
from models.spec import Spec
from models.train import Run

TIMING = frozenset(Schedule.__dataclass_fields__) - {"weight"}
"""When a term counts; here each counts at once."""


def probe(
    facts: dict[str, Any],
    data: str | Path,
    *,
    events: Events,
    batches: int = 10,
    start_from: Path | None = None,
) -> dict[str, Any]:
    """Means over batches of the training data: {"batches", "pixel_norm", "terms": [{name, ...}]}.

    pixel_norm  norm at the logits of the gradient of the pixel losses together, weighted; None where there is none
    Of each term: weight as stated; norm of its gradient, weighted; cosine with the pixel losses (of a pixel loss: with
    the others), in [-1, 1], None where there are none; factor, what `balance` would leave of it; seconds of a batch;
    equal_weight, at which it pulls as hard as the pixel losses together, None for those and where it does not pull.

    The weights are those of `start_from`, or random ones, on which topology terms say little.
    """
    spec, _ = Spec.read(facts)
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    run = Run(spec, data, ".", events=events)
    if start_from is not None:
        run.start_from(start_from)
    run.network.train()
    seen = [_batch(run, number) for number in range(1, batches + 1)]
    run.batches.close()
    pixels = [fields["name"] for fields in run.losses[0]["terms"] if fields["name"] in PIXEL_LOSSES]
    norms = [each["pixels"] for each in seen]
    return {
        "batches": batches,
        "pixel_norm": fmean(norms) if pixels else None,
        "terms": [
            _summary(fields, [each["terms"][fields["name"]] for each in seen], norms if pixels else [])
            for fields in run.losses[0]["terms"]
        ],
    }


def _batch(run, number):
    """Norm of the pixel losses together, and for each term its gradient's norm, cosine and time."""
    images, labels, spacing = run.batches(number)
    images, labels = images.to(run.device), labels.to(run.device)
    with torch.no_grad():
        logits = run.network(images).float()
    found = {}
    for fields in run.losses[0]["terms"]:
        began = time.perf_counter()
        gradient = _gradient(run.losses[0], fields, logits, labels, {"ignore": run.ignore, "spacing": spacing})
        found[fields["name"]] = (gradient, time.perf_counter() - began)
    pixels = sum((gradient for name, (gradient, _) in found.items() if name in PIXEL_LOSSES), torch.zeros_like(logits))
    run.events.log(f"Batch {number} has been looked at.")
    return {
        "pixels": pixels.norm().item(),
        "terms": {
            name: {
                "norm": gradient.norm().item(),
                "cosine": _cosine(gradient, pixels - gradient if name in PIXEL_LOSSES else pixels),
                "seconds": seconds,
            }
            for name, (gradient, seconds) in found.items()
        },
    }


def _gradient(loss, fields, logits, labels, context):
    """Of one term, weighted, with the neighbour penalty if there is one, at the logits of the batch mean."""
    fields = {name: value for name, value in fields.items() if name not in TIMING} | {"balance": None}
    penalty = loss.get("neighbour_penalty")
    penalty = penalty and {name: value for name, value in penalty.items() if name not in TIMING}
    leaf = logits.detach().requires_grad_()
    values, _ = Objective({"terms": [fields], "neighbour_penalty": penalty})(leaf, labels, step=0, **context)
    (gradient,) = torch.autograd.grad(values.mean(), leaf)
    if not torch.isfinite(gradient).all():
        raise NotANumber(f"The gradient of {fields['name']} is not finite.")
    return gradient


def _cosine(gradient, others):
    both = gradient.norm() * others.norm()
    return (gradient * others).sum().div(both).item() if both > 0 else None


def _summary(fields, seen, pixels):
    name, norm = fields["name"], fmean(each["norm"] for each in seen)
    cosines = [each["cosine"] for each in seen if each["cosine"] is not None]
    weight = Objective({"terms": [fields]}).terms[0].schedule.weight
    held = name not in PIXEL_LOSSES and bool(pixels)
    factors = [
        min(1.0, most / each["norm"]) if each["norm"] else 1.0 for each, most in zip(seen, pixels, strict=bool(pixels))
    ]
    return {
        "name": name,
        "weight": weight,
        "norm": norm,
        "cosine": fmean(cosines) if cosines else None,
        "factor": fmean(factors) if held else None,
        "seconds": fmean(each["seconds"] for each in seen),
        "equal_weight": weight * fmean(pixels) / norm if held and norm else None,
    }
