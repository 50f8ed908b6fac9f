"""The spec of a comparison of losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic.config import JsonDict

from app.schemas.augmentation import Augmentation
from app.schemas.base import DatasetRef, Flag, Schema, Whole
from app.schemas.jobs import Network, TrainSpec
from app.schemas.losses import Loss
from app.schemas.optimization import Optimizer, Steps

MOST_TRAININGS = 300
"""Most trainings of one comparison: losses x networks x folds x seeds, and the shared pre-trainings."""
Title = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f/]+$")]
NOT_HERE = {
    "loss": "name it in `losses`, as the first one if it is the baseline",
    "recipe": "name losses",
    "fold": "say which folds are held out in `folds`",
    "seed": "put it into `seeds`",
    "early_stopping": "leave it out: the held-out images must not decide when a training ends",
}
"""Fields of a training that a comparison states otherwise, and how."""


class NamedLoss(Schema):
    """A loss with the name that the table gives it."""

    name: Title
    loss: Loss = Field(default_factory=Loss)


class NamedNetwork(Schema):
    """A network with the name that the table gives it."""

    name: Title
    network: Network


class NamedAugmentation(Schema):
    """What happens to patches, with the name that the table gives it."""

    name: Title
    augment: Flag | Augmentation


class Pretraining(Schema):
    """A stage that all candidates of a network, augmentation, fold and seed share: trained once with the first loss."""

    steps: Steps
    optimizer: Optimizer = Optimizer()
    schedule: Literal["poly", "constant"] = "poly"


Parts = tuple[NamedLoss, NamedNetwork | None, NamedAugmentation | None]
"""What a candidate is made of."""

COMPARE_EXAMPLE: JsonDict = {
    "kind": "compare",
    "dataset": "isbi12@1",
    "training": {
        "network": {"name": "unet", "channels": [16, 32, 64]},
        "patch": [128, 128],
        "steps": 400,
        "optimizer": {"name": "adamw", "lr": 0.0005},
        "folds": 3,
    },
    "pretraining": {"steps": 1000, "optimizer": {"name": "adamw", "lr": 0.002}},
    "losses": [
        {"name": "CE + Dice"},
        {
            "name": "+ Betti matching",
            "loss": {"terms": [{"name": "cross_entropy"}, {"name": "dice"}, {"name": "betti_matching"}]},
        },
        {"name": "+ SCNP", "loss": {"neighbour_penalty": {"window": "auto"}}},
    ],
    "seeds": [0, 1],
}


class CompareSpec(Schema):
    """Train with several losses on the same folds and seeds, and say which of them differ from the first beyond chance.

    Each training is a job of its own that any worker takes. What is measured are whole images that the training did not
    see, by the weights of its last step, so that nothing is chosen on them.
    """

    kind: Literal["compare"]
    dataset: DatasetRef
    training: TrainSpec
    """What all trainings share, as a `train` job states it. Its dataset is that of the comparison; `loss`, `fold`,
    `seed` and `early_stopping` are left out; `best_metric`, `validate_every` and `variants` have no effect."""
    losses: Annotated[list[NamedLoss], Field(min_length=1, max_length=32)]
    """The candidates. The first is the baseline that the others are compared with."""
    networks: Annotated[list[NamedNetwork], Field(min_length=1, max_length=8)] | None = None
    """Each loss with each of these networks; null: with that of `training`. The baseline has the first of them."""
    augmentations: Annotated[list[NamedAugmentation], Field(min_length=1, max_length=8)] | None = None
    """Each of those with each of these augmentations; null: with that of `training`. The baseline has the first."""
    shifted: DatasetRef | None = None
    """Labelled images of another kind, with the same classes (another scanner, staining or site): every training is
    measured on all of them too, in a table of its own. Nothing is learnt from them."""
    second_observer: DatasetRef | None = None
    """The same images with the masks of a second person. How far these are from the first person's is the annotation
    floor: below it no difference between losses means anything."""
    folds: Annotated[list[Annotated[Whole, Field(ge=0, le=19)]], Field(min_length=1, max_length=20)] | None = None
    """Which folds are held out, one after the other; null: all of `training.folds`."""
    seeds: Annotated[list[Annotated[Whole, Field(ge=0, le=2**31 - 1)]], Field(min_length=1, max_length=20)] = [0]
    """Each training once with each of these. A seed also decides how the images are cut into folds."""
    pretraining: Pretraining | None = None
    """null: every candidate begins from scratch."""

    model_config = {**Schema.model_config, "json_schema_extra": {"examples": [COMPARE_EXAMPLE]}}

    @model_validator(mode="before")
    @classmethod
    def _whole_training(cls, given: Any) -> Any:
        """A training needs neither kind nor dataset nor model here."""
        if not isinstance(given, dict):
            return given
        training = given.get("training")
        if not isinstance(training, dict) or not isinstance(given.get("dataset"), str):
            return given
        return {**given, "training": {"kind": "train", "model": MODEL, **training, "dataset": given["dataset"]}}

    @model_validator(mode="after")
    def _fits_together(self) -> CompareSpec:
        for name, instead in NOT_HERE.items():
            default = TrainSpec.model_fields[name].get_default(call_default_factory=True)
            if getattr(self.training, name) != default:
                raise ValueError(f"training.{name} is not for a comparison; {instead}.")
        for what, values in (
            ("losses", [each.name for each in self.losses]),
            ("networks", [each.name for each in self.networks or ()]),
            ("augmentations", [each.name for each in self.augmentations or ()]),
            ("folds", self.folds or ()),
            ("seeds", self.seeds),
        ):
            if twice := sorted({each for each in values if list(values).count(each) > 1}):
                raise ValueError(f"{what} name {', '.join(map(str, twice))} more than once. Name each once.")
        if self.pretraining is not None and self.training.start_from is not None:
            raise ValueError("training.start_from and pretraining both say where to begin; leave one of them out.")
        self._folds_exist()
        if len(self.candidates) < 2:
            raise ValueError(
                "there is one candidate, so nothing to compare it with. Name two losses, networks or augmentations."
            )
        if (count := self.count) > MOST_TRAININGS:
            raise ValueError(
                f"this is {count} trainings ({len(self.candidates)} candidates x {len(self.held_out)} folds x"
                f" {len(self.seeds)} seeds{' with their pre-trainings' if self.pretraining else ''}); at most"
                f" {MOST_TRAININGS} are accepted. Name fewer losses, folds or seeds."
            )
        for each in self.trainings():
            del each  # made, and so checked
        return self

    def _folds_exist(self) -> None:
        last = (self.training.folds or 1) - 1
        if self.folds is not None and max(self.folds) > last:
            there = f"training.folds is {self.training.folds}, so they are 0 to {last}"
            raise ValueError(
                f"folds name {max(self.folds)}, which does not exist:"
                f" {there if self.training.folds else 'training.folds is not stated, so there is one split, 0'}."
            )

    @property
    def held_out(self) -> list[int]:
        """The folds that are held out."""
        return self.folds or list(range(self.training.folds or 1))

    @property
    def candidates(self) -> list[Parts]:
        """Every loss with every network and augmentation, the baseline first."""
        return [(loss, network, augmentation) for network, augmentation in self.settings for loss in self.losses]

    @property
    def settings(self) -> list[tuple[NamedNetwork | None, NamedAugmentation | None]]:
        """Every network with every augmentation: what candidates of one shared start have in common."""
        networks: Sequence[NamedNetwork | None] = self.networks or [None]
        augmentations: Sequence[NamedAugmentation | None] = self.augmentations or [None]
        return [(network, augmentation) for network in networks for augmentation in augmentations]

    @property
    def count(self) -> int:
        """How many trainings this is."""
        cells = len(self.held_out) * len(self.seeds)
        shared = cells * len(self.settings) if self.pretraining else 0
        return cells * len(self.candidates) + shared

    def trainings(self) -> Iterator[TrainSpec]:
        """A training for each candidate, as it would be for the first fold and seed; ValueError says which of them
        cannot be.
        """
        for candidate in self.candidates:
            yield self.training_of(*candidate)

    def training_of(
        self,
        loss: NamedLoss,
        network: NamedNetwork | None = None,
        augmentation: NamedAugmentation | None = None,
        **changes: Any,
    ) -> TrainSpec:
        """The training of a candidate with other fields; ValueError names it when it cannot be."""
        spec = self.training.model_dump(mode="json") | {"loss": loss.loss.model_dump(mode="json")}
        if network is not None:
            spec["network"] = network.network.model_dump(mode="json")
        if augmentation is not None:
            spec["augment"] = augmentation.model_dump(mode="json")["augment"]
        try:
            return TrainSpec.model_validate(spec | changes)
        except ValidationError as error:
            what = title_of(loss, network, augmentation)
            raise ValueError(f"{what} cannot be trained: {error.errors()[0]['msg']}") from None


MODEL = "comparison"
"""What the trainings of a comparison call their model; no version of it is ever made."""


def title_of(*parts: NamedLoss | NamedNetwork | NamedAugmentation | None) -> str:
    """The name of a candidate in the table: of its loss, its network and its augmentation."""
    return " / ".join(part.name for part in parts if part is not None)
