"""How a training moves weights: the optimizer, the learning rate over time, stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from app.metric_table import METRICS
from app.schemas.base import PART, Real, Schema, Whole
from app.schemas.losses import Loss

Steps = Annotated[Whole, Field(ge=1, le=10_000_000)]
Rate = Annotated[Real, Field(gt=0, le=10)]
Schedule = Literal["poly", "cosine", "plateau", "constant"]
if TYPE_CHECKING:  # a type checker cannot follow types that a table makes
    MetricName = str
else:
    MetricName = Literal[tuple(name for name, metric in METRICS.items() if metric.judges)]


class Optimizer(Schema):
    """How weights are moved."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Rate = 0.01
    """Learning rate at the first step."""
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    """Of sgd; the others ignore it."""
    weight_decay: Annotated[Real, Field(ge=0, le=1)] = 0.0


class EarlyStopping(Schema):
    """Stop when a validation metric has not improved for a while."""

    metric: MetricName = "cldice"
    patience: Annotated[Whole, Field(ge=1, le=10_000)] = 5
    """Validations without improvement."""


class Plateau(Schema):
    """When the learning rate falls: after validations in which the metric that chooses the weights did not improve."""

    model_config = PART

    patience: Annotated[Whole, Field(ge=1, le=10_000)] = 3
    """Validations without improvement."""
    factor: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    """To which part of itself it falls."""


class Stage(Schema):
    """A part of a training; what it does not say is as in the training. It begins with a new optimizer and the weights
    as they are.
    """

    model_config = PART

    steps: Steps
    """Optimizer steps; `from_step` and the like of its loss count from its start."""
    loss: Loss | None = None
    lr: Rate | None = None
    """Learning rate at its first step."""
    schedule: Schedule | None = None
    warmup: Annotated[Whole, Field(ge=0, le=10_000_000)] | None = None
    plateau: Plateau | None = None
    early_stopping: EarlyStopping | None = None
    """Ends the stage, not the training."""

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Stage:
        if self.warmup is not None and self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup}; it must be less than the {self.steps} steps of the stage.")
        return self
