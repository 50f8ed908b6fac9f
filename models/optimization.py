"""How weights are moved: optimizers, learning rates over time, stages of a training, averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from models.errors import InvalidInput

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("poly", "cosine", "plateau", "constant")
POLY_POWER = 0.9
PLATEAU = {"patience": 3, "factor": 0.1}
"""When the learning rate falls on a plateau: after how many validations that did not improve, and to which part."""
STAGE_FIELDS = frozenset({"steps", "loss", "lr", "schedule", "warmup", "plateau", "early_stopping"})


@dataclass(frozen=True)
class Stage:
    """A part of a training with its own loss and learning rate; most trainings are one stage.

    steps           optimizer steps
    loss            as `Spec.loss`; from_step and the like count from the start of the stage
    optimizer       {"name", "lr", "momentum", "weight_decay"}; made anew at the start of the stage, without momentum
    schedule        one of SCHEDULES
    warmup          steps over which the learning rate rises linearly to its first value
    plateau         {"patience", "factor"} of the schedule plateau
    early_stopping  {"metric", "patience"} or None: when the stage ends before its steps are done
    """

    steps: int
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: str = "poly"
    warmup: int = 0
    plateau: dict[str, Any] | None = None
    early_stopping: dict[str, Any] | None = None

    def check(self) -> None:
        """Refuses (InvalidInput) what no stage could use."""
        if self.optimizer.get("name", "sgd") not in OPTIMIZERS:
            raise InvalidInput(f"optimizer.name is {self.optimizer['name']!r}; choose one of {', '.join(OPTIMIZERS)}.")
        if self.schedule not in SCHEDULES:
            raise InvalidInput(f"schedule is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}.")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise InvalidInput(f"steps is {self.steps!r}; give a whole number of at least 1.")
        if not isinstance(self.warmup, int) or not 0 <= self.warmup < self.steps:
            raise InvalidInput(
                f"warmup is {self.warmup!r}; give a whole number from 0 to less than the {self.steps} steps."
            )
        patience, factor = (self.plateau_facts()[name] for name in ("patience", "factor"))
        if not (isinstance(patience, int) and patience >= 1 and 0 < factor < 1):
            raise InvalidInput(
                f"plateau has patience {patience!r} and factor {factor!r}; give 1 or more validations and a factor"
                " between 0 and 1."
            )

    def plateau_facts(self) -> dict[str, Any]:
        """{"patience", "factor"}, the defaults where nothing is said."""
        return {**PLATEAU, **(self.plateau or {})}

    def learning_rate(self, step: int, drops: int = 0) -> float:
        """Learning rate of a step of the stage (from 1).

        drops  how often a plateau has lowered it

        poly: first * (1 - done)^0.9; cosine: first * (1 + cos(pi done)) / 2; done counts from the end of the warm-up.
        """
        first = self.optimizer.get("lr", 0.01)
        if step <= self.warmup:
            return first * step / self.warmup
        done = (step - 1 - self.warmup) / (self.steps - self.warmup)
        if self.schedule == "poly":
            return first * (1 - done) ** POLY_POWER
        if self.schedule == "cosine":
            return first * (1 + math.cos(math.pi * done)) / 2
        return first * self.plateau_facts()["factor"] ** drops if self.schedule == "plateau" else first


def read_stages(whole: Stage, stages: Iterable[dict[str, Any]] | None) -> list[Stage]:
    """The stages of a training: one like `whole`, or those of a list, each with what it says in place of the whole's.

    stages  [{"steps", and of STAGE_FIELDS what is to be otherwise}]; "lr" is that of the optimizer
    """
    if stages is None:
        return [whole]
    made = []
    for facts in stages:
        if not isinstance(facts, dict) or "steps" not in facts:
            raise InvalidInput("Each stage of `stages` is an object with its `steps`, and what is to be otherwise.")
        if unknown := sorted(set(facts) - STAGE_FIELDS):
            raise InvalidInput(f"A stage has no {', '.join(unknown)}; it takes {', '.join(sorted(STAGE_FIELDS))}.")
        given = {name: value for name, value in facts.items() if value is not None}
        lr = given.pop("lr", None)
        optimizer = whole.optimizer if lr is None else {**whole.optimizer, "lr": lr}
        made.append(replace(whole, optimizer=optimizer, **given))
    if not made:
        raise InvalidInput("`stages` is empty; name at least one, or leave it out.")
    return made


def make_optimizer(options: dict[str, Any], parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer a specification names."""
    name, lr = options.get("name", "sgd"), options.get("lr", 0.01)
    decay = options.get("weight_decay") or 0.0
    if name == "sgd":
        momentum = options.get("momentum", 0.9)
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(parameters, lr=lr, weight_decay=decay)


class Average:
    """Exponential moving average of everything a network holds: weights and statistics of its normalisation.

    decay  in [0, 1): part of the average that a step leaves; smaller at first, (1 + step) / (10 + step), so that the
           random start is soon forgotten
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def follow(self, network: nn.Module, step: int) -> None:
        """Move towards the network after a step (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.network.state_dict(), network.state_dict()
        for name, value in theirs.items():
            if value.is_floating_point():
                mine[name].lerp_(value, 1 - decay)
            else:
                mine[name].copy_(value)

    def begin(self, network: nn.Module) -> None:
        """Start anew from what the network holds now."""
        self.network.load_state_dict(network.state_dict())
