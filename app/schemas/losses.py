"""Every loss a job may name, each with its own bounded hyper-parameters, so that `/docs` teaches them.

A term is a tagged shape: `{"name": "skeleton_hard_pixels", "weight": 0.5, "from_step": 2000}`. Any term mixes with any
other. The fields beside the schedule are the keyword arguments of the function of that name in `models.losses`; a test
holds the names and the defaults together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.schemas.base import Real, Whole, Wire


class Term(Wire):
    """What every term has: a weight and a schedule in optimizer steps."""

    weight: Annotated[Real, Field(gt=0, le=1000)] = 1.0
    """Factor of this term in the sum."""
    from_step: Annotated[Whole, Field(ge=0, le=10_000_000)] = 0
    """First step at which the term counts."""
    to_step: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = None
    """Step at which it stops; null means it never does."""
    every: Annotated[Whole, Field(ge=1, le=10_000)] = 1
    """Counts at every n-th step only, to save time."""
    ramp: Annotated[Whole, Field(ge=0, le=10_000_000)] = 0
    """Steps over which the weight grows linearly from zero once the term has started."""

    @model_validator(mode="after")
    def _schedule_is_not_empty(self) -> Term:
        if self.to_step is not None and self.to_step <= self.from_step:
            raise ValueError(f"to_step is {self.to_step} and from_step {self.from_step}; the term would never count. Make to_step larger or leave it out.")
        return self


SCHEDULE = frozenset(Term.model_fields)
"""The fields that the trainer reads; all others go to the loss function."""


class CrossEntropy(Term):
    """Cross-entropy of every labelled pixel, mean over pixels. The base of almost every recipe."""

    name: Literal["cross_entropy"]


class Dice(Term):
    """1 - Dice overlap of soft counts per class, background left out. Balances rare classes."""

    name: Literal["dice"]
    smooth: Annotated[Real, Field(ge=0, le=1)] = 1e-5
    """Added to numerator and denominator, so that an empty class costs nothing."""


class SoftClDice(Term):
    """Soft clDice (Shit et al. 2021): overlap of soft skeletons with the other mask. For tubes that must stay connected."""

    name: Literal["soft_cldice"]
    iterations: Annotated[Whole, Field(ge=1, le=50)] = 10
    """Peeling steps; at least the largest radius in pixels."""
    smooth: Annotated[Real, Field(gt=0, le=10)] = 1.0
    """Added to numerator and denominator of both ratios."""


class SkeletonHardPixels(Term):
    """SHPM (2023): squared error on skeleton pixels that are on the wrong side only. Cheap; repairs breaks and false branches."""

    name: Literal["skeleton_hard_pixels"]
    threshold: Annotated[Real, Field(gt=0, lt=1)] = 0.6
    """Probability above which a pixel counts as predicted."""


LossTerm = Annotated[CrossEntropy | Dice | SoftClDice | SkeletonHardPixels, Field(discriminator="name")]


class NeighbourPenalty(Wire):
    """SCNP (Valverde and Dahl 2026): every term sees each pixel's logit replaced by the worst same-class logit in its window.

    Not for structures of a few hundred pixels.
    """

    window: Annotated[Whole, Field(ge=3, le=31, multiple_of=1)] = 3
    """Side of the window in pixels, odd; about the width of the structure."""
    mode: Literal["add", "replace"] = "add"
    """`add`: the terms on plain logits and again on penalised ones. `replace`: on penalised ones only."""

    @model_validator(mode="after")
    def _window_is_odd(self) -> NeighbourPenalty:
        if self.window % 2 == 0:
            raise ValueError(f"window is {self.window}; it must be odd. Use {self.window + 1}.")
        return self


class Loss(Wire):
    """A weighted sum of terms, optionally wrapped in the neighbour penalty."""

    terms: Annotated[list[LossTerm], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: [CrossEntropy(name="cross_entropy"), Dice(name="dice")]
    )
    neighbour_penalty: NeighbourPenalty | None = None

    @model_validator(mode="after")
    def _each_term_once(self) -> Loss:
        names = [term.name for term in self.terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is named more than once. Name each term once and set its weight.")
        return self
