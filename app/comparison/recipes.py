"""`recipe: auto` of a training: which losses are compared, and on how many steps."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from app.comparison.plan import Planned, trainings_of
from app.schemas.comparisons import CompareSpec, NamedLoss
from app.schemas.jobs import TrainSpec

FIRST_STAGE = 0.7
"""Share of the steps that are trained with the baseline before a topology term is added."""
SLOWER = 0.25
"""Learning rate of the second stage over that of the first: a trained network is changed with care."""
FOLDS = 3
BUDGET = 10
"""Steps of the whole comparison unless stated, in steps of the training."""
LEAST = (20, 10)
"""Steps of the two stages below which a comparison says nothing."""

_PIXELS = [{"name": "cross_entropy"}, {"name": "dice"}]
_SCNP = {"window": "auto", "mode": "add"}


def _named(name: str, *terms: dict[str, Any], penalty: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "loss": {"terms": [*_PIXELS, *terms], "neighbour_penalty": penalty}}


SHORTLIST: list[NamedLoss] = TypeAdapter(list[NamedLoss]).validate_python(
    [
        _named("CE + Dice"),
        _named("+ SCNP", penalty=_SCNP),
        _named("+ soft clDice", {"name": "soft_cldice", "weight": 0.5}),
        _named("+ skeleton recall", {"name": "skeleton_recall"}),
        _named("+ Topograph", {"name": "topograph"}),
        _named("+ dense matching", {"name": "dense_matching", "weight": 0.5}),
        _named("+ Betti matching 0.05", {"name": "betti_matching", "weight": 0.05}),
        _named("+ Betti matching 0.5", {"name": "betti_matching", "weight": 0.5}),
        _named("+ Betti matching 0.1 + SCNP", {"name": "betti_matching", "weight": 0.1}, penalty=_SCNP),
    ]
)
"""The candidates, the baseline first. Weights are those that helped in fine-tunings by hand (docs/losses.md)."""


def stages(steps: int) -> tuple[int, int]:
    """Steps with the baseline, and steps with the loss that was chosen."""
    first = max(1, round(FIRST_STAGE * steps))
    return first, max(1, steps - first)


def second_stage(spec: TrainSpec) -> dict[str, Any]:
    """What the second stage changes in the training."""
    _, steps = stages(spec.steps)
    optimizer = spec.optimizer.model_dump(mode="json") | {"lr": spec.optimizer.lr * SLOWER}
    return {"steps": steps, "optimizer": optimizer}


def comparison_of(spec: TrainSpec, groups: int) -> CompareSpec:
    """The comparison that chooses the loss of a training, within its budget.

    groups  of labelled images, of which folds can be cut; of fewer than two the split of the training is kept
    Raises ValueError, with the budget that would do, when a stage would have too few steps.
    """
    folds = spec.folds or (min(FOLDS, groups) if groups > 1 else None)
    first, second = stages(spec.steps)
    whole = (folds or 1) * (first + len(SHORTLIST) * second)
    budget = BUDGET * spec.steps if spec.budget is None else spec.budget
    share = min(1.0, budget / whole)
    scaled = tuple(int(share * steps) for steps in (first, second))
    least = tuple(min(steps, few) for steps, few in zip((first, second), LEAST, strict=True))
    if spec.budget is None:  # of a short training it is what the least takes
        scaled = tuple(max(pair) for pair in zip(scaled, least, strict=True))
    if scaled[0] < least[0] or scaled[1] < least[1]:
        needed = max(-(-whole * few // steps) for few, steps in zip(least, (first, second), strict=True))
        raise ValueError(
            f"budget is {budget} steps for {len(SHORTLIST)} losses on {folds or 1} folds, so each would be trained for"
            f" {scaled[1]} steps after {scaled[0]}; at least {needed + 1} are needed."
        )
    left_out = {"kind", "recipe", "budget", "loss", "seed", "fold", "early_stopping", "start_from"}
    training = spec.model_dump(mode="json", exclude=left_out) | second_stage(spec)
    return CompareSpec.model_validate(
        {
            "kind": "compare",
            "dataset": spec.dataset,
            "training": training | {"steps": scaled[1], "folds": folds},
            "losses": [each.model_dump(mode="json") for each in SHORTLIST],
            "seeds": [spec.seed],
            "pretraining": {
                "steps": scaled[0],
                "optimizer": spec.optimizer.model_dump(mode="json"),
                "schedule": spec.schedule,
            },
        }
    )


def jobs_of(spec: TrainSpec, comparison: CompareSpec, names: dict[str, Any]) -> list[Planned]:
    """The jobs that a training with `recipe: auto` waits for: the comparison, and its own first stage, which any loss
    goes on from.

    names  the dataset version, as admitted
    """
    first, _ = stages(spec.steps)
    start = spec.model_dump(mode="json") | {"recipe": None, "budget": None, "steps": first, "validate_every": first}
    start |= {"early_stopping": None, "variants": []}
    compared = comparison.model_dump(mode="json")
    compared["training"] |= {"dataset": names["dataset"]}
    return [
        Planned(compared | names, jobs=trainings_of(comparison, names)),
        Planned(start | names | {"trial": {"candidate": None, "network": None}}, starts_parent=True),
    ]
