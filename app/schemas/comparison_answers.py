"""What a comparison of losses answers."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from app.schemas.base import Schema
from app.schemas.job_status import State


class Spread(Schema):
    """A figure over trainings."""

    mean: float | None
    """Mean over the trainings, each the mean over its images and classes."""
    sd: float | None
    """Standard deviation over the trainings; null of one."""


class Contrast(Schema):
    """A candidate minus the baseline, image by image."""

    images: int
    """Images that both were measured on; each counts once, with its mean over seeds and classes."""
    mean: float
    low: float | None
    """Lower end of the 95 % bootstrap interval (BCa) of the mean; null of one image."""
    high: float | None
    p: float
    """Two-sided permutation test: signs flipped image by image."""
    p_holm: float
    """p corrected for all candidates of this metric (Holm)."""
    better: int
    """Images on which the candidate is better."""
    worse: int


class CandidateFigure(Schema):
    """One metric of one candidate."""

    spread: Spread
    rank: float | None
    """Mean rank over images among all candidates; 1 is best."""
    contrast: Contrast | None
    """null for the baseline, and where no image was measured with both."""


class Candidate(Schema):
    """A row of the table."""

    name: str
    baseline: bool
    trainings: int
    """How many there are."""
    measured: int
    """How many of them have been measured."""
    failures: list[str]
    """Why others have not, each once."""
    seconds_per_step: float | None
    peak_bytes: int | None
    """Most memory that a training of it had at once."""
    figures: dict[str, CandidateFigure]
    """By metric; `betti_error` is the sum of the Betti errors."""
    by_image: dict[str, float]
    """Betti error of each image, mean over trainings and classes."""


ControlName = Literal["random_repair", "second_observer"]


class Control(Schema):
    """What stands beside the candidates, measured on the same images."""

    name: ControlName
    """`random_repair`: masks of the baseline after as many edits as they have wrong features, each at a random place (a
    component removed or joined, a hole filled); a candidate whose Betti matching error is not below its does not help.
    `second_observer`: masks of a second person against the first person's."""
    figures: dict[str, CandidateFigure]
    """By metric; differences are from the baseline, without a correction for other tests."""


class Shifted(Schema):
    """The table of a set of another kind than the trainings learnt from."""

    dataset: str
    verdict: str
    helps: list[str]
    images: int
    candidates: list[Candidate]


class Trained(Schema):
    """One training of a comparison."""

    job: UUID
    candidate: str | None
    """null: a shared pre-training."""
    network: str | None
    augmentation: str | None
    fold: int
    seed: int
    state: State
    reason: str | None
    """Why it has no figures."""
    figures: dict[str, float]
    """Means over images and classes."""


class EqualDice(Schema):
    """An image on which Dice hardly differs and topology does."""

    item: str
    image: UUID | None
    candidate: str
    dice: tuple[float, float]
    """Of the baseline, of the candidate."""
    betti_error: tuple[float, float]
    betti_matching_error: tuple[float, float]


class Comparison(Schema):
    """Which of several losses differ from the first beyond chance, on images that their trainings did not see."""

    job: UUID
    state: State
    verdict: str
    """In words."""
    helps: list[str]
    """Candidates that lower the Betti error beyond chance (p_holm below 0.05), the best first."""
    baseline: str
    images: int
    """Images that the baseline was measured on."""
    complete: bool
    """Every training has ended."""
    notes: list[str]
    """What its trainings warn of, such as a class that no image of a fold has; each once."""
    candidates: list[Candidate]
    controls: list[Control]
    shifted: Shifted | None
    """null unless the comparison names one."""
    trainings: list[Trained]
    equal_dice: list[EqualDice]
