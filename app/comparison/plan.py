"""Which trainings a comparison has, and which of them begins where another one ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from app.schemas.comparisons import CompareSpec, NamedAugmentation, NamedNetwork, title_of

CONTROLS = ("random_repair",)
"""What the trainings of the baseline are measured with beside the network."""


@dataclass(frozen=True)
class Planned:
    """A job that belongs to another one.

    spec           what is asked of a worker
    after          position of the planned job that must have succeeded before, and whose weights this one starts from
    jobs           jobs that belong to this one in turn
    starts_parent  the job that it belongs to starts from its weights
    """

    spec: dict[str, Any]
    after: int | None = None
    jobs: Sequence[Planned] = ()
    starts_parent: bool = False


def trainings_of(spec: CompareSpec, names: dict[str, Any], shifted: str | None = None) -> Sequence[Planned]:
    """The trainings of a comparison, so ordered that a whole row of candidates is known as early as possible.

    names  what admission resolved: ids of the dataset version and of the weights to start from
    shifted  id of the dataset version that every candidate is measured on as well
    """
    planned: list[Planned] = []
    for seed, fold, setting in product(spec.seeds, spec.held_out, spec.settings):
        place: dict[str, Any] = {"fold": fold, "seed": seed, "variants": []}
        after = None
        if (shared := spec.pretraining) is not None:
            stage = shared.model_dump(mode="json") | place | {"validate_every": shared.steps}
            training = spec.training_of(spec.losses[0], *setting, **stage).model_dump(mode="json")
            planned.append(Planned(training | names | {"trial": {"candidate": None, **_named(*setting)}}))
            after = len(planned) - 1
        for loss in spec.losses:
            stage = place | {
                "validate_every": spec.training.steps
            }  # at its end only: nothing is chosen on what it sees
            training = spec.training_of(loss, *setting, **stage).model_dump(mode="json")
            is_baseline = loss is spec.losses[0] and setting == spec.settings[0]
            trial = {
                "candidate": title_of(loss, *setting),
                **_named(*setting),
                "controls": list(CONTROLS) if is_baseline else [],
                "shifted": shifted,
            }
            planned.append(Planned(training | names | {"trial": trial}, after))
    return planned


def _named(network: NamedNetwork | None, augmentation: NamedAugmentation | None) -> dict[str, str | None]:
    named = {"network": network, "augmentation": augmentation}
    return {what: None if each is None else each.name for what, each in named.items()}
