"""Schemas of every loss that a job may name, with bounded hyper-parameters.

A term is a tagged shape: `{"name": "skeleton_hard_pixels", "weight": 0.5, "from_step": 2000}`. Any term mixes with any
other. The fields beside the schedule are the keyword arguments of the function of that name in `models.losses`; a test
holds the names and the defaults together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.schemas.base import PART, Flag, Real, Schema, Whole
from app.schemas.rules import Contact, Foreground, Pair

Weight = Annotated[Real, Field(gt=0, le=1000)]


class Term(Schema):
    """What every term has: a weight, a balance and a schedule in optimizer steps.

    The defaults of weight and balance are those of `models.losses.usual`.
    """

    model_config = PART

    weight: Weight = 1.0
    """Factor of this term in the sum."""
    balance: Literal["gradient"] | None = None
    """`gradient`: its weighted gradient at the logits has at most the norm of that of the terms on pixels
    (cross-entropy, Dice and the like), so that it cannot ruin a young network; null: as it is."""
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
            raise ValueError(
                f"to_step is {self.to_step} and from_step {self.from_step}; the term would never count. Make to_step"
                " larger or leave it out."
            )
        return self


SCHEDULE = frozenset(Term.model_fields)
"""The fields that the trainer reads; all others go to the loss function."""


class BalancedTerm(Term):
    """A term with a few pixels' or a skeleton's gradient, which could exceed that of all others."""

    balance: Literal["gradient"] | None = "gradient"
    """`gradient`: its weighted gradient at the logits has at most the norm of that of the terms on pixels
    (cross-entropy, Dice and the like), so that it cannot ruin a young network; null: as it is."""


class FeatureTerm(BalancedTerm):
    """A term on topological features or on regions, of which a map may have ten or thousands."""

    reduction: Literal["mean", "sum"] = "mean"
    """`mean` over features (over wrong regions): one scale for any map. `sum`: over them all, as published."""


class CrossEntropy(Term):
    """Cross-entropy of every labelled pixel, mean over pixels. The base of almost every recipe."""

    name: Literal["cross_entropy"]


class Dice(Term):
    """1 - Dice overlap of soft counts per class, background left out. Balances rare classes."""

    name: Literal["dice"]
    smooth: Annotated[Real, Field(ge=0, le=1)] = 1e-5
    """Added to numerator and denominator, so that an empty class costs nothing."""


class Tversky(Term):
    """1 - Tversky index (Salehi et al. 2017): Dice with its own price for false positives and false negatives."""

    name: Literal["tversky"]
    alpha: Annotated[Real, Field(ge=0, le=1)] = 0.3
    """Price of a false positive."""
    beta: Annotated[Real, Field(ge=0, le=1)] = 0.7
    """Price of a false negative; more than alpha asks for recall."""
    smooth: Annotated[Real, Field(ge=0, le=1)] = 1e-5
    """Added to numerator and denominator, so that an empty class costs nothing."""


class Focal(Term):
    """Focal loss (Lin et al. 2017): cross-entropy that cares less for pixels that are right already."""

    name: Literal["focal"]
    gamma: Annotated[Real, Field(ge=0, le=10)] = 2.0
    """How little such a pixel counts; 0 is cross-entropy."""
    foreground_weight: Weight = 1.0
    """Factor for pixels of foreground classes."""


class LossMaxPooling(Term):
    """Loss max-pooling (Rota Bulo et al. 2017): cross-entropy under the worst weights in a ball.

    For rare, hard pixels.
    """

    name: Literal["loss_max_pooling"]
    power: Annotated[Real, Field(gt=1, le=100)] = 1.7
    """Norm of the ball: near 1 the few worst pixels take all, large values approach the plain mean."""
    fraction: Annotated[Real, Field(gt=0, le=1)] = 0.25
    """At least this part of the pixels carries the weight."""


class TopK(Term):
    """TopK (Wu et al. 2016): cross-entropy of the labelled pixels that cost most, a tenth unless stated, as nnU-Net."""

    name: Literal["topk"]
    fraction: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """Part of the pixels that counts; 1 is cross-entropy."""


class Boundary(Term):
    """Boundary loss (Kervadec et al. 2019): probability times signed distance to the reference boundary.

    Beside Dice, with a ramp.
    """

    name: Literal["boundary"]
    weight: Weight = 0.005
    """Factor of this term in the sum; distances are in pixels, so it is small."""


class RegionWise(Term):
    """Region-wise loss (Valverde and Tohka 2023): each pixel pushed towards its class, harder the further off it is."""

    name: Literal["region_wise"]
    weight: Weight = 0.3


class NeighbourLoss(Term):
    """Neighbour loss (Yuan and Xu 2022): cross-entropy where neighbouring predictions disagree.

    Smooths ragged places.
    """

    name: Literal["neighbour_loss"]
    weight: Weight = 0.5


class SoftClDice(Term):
    """Soft clDice (Shit et al. 2021): overlap of soft skeletons with the other mask.

    For tubes that must stay connected.
    """

    name: Literal["soft_cldice"]
    iterations: Annotated[Whole, Field(ge=1, le=50)] = 10
    """Peeling steps; at least the largest radius in pixels."""
    smooth: Annotated[Real, Field(gt=0, le=10)] = 1.0
    """Added to numerator and denominator of both ratios."""


class SkeletonRecall(Term):
    """Skeleton recall (Kirchhoff et al. 2024): how much of a tube around the reference skeleton is predicted.

    Rewards recall only.
    """

    name: Literal["skeleton_recall"]
    weight: Weight = 0.2
    """Factor of this term in the sum."""
    radius: Annotated[Whole, Field(ge=0, le=20)] = 2
    """Growth of the skeleton in pixels, cut to the reference."""
    smooth: Annotated[Real, Field(gt=0, le=10)] = 1e-5
    """Added to numerator and denominator, so that a class without skeleton costs nothing."""


class CentrelineBoundaryDice(Term):
    """cbDice (Shi et al. 2024): clDice weighted by radius, so that thin and thick tubes count alike.

    Beside cross-entropy and Dice: it does not teach a branch that is missing.
    """

    name: Literal["cbdice"]
    iterations: Annotated[Whole, Field(ge=1, le=50)] = 10
    """Peeling steps; at least the largest radius in pixels."""
    smooth: Annotated[Real, Field(gt=0, le=10)] = 1.0
    """Added to numerator and denominator of both ratios."""


class ThresholdHardPixels(BalancedTerm):
    """THPM (2023): squared error on every pixel on the wrong side of the threshold."""

    name: Literal["threshold_hard_pixels"]
    weight: Weight = 0.1
    """Factor of this term in the sum."""
    threshold: Annotated[Real, Field(gt=0, lt=1)] = 0.6
    """Probability above which a pixel counts as predicted."""


class PersistenceHardPixels(BalancedTerm):
    """PHPM (2023): squared error on wrong pixels where a topological feature of the errors is born or dies."""

    name: Literal["persistence_hard_pixels"]
    weight: Weight = 0.1
    """Factor of this term in the sum."""
    threshold: Annotated[Real, Field(gt=0, lt=1)] = 0.6
    """Probability above which a pixel counts as predicted."""
    dimensions: Annotated[list[Annotated[Whole, Field(ge=0, le=2)]], Field(min_length=1, max_length=3)] | None = None
    """Betti dimensions looked at; null: loops in images, components in volumes."""


class SkeletonHardPixels(BalancedTerm):
    """SHPM (2023): squared error on skeleton pixels that are on the wrong side only.

    Cheap; repairs breaks and false branches.
    """

    name: Literal["skeleton_hard_pixels"]
    weight: Weight = 0.1
    """Factor of this term in the sum."""
    threshold: Annotated[Real, Field(gt=0, lt=1)] = 0.6
    """Probability above which a pixel counts as predicted."""
    thinning: Literal["zhang_suen", "exact"] = "zhang_suen"
    """How images are thinned: as the paper prescribes, or exactly; volumes are always thinned exactly."""


class HomotopyWarping(BalancedTerm):
    """Homotopy warping (Hu 2022): cross-entropy where moving borders pixel by pixel, without tearing, does not explain
    the error.
    """

    name: Literal["homotopy_warping"]
    weight: Weight = 0.1
    """Factor of this term in the sum."""


class TopoLoss(FeatureTerm):
    """TopoLoss (Hu et al. 2019): the longest features pushed to full height, the others to none. Late in training."""

    name: Literal["topo_loss"]
    weight: Weight = 0.05
    """Factor of this term in the sum."""
    window: Annotated[Whole, Field(ge=16, le=4096)] | None = 100
    """Side in pixels of the windows that are looked at one by one; null: the whole patch at once."""
    noise: Annotated[Real, Field(ge=0, le=1)] = 0.03
    """Features no more persistent than this are left alone."""


class Prior(Schema):
    """Betti numbers that a union of classes is known to have."""

    classes: Annotated[list[Foreground], Field(min_length=1, max_length=255)]
    """Classes by name or index; 1 is the first after the background."""
    betti: Annotated[list[Annotated[Whole, Field(ge=0, le=1_000_000)]], Field(min_length=2, max_length=3)]
    """Components, loops and in volumes cavities."""

    @property
    def named(self) -> list[int | str]:
        """The classes that it names."""
        return self.classes


class BettiPrior(FeatureTerm):
    """Clough's prior (2020): the map is to have Betti numbers that are known beforehand; needs no reference mask."""

    name: Literal["betti_prior"]
    weight: Weight = 0.01
    """Factor of this term in the sum."""
    priors: Annotated[list[Prior], Field(min_length=1, max_length=64)] | None = None
    """null: all foreground classes together are one component without loops."""
    power: Annotated[Real, Field(gt=0, le=10)] = 2.0
    """Of bar lengths: 2 as Clough, 1 as Byrne."""


class TopologyLayer(FeatureTerm):
    """Topology layer (Gabrielsson et al. 2020): a price on every feature of one dimension but the longest ones."""

    name: Literal["topology_layer"]
    weight: Weight = 0.01
    """Factor of this term in the sum."""
    dimension: Annotated[Whole, Field(ge=0, le=2)] = 0
    """0 components, 1 loops, 2 cavities."""
    skip: Annotated[Whole, Field(ge=0, le=1_000_000)] = 0
    """This many of the longest finite bars are free."""
    power: Annotated[Real, Field(gt=0, le=10)] = 1.0
    """Of bar lengths."""


class CspSkeletonLoss(BalancedTerm):
    """CSP: clDice's form with skeletons that keep the map's topology at 0.5."""

    name: Literal["csp_skeleton_loss"]
    weight: Weight = 0.5
    """Factor of this term in the sum."""
    iterations: Annotated[Whole, Field(ge=1, le=50)] = 10
    """Sweeps; at least the largest half width in pixels."""
    rule: Literal["exact", "published"] = "exact"
    """Which pixels are simple: `exact` keeps the Betti numbers of the map at 0.5; `published`, in images only, is the
    rule of the paper's code, which keeps them on saturated maps only."""
    smooth: Annotated[Real, Field(gt=0, le=10)] = 1e-6
    """Added to numerator and denominator of both ratios."""


class GrayscaleClDice(BalancedTerm):
    """Ours: clDice's form with grayscale skeletons, whose topology is that of the map at every threshold."""

    name: Literal["grayscale_cldice"]
    weight: Weight = 0.5
    """Factor of this term in the sum."""
    noise: Annotated[Real, Field(ge=0, le=1)] = 0.05
    """Ridges that stand above the lowest pixel beside them by no more do not count."""
    smooth: Annotated[Real, Field(gt=0, le=10)] = 1.0
    """Added to numerator and denominator of both ratios."""


class LandscapeDistance(BalancedTerm):
    """PLLay's features: squared difference of persistence landscapes.

    Compares how many features there are, not where.
    """

    name: Literal["landscape_distance"]
    depth: Annotated[Whole, Field(ge=1, le=16)] = 2
    """Landscapes of each dimension."""
    points: Annotated[Whole, Field(ge=2, le=256)] = 25
    """Levels between 0 and 1."""


class BettiMatching(FeatureTerm):
    """Betti matching (Stucki et al. 2023): features paired by place; matched ones drawn together, others to nothing."""

    name: Literal["betti_matching"]
    weight: Weight = 0.05
    """Factor of this term in the sum."""
    connectivity: Literal["closed", "open"] = "closed"
    """closed: foreground 8/26; open: foreground 4/6, as published."""
    relative: Flag = False
    """A frame of foreground around the patch, so that structures that touch the border close up."""
    push_apart: Flag = False
    """Unmatched features are pushed past nothing, to birth 0 and death 1."""


class SatLoss(FeatureTerm):
    """SATLoss (Wen et al. 2024): persistence diagrams moved onto each other; features in the wrong place cost most."""

    name: Literal["sat_loss"]
    weight: Weight = 0.1
    """Factor of this term in the sum."""
    relative: Flag = False
    """A frame of foreground closes structures that touch the border."""


class DmtLoss(BalancedTerm):
    """DMT loss (Hu et al. 2021): cross-entropy on the lasting ridges of the prediction."""

    name: Literal["dmt_loss"]
    weight: Weight = 0.1
    """Factor of this term in the sum."""
    noise: Annotated[Real, Field(ge=0, le=1)] = 0.1
    """Ridges whose saddle lasts no longer are left out."""


class Topograph(FeatureTerm):
    """Topograph (Lux et al. 2025): the probability of the wrong class on every region that topology depends on."""

    name: Literal["topograph"]
    weight: Weight = 0.5
    """Factor of this term in the sum."""
    aggregate: Literal["mean", "sum", "max", "rms"] = "mean"
    """Of the probability over a region."""
    include_background: Flag = True
    """Whether a softmax's background counts as a class."""
    border: Literal["unknown", "background"] = "unknown"
    """What lies outside the patch: `background`, as metrics count on whole images; `unknown`: a tube cut short at the
    border is an error, an arc closed along it is none."""


class DenseMatching(FeatureTerm):
    """Ours: the error on every critical region (gap, bridge, island, filling of a hole), averaged over thresholds."""

    name: Literal["dense_matching"]
    weight: Weight = 0.1
    """Factor of this term in the sum."""
    levels: Annotated[Whole, Field(ge=1, le=16)] = 3
    """Thresholds, evenly spaced between 0 and 1; an odd number looks at 0.5 too, where masks are cut."""
    border: Literal["unknown", "background"] = "background"
    """What lies outside the patch: `background`, as metrics count on whole images; `unknown`: a tube cut short at the
    border is an error, an arc closed along it is none."""


class RuleTerm(FeatureTerm):
    """A term on a rule between classes, for two foreground classes or more."""

    weight: Weight = 0.5
    """Factor of this term in the sum."""
    pairs: Annotated[list[Pair], Field(min_length=1, max_length=64)]
    """What the rule holds for."""
    contact: Contact = "sides"
    """What neighbours share: `sides`, so that a wall may be diagonal; `corners`, an edge or a side too."""
    where_true: Flag = True
    """Whether a pair counts in those patches only whose mask keeps the rule."""
    reduction: Literal["mean", "sum"] = "mean"
    """`mean` over the places where a rule is broken; `sum`: over them all."""


class Inside(RuleTerm):
    """Ours: the subject touches nothing but its others, so it lies inside them; an axon in its myelin."""

    name: Literal["inside"]
    repair: Literal["wall", "retreat"] = "wall"
    """`wall`: a wrong contact is to become one of the others; `retreat`: anything but the subject."""
    border: Literal["unknown", "background"] = "unknown"
    """What lies outside the patch: `background`: the subject must not reach the border; `unknown`: it may."""


class MustTouch(RuleTerm):
    """Ours: a component of the subject that touches none of its others is to vanish; a scar off the heart's wall."""

    name: Literal["must_touch"]
    border: Literal["unknown", "background"] = "unknown"
    """What lies outside the patch: `unknown`: a component that reaches the border may touch beyond it."""


class MustNotTouch(RuleTerm):
    """Ours: where the subject touches one of its others, both are to become another class."""

    name: Literal["must_not_touch"]


LossTerm = Annotated[
    CrossEntropy
    | Dice
    | Tversky
    | Focal
    | LossMaxPooling
    | TopK
    | Boundary
    | RegionWise
    | NeighbourLoss
    | SoftClDice
    | SkeletonRecall
    | CentrelineBoundaryDice
    | ThresholdHardPixels
    | PersistenceHardPixels
    | SkeletonHardPixels
    | HomotopyWarping
    | CspSkeletonLoss
    | GrayscaleClDice
    | TopoLoss
    | BettiPrior
    | TopologyLayer
    | LandscapeDistance
    | BettiMatching
    | SatLoss
    | DmtLoss
    | Topograph
    | DenseMatching
    | Inside
    | MustTouch
    | MustNotTouch,
    Field(discriminator="name"),
]


class NeighbourPenalty(Schema):
    """SCNP (Valverde and Dahl 2026): every term sees each pixel's logit replaced by the worst same-class logit in its
    window.

    Not for structures of a few hundred pixels.
    """

    window: Annotated[Whole, Field(ge=3, le=31, multiple_of=1)] | Literal["auto"] = 3
    """Side of the window in pixels, odd; about the width of the structure. `auto`: the odd number nearest to the median
    width of the training labels, which the model version then names."""
    mode: Literal["add", "replace"] = "add"
    """`add`: the terms on plain logits and again on penalised ones. `replace`: on penalised ones only."""
    from_step: Annotated[Whole, Field(ge=0, le=10_000_000)] = 0
    """First step at which it counts. From scratch on thin structures let the network learn to see them first."""

    @model_validator(mode="after")
    def _window_is_odd(self) -> NeighbourPenalty:
        if self.window != "auto" and self.window % 2 == 0:
            raise ValueError(f"window is {self.window}; it must be odd. Use {self.window + 1}.")
        return self


def _cross_entropy_and_dice() -> list[LossTerm]:
    return [CrossEntropy(name="cross_entropy"), Dice(name="dice")]


class Loss(Schema):
    """A weighted sum of terms, optionally wrapped in the neighbour penalty."""

    terms: Annotated[list[LossTerm], Field(min_length=1, max_length=16)] = Field(
        default_factory=_cross_entropy_and_dice
    )
    neighbour_penalty: NeighbourPenalty | None = None

    @model_validator(mode="after")
    def _each_term_once(self) -> Loss:
        names = [term.name for term in self.terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is named more than once. Name each term once and set its weight.")
        return self


def _topology() -> Loss:
    return Loss(terms=[*_cross_entropy_and_dice(), SoftClDice(name="soft_cldice", weight=0.5)])


TOPOLOGY = _topology()
"""The loss of `recipe: topology`: of the candidates of docs/results.md the one that lowered the Betti error beyond
chance and made nothing else worse. One set, one seed.
"""
