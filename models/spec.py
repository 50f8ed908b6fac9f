"""A training specification: what `spec.json` may say, its defaults, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from models.augmentation import Augmentation
from models.errors import InvalidInput
from models.optimization import Stage, read_stages
from models.scaling import SCALINGS

PLACES = ("pixels", "skeleton")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
VARIANTS = ("fp16", "int8")
CONTROLS = ("random_repair",)
PROVENANCE = frozenset({"kind", "dataset", "model", "start_from", "recipe", "budget"})
"""Fields that say where a run comes from and change nothing here."""


def _default_loss():
    return {"terms": [{"name": "cross_entropy"}, {"name": "dice"}], "neighbour_penalty": None}


@dataclass(frozen=True)
class Spec:
    """Everything that decides a training run, besides the data.

    patch                sides in pixels, one per image axis, multiples of the network's `multiple`
    stages               parts of the training with another loss or learning rate: `models.optimization.read_stages`;
                         `steps` is then the sum of theirs
    schedule, warmup, plateau  the learning rate over time: `models.optimization.Stage`
    clip_gradient        largest norm of the gradient of all weights together; None: any
    accumulate           batches whose gradients make one step, each normalised by itself
    average              decay of the moving average of the weights, which is then validated and exported; None: none
    validate_every       optimizer steps between validations; None: ten in the whole run
    checkpoint_every     optimizer steps between checkpoints
    early_stopping       {"metric", "patience"}: stop after that many validations without improvement
    best_metric          the validation figure that chooses the best weights
    folds, fold          cross-validation; folds None: cut off `validation_fraction` of the groups instead
    augment              True, False, or an object: `models.augmentation.Augmentation.read`
    foreground_fraction  chance that a patch is drawn around a pixel of a class instead of anywhere
    foreground_places    around which ones: "pixels" of the class, or those of its "skeleton"
    threshold            probability above which a pixel is foreground
    unlabelled_fraction  part of each batch that is images without a label, where the data have some and a term needs no
                         reference
    controls             what a comparison measures beside the network: "random_repair", of its masks
    variants             smaller forms that are exported beside the network: fp16, int8
    threads              CPU threads; None: one per core
    """

    network: dict[str, Any] = field(
        default_factory=lambda: {"name": "unet", "dimensions": 2, "channels": [32, 64, 128]}
    )
    loss: dict[str, Any] = field(default_factory=_default_loss)
    patch: tuple[int, ...] = (256, 256)
    batch: int = 4
    steps: int = 4000
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "sgd", "lr": 0.01, "momentum": 0.9})
    schedule: str = "poly"
    warmup: int = 0
    plateau: dict[str, Any] | None = None
    stages: list[dict[str, Any]] | None = None
    clip_gradient: float | None = None
    accumulate: int = 1
    average: float | None = None
    scaling: str = "image"
    augment: bool | dict[str, Any] = True
    foreground_fraction: float = 0.0
    foreground_places: str = "pixels"
    validate_every: int | None = None
    checkpoint_every: int = 250
    early_stopping: dict[str, Any] | None = None
    best_metric: str = "cldice"
    validation_fraction: float = 0.2
    folds: int | None = None
    fold: int = 0
    seed: int = 0
    threshold: float = 0.5
    precision: str = "auto"
    devices: str | int = "auto"
    unlabelled_fraction: float = 0.5
    variants: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    threads: int | None = None

    @classmethod
    def read(cls, facts: dict[str, Any]) -> tuple[Spec, list[str]]:
        """A checked specification and the names it does not know: (Spec, list of str)."""
        known = {f.name for f in fields(cls)}
        spec = cls(**{key: value for key, value in facts.items() if key in known})
        object.__setattr__(spec, "patch", tuple(spec.patch))
        if spec.stages is not None:
            object.__setattr__(spec, "steps", sum(stage.steps for stage in spec.parts))
        spec.check()
        return spec, sorted(set(facts) - known - PROVENANCE)

    def check(self) -> None:
        """Refuses what no run could use, naming field, value and what would do."""
        for name in ("batch", "steps", "checkpoint_every", "accumulate"):
            self._at_least_one(name, getattr(self, name))
        if self.validate_every is not None:
            self._at_least_one("validate_every", self.validate_every)
        for stage in self.parts:
            stage.check()
        if self.clip_gradient is not None and not self.clip_gradient > 0:
            raise InvalidInput(f"clip_gradient is {self.clip_gradient}; give a norm above 0, such as 12.")
        if self.average is not None and not 0 <= self.average < 1:
            raise InvalidInput(f"average is {self.average}; give a decay of at least 0 and less than 1, such as 0.999.")
        self._one_of("scaling", self.scaling, SCALINGS)
        self._one_of("foreground_places", self.foreground_places, PLACES)
        if not 0 <= self.foreground_fraction <= 1:
            raise InvalidInput(f"foreground_fraction is {self.foreground_fraction}; give 0 to 1.")
        self._one_of("precision", self.precision, PRECISIONS)
        Augmentation.read(self.augment)
        for name in self.variants:
            self._one_of("variants", name, VARIANTS)
        for name in self.controls:
            self._one_of("controls", name, CONTROLS)
        if not 0 < self.threshold < 1:
            raise InvalidInput(f"threshold is {self.threshold}; it must lie between 0 and 1.")
        if not 0 <= self.unlabelled_fraction < 1:
            raise InvalidInput(f"unlabelled_fraction is {self.unlabelled_fraction}; give at least 0 and less than 1.")
        if self.folds is not None and not (self.folds >= 2 and 0 <= self.fold < self.folds):
            raise InvalidInput(
                f"fold is {self.fold} of {self.folds} folds; give 2 folds or more and a fold from 0 to folds - 1."
            )
        if len(self.patch) != self.network.get("dimensions", 2) or min(self.patch) < 1:
            raise InvalidInput(
                f"patch is {list(self.patch)}; give {self.network.get('dimensions', 2)} positive sides, one for each"
                " image axis."
            )

    @staticmethod
    def _at_least_one(name, value):
        if not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{name} is {value!r}; give a whole number of at least 1.")

    @staticmethod
    def _one_of(name, value, choices):
        if value not in choices:
            raise InvalidInput(f"{name} is {value!r}; choose one of {', '.join(choices)}.")

    @property
    def parts(self) -> list[Stage]:
        """The stages of the training; one where none are named."""
        whole = Stage(
            self.steps, self.loss, self.optimizer, self.schedule, self.warmup, self.plateau, self.early_stopping
        )
        return read_stages(whole, self.stages)

    @property
    def validation_interval(self) -> int:
        """Optimizer steps between validations."""
        return self.validate_every or max(1, self.steps // 10)


def load_spec(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; refused with a sentence when it is not one."""
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"There is no specification at {path}. Give the path of a JSON file with --spec.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"The specification {path} is not JSON: {error}.") from error
    if not isinstance(facts, dict):
        raise InvalidInput(f"The specification {path} holds a {type(facts).__name__}; a JSON object is needed.")
    return facts
