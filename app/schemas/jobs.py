"""The specs of jobs: what may be asked of a worker."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic.config import JsonDict

from app.schemas.augmentation import Augmentation
from app.schemas.base import DatasetRef, Flag, ModelRef, Name, Real, Schema, Whole, by
from app.schemas.losses import TOPOLOGY, Loss, Prior, TopologyLayer
from app.schemas.optimization import EarlyStopping, MetricName, Optimizer, Plateau, Schedule, Stage, Steps
from app.schemas.rules import Rule

Side = Annotated[Whole, Field(ge=8, le=4096)]
LARGEST_BATCH = 2**26
"""Most pixels or voxels in the patches of one step: at 32 features, four bytes each, every layer of the finest level
keeps 8 GiB.
"""
VOLUME_PATCH = [64, 64, 64]
FEATURES = ("components", "loops", "cavities")
"""What the Betti numbers count."""
SWEEPS_IN_VOLUMES = 1
"""Most sweeps of TCSP in volumes: each adds a thousand operations to the exported network and, on one core, a minute to
its export.
"""


class Levels(Schema):
    """What all networks have: sides are halved from level to level."""

    name: str
    dimensions: Literal[2, 3] = 2
    """2 for images, 3 for volumes."""
    channels: Annotated[list[Annotated[Whole, Field(ge=1, le=1024)]], Field(min_length=1, max_length=7)] = [32, 64, 128]
    """Features at each level, finest first."""


class UNet(Levels):
    """A U-Net: two convolutions, 3 wide, with normalisation at each level, one level for each entry of `channels`."""

    name: Literal["unet"] = "unet"
    residual: Flag = False
    """Blocks with a shortcut."""
    normalisation: Literal["batch", "instance", "group"] = "batch"
    """`batch` becomes a fixed factor once trained, so that tiles fit together; `instance` and `group` (of 8 features)
    look at the whole tile, and suit batches of one or two patches."""


class SimplePointUNet(Levels):
    """A U-Net with the continuous simple-point correction (TCSP) behind it, which protects what topology depends on.

    Slow to export.
    """

    name: Literal["unet_tcsp"]
    iterations: Annotated[Whole, Field(ge=1, le=20)] = 5
    """Sweeps of the skeleton inside the network; at least half the width of the structure in pixels. In volumes 1."""
    rule: Literal["exact", "published"] = "exact"
    """Which pixels are simple: `exact` keeps the Betti numbers of the map at 0.5; `published`, in images only, is the
    rule of the paper's code, which keeps them on saturated maps only."""
    skeleton_weight: Annotated[Real, Field(ge=0, le=1000)] = 0.0
    """Weight of the CSP skeleton loss on the network's variational logits, as in the paper's recipe; 0: none, they
    learn through the answer."""

    @model_validator(mode="after")
    def _can_be_exported(self) -> SimplePointUNet:
        if self.dimensions == 3 and self.iterations > SWEEPS_IN_VOLUMES:
            raise ValueError(
                f"iterations is {self.iterations}; in volumes it must be {SWEEPS_IN_VOLUMES}, because every sweep makes"
                f" the export a minute longer. Set it to {SWEEPS_IN_VOLUMES}, or use the term csp_skeleton_loss with a"
                " plain unet."
            )
        if self.dimensions == 3 and self.rule == "published":
            raise ValueError("rule is published, which is for images; use exact in volumes.")
        return self


class ProbabilisticMorseUNet(Levels):
    """A U-Net that also learns how long a ridge of its answer must last to be a structure, as a distribution
    (probabilistic DMT, Hu et al. 2023).

    Its model says that distribution for every image, which makes every branch likely or unlikely as a whole.
    """

    name: Literal["unet_pdmt"]
    structure_weight: Annotated[Real, Field(ge=0, le=1000)] = 0.5
    """Weight of the loss on the structures that a drawn threshold leaves."""
    divergence_weight: Annotated[Real, Field(ge=0, le=1000)] = 0.01
    """Weight of the distance between what is known with the reference mask and what is predicted without it."""
    structure_from_step: Annotated[Whole, Field(ge=0, le=10_000_000)] = 500
    """The first step at which both count; before, the network learns to segment."""
    temperature: Annotated[Real, Field(gt=0, le=1)] = 0.05
    """Width of the step from not being a structure to being one, in units of probability."""


class DictionaryUNet(Levels):
    """A U-Net whose deepest features are words of a learnt dictionary; with `priors`, words whose compositions have the
    right topology.
    """

    name: Literal["unet_dictionary"]
    codes: Annotated[Whole, Field(ge=2, le=4096)] = 64
    """Words in the dictionary."""
    skips: Annotated[Whole, Field(ge=0, le=6)] | None = None
    """How many skip connections pass, the deepest ones; null: all. What passes there is not made of words: at its end a
    training tells by how much the Dice falls when the words change places."""
    commitment: Annotated[Real, Field(ge=0, le=10)] = 0.2
    """How strongly features are pulled to their words; words follow their features by moving averages."""
    priors: Annotated[list[Prior], Field(min_length=1, max_length=64)] | None = None
    """Betti numbers that unions of classes are known to have; null: none are known."""
    prior_window: Annotated[Whole, Field(ge=8, le=4096)] | None = None
    """Side in pixels of windows in each of which the foreground is to have the Betti numbers of the label there; null:
    not asked for. With neither of the two priors nothing is drawn."""
    prior_weight: Annotated[Real, Field(ge=0, le=1000)] = 0.01
    """Weight of the priors on what randomly drawn words are decoded to; each is a sum over features."""
    prior_from_step: Annotated[Whole, Field(ge=0, le=10_000_000)] = 1000
    """The first step at which the prior counts: the network must be able to draw by then."""
    temperature: Annotated[Real, Field(gt=0, le=100)] = 0.1
    """Of the draws: how often words other than the nearest come up."""


class DynUNet(Levels):
    """The U-Net of nnU-Net, as MONAI's DynUNet: strided convolutions and losses at several levels."""

    name: Literal["dynunet"]
    deep_supervision: Annotated[Whole, Field(ge=0, le=5)] = 1
    """Deeper levels that answer, too, while it is trained; there are two fewer than `channels` at most."""
    residual: Flag = False
    """Blocks with a shortcut."""


class SegResNet(Levels):
    """A residual encoder with a light decoder, as MONAI's SegResNet; `channels` double from level to level."""

    name: Literal["segresnet"]

    @model_validator(mode="after")
    def _doubles(self) -> SegResNet:
        doubled = [self.channels[0] * 2**level for level in range(len(self.channels))]
        if self.channels != doubled:
            raise ValueError(f"channels is {self.channels}; in segresnet they double from level to level: {doubled}.")
        return self


class AttentionUnet(Levels):
    """A U-Net with gated skip connections, as MONAI's AttentionUnet. It normalises over the whole tile."""

    name: Literal["attention_unet"]


def _network_name(network: Any) -> str:
    return str(network.get("name", "unet") if isinstance(network, dict) else getattr(network, "name", "unet"))


Network = Annotated[
    Annotated[UNet, Tag("unet")]
    | Annotated[SimplePointUNet, Tag("unet_tcsp")]
    | Annotated[ProbabilisticMorseUNet, Tag("unet_pdmt")]
    | Annotated[DictionaryUNet, Tag("unet_dictionary")]
    | Annotated[DynUNet, Tag("dynunet")]
    | Annotated[SegResNet, Tag("segresnet")]
    | Annotated[AttentionUnet, Tag("attention_unet")],
    Discriminator(_network_name),
]


TRAIN_EXAMPLE: JsonDict = {
    "kind": "train",
    "dataset": "isbi12@1",
    "model": "membranes",
    "network": {"name": "unet", "dimensions": 2, "channels": [32, 64, 128]},
    "loss": {
        "terms": [
            {"name": "cross_entropy"},
            {"name": "dice"},
            {"name": "skeleton_hard_pixels", "weight": 0.5, "from_step": 2000},
        ],
        "neighbour_penalty": {"window": 3, "mode": "add"},
    },
    "patch": [256, 256],
    "batch": 4,
    "steps": 4000,
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    "seed": 0,
}


class TrainSpec(Schema):
    """Train a network on a dataset version and register the result as a new version of a model."""

    kind: Literal["train"]
    dataset: DatasetRef
    model: Name
    """The model this becomes a version of; made when it does not exist."""
    network: Network = UNet()
    loss: Loss = Field(default_factory=Loss)
    recipe: Literal["auto", "topology"] | None = None
    """In place of `loss`. `topology`: cross-entropy, Dice and soft clDice at weight 0.5. `auto`: a comparison of
    nine losses on folds of the training images chooses, and may say that none helps; then 70 % of the steps with the
    baseline, the rest with what was chosen at a quarter of the rate."""
    budget: Steps | None = None
    """Of `recipe: auto`: optimizer steps of all trainings of its comparison together; null: ten times `steps`."""
    patch: Annotated[list[Side], Field(min_length=2, max_length=3)] = [256, 256]
    """Rows and columns of the training patches, in volumes planes first (64 each unless stated); multiples of 2 to the
    number of levels minus one.
    """
    batch: Annotated[Whole, Field(ge=1, le=256)] = 4
    steps: Steps = 4000
    """Optimizer steps."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = "poly"
    """Learning rate over time: `poly` falls to zero as (1 - step/steps)^0.9, `cosine` as half a wave, `plateau` when
    best_metric stops improving; `constant` stays."""
    warmup: Annotated[Whole, Field(ge=0, le=10_000_000)] = 0
    """Steps over which the learning rate rises to its first value; fewer than `steps`."""
    plateau: Plateau | None = None
    """Of the schedule plateau; null: a tenth after 3 validations without improvement."""
    stages: Annotated[list[Stage], Field(min_length=1, max_length=10)] | None = None
    """Parts of the training with another loss or learning rate, such as a pre-training and a fine-tuning with topology
    terms; `steps` becomes the sum of theirs. null: one part."""
    clip_gradient: Annotated[Real, Field(gt=0, le=1e6)] | None = None
    """Largest norm of the gradient of all weights; nnU-Net takes 12; null: any."""
    accumulate: Annotated[Whole, Field(ge=1, le=256)] = 1
    """Batches whose gradients make one step, for batches that do not fit in memory; each is normalised by itself."""
    average: Annotated[Real, Field(ge=0, lt=1)] | None = None
    """Decay of a moving average of the weights (EMA), such as 0.999; it is then what is validated and exported."""
    folds: Annotated[Whole, Field(ge=2, le=20)] | None = None
    """Cut the data into this many parts and validate on one; null cuts off validation_fraction instead."""
    fold: Annotated[Whole, Field(ge=0, le=19)] = 0
    validation_fraction: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    seed: Annotated[Whole, Field(ge=0, le=2**31 - 1)] = 0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on a CPU, bfloat16 where the GPU has it."""
    devices: Literal["auto", "cpu"] = "auto"
    """auto: a GPU where there is one, else the CPU."""
    start_from: ModelRef | None = None
    """A model version whose weights training starts from."""
    scaling: Literal["image", "dataset", "percentile", "min_max", "clipped"] = "image"
    """Zero mean and unit deviation: `image` of each image by itself, `dataset` by figures of the training images. To 0
    to 1: `min_max` of each image, `percentile` between its percentiles 0.5 and 99.5. `clipped`, for CT: by figures of
    the labelled structures of the training images, cut off at their percentiles 0.5 and 99.5."""
    augment: Flag | Augmentation = True
    """What happens to patches. true: flips, quarter turns, small changes of brightness and contrast, and noise; false:
    nothing; or a preset with bounds."""
    foreground_fraction: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Chance that a patch is drawn around a pixel of a class, every class alike, instead of anywhere; for rare or small
    structures a third is usual."""
    foreground_places: Literal["pixels", "skeleton"] = "pixels"
    """Around which pixels: any of the class, or those of its skeleton, so that thin structures count by their
    length."""
    validate_every: Steps | None = None
    """Steps between validations; null: ten in the whole run."""
    checkpoint_every: Steps = 250
    """Steps between checkpoints: the most work a crash may cost."""
    unlabelled_fraction: Annotated[Real, Field(ge=0, lt=1)] = 0.5
    """Part of each batch that is images without a mask, where the dataset has some and a term needs no reference
    (betti_prior, topology_layer).
    """
    best_metric: MetricName = "cldice"
    """Decides which weights are exported."""
    early_stopping: EarlyStopping | None = None
    threshold: Annotated[Real, Field(gt=0, lt=1)] = 0.5
    """Probability above which a pixel is foreground in validation and by default in serving."""
    variants: Annotated[list[Literal["fp16", "int8"]], Field(max_length=2)] = []
    """Smaller forms exported beside the network, kept where masks and Betti numbers of the validation images agree;
    `?variant=int8` asks for one.
    """

    model_config = {**Schema.model_config, "json_schema_extra": {"examples": [TRAIN_EXAMPLE]}}

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSpec:
        dimensions = self.network.dimensions
        if self.stages is not None:
            self.steps = sum(stage.steps for stage in self.stages)
        if self.warmup >= min([self.steps, *(stage.steps for stage in self.stages or [] if stage.warmup is None)]):
            raise ValueError(f"warmup is {self.warmup}; it must be less than the steps of every stage that has it.")
        if dimensions == 3 and "patch" not in self.model_fields_set:
            self.patch = list(VOLUME_PATCH)
        if len(self.patch) != dimensions:
            raise ValueError(
                f"patch has {len(self.patch)} sides and the network {dimensions} dimensions; give one side for each."
            )
        fewest = {DynUNet: 3, SegResNet: 2, AttentionUnet: 2}.get(type(self.network), 1)
        if len(self.network.channels) < fewest:
            raise ValueError(
                f"channels has {len(self.network.channels)} levels; {self.network.name} needs {fewest} or more."
            )
        multiple = self.multiple
        odd = [side for side in self.patch if side % multiple]
        if odd:
            raise ValueError(
                f"patch is {by(self.patch)}; with {len(self.network.channels)} levels all sides must be multiples of"
                f" {multiple}."
            )
        if (size := self.batch * prod(self.patch)) > LARGEST_BATCH:
            raise ValueError(
                f"a batch of {self.batch} patches of {by(self.patch)} has {size}"
                f" {'pixels' if dimensions == 2 else 'voxels'}; at most {LARGEST_BATCH} are accepted. Use a smaller"
                " patch or batch."
            )
        self._recipe_fits()
        self._topology_fits(dimensions)
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(
                f"fold is {self.fold} but there are {self.folds} folds, numbered from 0. Use 0 to {self.folds - 1}."
            )
        return self

    def _recipe_fits(self) -> None:
        """A recipe states the loss, and where to begin."""
        if self.recipe is not None and self.loss not in (Loss(), TOPOLOGY):
            raise ValueError(f"recipe is {self.recipe} and loss is stated as well; leave one of them out.")
        if self.recipe == "topology":
            self.loss = TOPOLOGY
        if self.recipe == "auto" and self.start_from is not None:
            raise ValueError("recipe auto begins with a stage of its own; leave start_from out.")
        if self.recipe == "auto" and self.stages is not None:
            raise ValueError("recipe auto has two stages of its own; leave stages out.")
        if self.recipe == "auto" and self.steps < 2:
            raise ValueError("recipe auto has two stages; give 2 steps or more.")
        if self.recipe != "auto" and self.budget is not None:
            raise ValueError("budget is of the comparison that recipe auto makes; leave it out.")

    @property
    def multiple(self) -> int:
        """What all sides of the patch are multiples of: the levels halve them."""
        return max(2 ** (len(self.network.channels) - 1), 2 if isinstance(self.network, SimplePointUNet) else 1)

    @property
    def losses(self) -> list[Loss]:
        """The losses of all stages; one where there are none."""
        return [stage.loss or self.loss for stage in self.stages or []] or [self.loss]

    def _topology_fits(self, dimensions: int) -> None:
        """No prior and no term speaks of more kinds of features than there are."""
        terms = [term for loss in self.losses for term in loss.terms]
        for prior in (prior for part in (*terms, self.network) for prior in getattr(part, "priors", None) or ()):
            if len(prior.betti) != dimensions:
                raise ValueError(
                    f"a prior has {len(prior.betti)} Betti numbers; in {dimensions} dimensions give {dimensions}:"
                    f" {', '.join(FEATURES[:dimensions])}."
                )
        for term in terms:
            looked_at = [term.dimension] if isinstance(term, TopologyLayer) else getattr(term, "dimensions", None) or []
            if max(looked_at, default=0) >= dimensions:
                raise ValueError(
                    f"{term.name} looks at {FEATURES[max(looked_at)]} ({max(looked_at)}), which only volumes have. Use"
                    " 0 for components or 1 for loops."
                )
            if dimensions == 3 and getattr(term, "rule", None) == "published":
                raise ValueError(f"{term.name} has rule published, which is for images; use exact in volumes.")


class ProbeSpec(TrainSpec):
    """Measure how hard each term of a loss pulls at the answers on some batches, and which weight follows; nothing is
    learnt.

    Fields are those of a training; begin from a trained version (`start_from`), as topology terms say little of random
    weights.
    """

    kind: Literal["probe"]  # type: ignore[assignment]  # another kind than the base class has
    model: Name = "probe"
    """Not used: no version is made."""
    batches: Annotated[Whole, Field(ge=1, le=100)] = 10
    """How many are looked at."""

    model_config = {
        **Schema.model_config,
        "json_schema_extra": {
            "examples": [
                {
                    "kind": "probe",
                    "dataset": "isbi12@1",
                    "start_from": "membranes@champion",
                    "loss": {"terms": [{"name": "cross_entropy"}, {"name": "dice"}, {"name": "betti_matching"}]},
                }
            ]
        },
    }

    @model_validator(mode="after")
    def _one_loss(self) -> ProbeSpec:
        if self.recipe == "auto" or self.stages is not None:
            raise ValueError("a probe looks at one loss; leave recipe and stages out.")
        return self


class EvaluateSpec(Schema):
    """Measure a model version on a labelled dataset version: every metric, every image, every class."""

    kind: Literal["evaluate"]
    model: ModelRef
    dataset: DatasetRef
    split: Literal["train", "val", "test"] | None = None
    """Only the items of this split; null: all."""
    threshold: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """null: the model's own."""
    rules: Annotated[list[Rule], Field(max_length=64)] = Field(default_factory=list)
    """Between classes, counted as `rule_violations` of their subject."""

    model_config = {
        **Schema.model_config,
        "json_schema_extra": {"examples": [{"kind": "evaluate", "model": "membranes@champion", "dataset": "isbi12@1"}]},
    }


class PredictSpec(Schema):
    """Predict many images; a bad one is noted and does not stop the others."""

    kind: Literal["predict"]
    model: ModelRef
    dataset: DatasetRef | None = None
    images: Annotated[list[UUID], Field(min_length=1, max_length=10_000)] | None = None
    threshold: Annotated[Real, Field(gt=0, lt=1)] | None = None
    topology: Flag = True
    """Add the topology report to every prediction; the options below add it too."""
    margins: Flag = False
    """Say of each feature how far the threshold may move before it changes."""
    expect: Annotated[str, Field(min_length=1, max_length=2048, examples=["beta0:1,beta1:0"])] | None = None
    """What the topology of every image shall be, as `expect` of a single prediction."""
    strict: Flag = False
    """With `expect`: an image whose topology is otherwise is noted as failed and not stored."""
    repair: Flag = False
    """Change every mask as little as its map allows until it is as expected, or until only features are left that hold
    by `repair_margin`.
    """
    repair_margin: Annotated[Real, Field(gt=0, le=1)] | None = None
    """How far the threshold must be able to move for a feature to be kept; 0.1 unless stated.

    Only for `repair` without `expect`.
    """
    other_spacing: Literal["resample", "refuse", "keep"] = "resample"
    """What is done with an image whose pixels are of another size than in training, as in a single prediction."""

    model_config = {
        **Schema.model_config,
        "json_schema_extra": {"examples": [{"kind": "predict", "model": "membranes@champion", "dataset": "isbi12@1"}]},
    }

    @model_validator(mode="after")
    def _fits_together(self) -> PredictSpec:
        if (self.dataset is None) == (self.images is None):
            raise ValueError("give either `dataset` or `images`, not both and not neither.")
        if self.strict and self.expect is None:
            raise ValueError("strict insists on what `expect` says; send `expect`, or leave strict out.")
        if self.repair_margin is not None and (not self.repair or self.expect is not None):
            raise ValueError(
                "repair_margin decides only where `repair` has no `expect`; leave it out, or send repair alone."
            )
        return self


SegmentationKind = Literal["binary", "labelmap", "fractional"]
DicomUid = Annotated[str, Field(pattern=r"^[0-9.]{1,64}$", examples=["1.2.840.113619.2.55.3.604688119"])]


class DicomwebSpec(Schema):
    """Segment series of a PACS and store the segmentations there; nothing of them is kept here."""

    kind: Literal["dicomweb"]
    model: ModelRef
    pacs: Name
    """One of the PACS that the operator configured (`TOPOSERVE_PACS`)."""
    study: DicomUid
    """Its StudyInstanceUID."""
    series: DicomUid | None = None
    """SeriesInstanceUID of one series; default is every series of the study that holds images."""
    segmentation: SegmentationKind = "binary"
    """Kind of the segmentation, as of a single prediction."""
    report: bool = True
    """Whether what was counted is stored as well, as a structured report (TID 1500) beside the segmentation."""
    threshold: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """Probability above which a voxel is foreground; default is the model's own."""

    model_config = {
        **Schema.model_config,
        "json_schema_extra": {
            "examples": [
                {"kind": "dicomweb", "model": "vessels@champion", "pacs": "main", "study": "1.2.840.113619.2.55.3.6046"}
            ]
        },
    }


class AnalyseSpec(Schema):
    """Topology of stored masks or probability maps; with references also every metric."""

    kind: Literal["analyse"]
    images: Annotated[list[UUID], Field(min_length=1, max_length=10_000)]
    references: Annotated[list[UUID | None], Field(max_length=10_000)] | None = None
    """A reference mask for each image, in the same order; null where there is none."""
    threshold: Annotated[Real, Field(ge=0, lt=1)] = 0.5
    """Fraction of the pixel type's range (of 1 for float) above which a pixel is foreground."""

    model_config = {
        **Schema.model_config,
        "json_schema_extra": {"examples": [{"kind": "analyse", "images": ["01936f5e-7c00-7000-8000-000000000001"]}]},
    }

    @model_validator(mode="after")
    def _as_many_references(self) -> AnalyseSpec:
        if self.references is not None and len(self.references) != len(self.images):
            raise ValueError(
                f"{len(self.references)} references for {len(self.images)} images; give one for each, null where there"
                " is none."
            )
        return self
