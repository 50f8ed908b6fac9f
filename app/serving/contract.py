"""What an exported network promises about itself: `manifest.json`, read strictly.

Serving needs no fact that is not in here, so a network that another program exported is served by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.schemas.base import Label, Real, Schema, Whole, by

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[Whole, Field(ge=1)]


class ImageScaling(Schema):
    """Zero mean and unit deviation of each image and channel, over the whole image."""

    kind: Literal["image"]


class MinMaxScaling(Schema):
    """Each image and channel to 0 to 1, its least value to its greatest, over the whole image."""

    kind: Literal["min_max"]


Percentile = Annotated[Real, Field(ge=0, le=100)]


class PercentileScaling(Schema):
    """Each image and channel to 0 to 1 between two of its percentiles, cut off beyond them."""

    kind: Literal["percentile"]
    low: Percentile = 0.5
    """The percentile that becomes 0."""
    high: Percentile = 99.5
    """The percentile that becomes 1."""

    @model_validator(mode="after")
    def _is_a_range(self) -> PercentileScaling:
        if self.low >= self.high:
            raise ValueError(f"the percentile low is {self.low} and high {self.high}; low must be smaller.")
        return self


class TrainingFigures(Schema):
    """Figures of the training images, one for each channel."""

    mean: list[Real]
    std: list[Annotated[Real, Field(ge=0)]]
    dtype: Literal["uint8", "uint16", "int16", "float32"] | None = None
    """Type of the training images; null: unknown, or several. An image of another type is brought to its range."""


class DatasetScaling(TrainingFigures):
    """Zero mean and unit deviation by figures of the training images, one per channel."""

    kind: Literal["dataset"]


class ClippedScaling(TrainingFigures):
    """The same of values that were cut off at bounds first, as for CT, where a grey value means a material."""

    kind: Literal["clipped"]
    low: list[Real]
    """Smaller values become this one, one for each channel."""
    high: list[Real]
    """Greater values become this one, one for each channel."""

    @model_validator(mode="after")
    def _are_ranges(self) -> ClippedScaling:
        if len(self.low) != len(self.high) or any(a > b for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError("scaling needs as many bounds low as high, none of them above the other.")
        return self


Scaling = Annotated[
    ImageScaling | MinMaxScaling | PercentileScaling | DatasetScaling | ClippedScaling, Field(discriminator="kind")
]


class Verification(Schema):
    """How far ONNX Runtime and the training framework disagreed on real validation images when the file was made."""

    items: Annotated[Whole, Field(ge=0)]
    max_difference: Annotated[Real, Field(ge=0)]
    tolerance: Annotated[Real, Field(ge=0)]
    mask_disagreements: Annotated[Whole, Field(ge=0)]
    """Pixels whose class differed."""


class Coded(Schema):
    """A term of a terminology: `{"value": "59820001", "scheme": "SCT", "meaning": "Blood Vessel"}`."""

    value: Annotated[str, Field(min_length=1, max_length=16)]
    scheme: Annotated[str, Field(min_length=1, max_length=16)]
    """SCT (SNOMED CT) or another coding scheme designator of DICOM PS3.16."""
    meaning: Annotated[str, Field(min_length=1, max_length=64)]


class ClassCodes(Schema):
    """What a class is in a DICOM segmentation: its property category (PS3.16 CID 7150) and type."""

    category: Coded
    type: Coded


class Variant(Schema):
    """A smaller form of the network, in half precision or with 8-bit convolutions."""

    refused: str | None
    """Why it was not kept; null: it is served on request."""
    onnx_sha256: Digest | None
    bytes: Positive | None
    verification: dict[str, Any]
    """What changed on the validation images against the full network, and the bounds."""


CONVERSIONS = {(3, 1): "luminance", (1, 3): "grey_to_rgb"}
"""What is done to images of so many channels for networks of so many."""


def no_threshold(model: str, classes: Sequence[str]) -> str:
    """Why a threshold is refused by a network that chooses among its classes."""
    return (
        f"{model} tells {len(classes)} classes apart and answers with the most probable one; a threshold has no meaning"
        " here. Leave it out."
    )


class Manifest(Schema):
    """Every fact needed to serve a network.

    The network maps `input` (N, channels, ...) float32, scaled, sides multiples of `multiple` or those of `tile`, to
    `output` (N, K, ...) float32 in [0, 1]: K = 1, the foreground, for `sigmoid`; one channel per class for `softmax`.
    """

    format: Literal["toposerve-manifest/1"]
    task: Literal["segmentation"]
    dimensions: Literal[2, 3]
    channels: Annotated[Whole, Field(ge=1, le=1024)]
    classes: Annotated[list[Label], Field(min_length=2, max_length=255)]
    """Background first; a mask holds positions in this list."""
    activation: Literal["sigmoid", "softmax"]
    answers: Literal["probability", "logits"] = "probability"
    """What the file itself gives; to logits, which foreign networks often give, serving applies the activation."""
    threshold: Annotated[Real, Field(gt=0, lt=1)]
    """Probability above which a pixel is foreground; softmax networks take the most probable class instead."""
    scaling: Scaling
    orientation: Annotated[str, Field(pattern=r"^[RLAPSI]{3}$")] | None = None
    """Where columns, rows and planes of the training volumes run: "RAS" is right, front, up; null: unknown. A volume in
    another orientation is turned to it, and the answer back."""
    spacing_mm: list[Annotated[Real, Field(gt=0)]] | None = None
    """Median size of the training images' pixels along each axis, planes first; null: unknown, or they differ by more
    than a tenth. An image with other pixels is resampled to it, and the answer back."""
    multiple: Annotated[Whole, Field(ge=1, le=1024)]
    """Sides must be multiples of this; serving fills images up to it and cuts the answer back."""
    padding: Literal["edge", "reflect"]
    """What images are filled up with: their last pixel repeated, or themselves mirrored."""
    tile: list[Annotated[Whole, Field(ge=1, le=16384)]]
    """Largest piece predicted at once, one side for each image axis."""
    sides: Literal["any", "tile"] = "any"
    """`tile`: the file takes images of exactly the sides of `tile`; larger ones are cut, smaller ones filled up."""
    batch: Positive | None = None
    """How many images the file takes at once; null: any number."""
    overlap: Annotated[Real, Field(ge=0, le=0.5)]
    """Part of a tile shared with its neighbour where the receptive field does not say how much is needed."""
    receptive_field: Positive | None
    """Side of the square (cube) outside which nothing changes a pixel's answer; null when it is the whole image."""
    opset: Positive
    input: str
    output: str
    extra_outputs: list[Literal["persistence_threshold"]] = []
    """What the file gives besides `output`, computed only when asked for. `persistence_threshold` (N, 2) float32: mean
    and deviation, above 0, of a
    normal distribution over the persistence, in units of probability, that a ridge needs to be a structure
    (`topology.morse.structure_uncertainty`)."""
    onnx_sha256: Digest
    weights_sha256: Digest | None
    verification: Verification | None
    """null: imported, so nobody compared it with what it was trained by."""
    variants: dict[Literal["fp16", "int8"], Variant] = {}
    """The smaller forms that were asked for, kept or refused."""
    codes: dict[Label, ClassCodes] = {}
    """Terms of classes for DICOM segmentations, by name; others get those of `app.imaging.dicom.writing.KNOWN`, or
    "Anatomical Structure"."""
    spec: dict[str, Any]
    """The training job."""
    step: Annotated[Whole, Field(ge=0)]
    """Optimizer step of the weights."""
    metrics: dict[str, Any]
    """Means over whole validation images at that step."""
    software: dict[str, str]

    @property
    def imported(self) -> bool:
        """Whether it was trained elsewhere, so that nobody knows what its file makes of every image."""
        return self.verification is None

    @property
    def outputs(self) -> int:
        """Channels of the network's answer."""
        return 1 if self.activation == "sigmoid" else len(self.classes)

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        if self.activation == "sigmoid" and len(self.classes) != 2:
            raise ValueError(
                f"a sigmoid network has 2 classes, background and foreground; {len(self.classes)} are named."
            )
        if unknown := set(self.codes) - set(self.classes[1:]):
            raise ValueError(f"codes names {len(unknown)} classes that are no foreground classes of the network.")
        if len(self.tile) != self.dimensions:
            raise ValueError(f"tile has {len(self.tile)} sides and the network {self.dimensions} dimensions.")
        if self.spacing_mm is not None and len(self.spacing_mm) != self.dimensions:
            raise ValueError(f"spacing_mm has {len(self.spacing_mm)} sizes for {self.dimensions} dimensions.")
        odd = [side for side in self.tile if side % self.multiple]
        if odd:
            raise ValueError(f"tile is {by(self.tile)}; every side must be a multiple of {self.multiple}.")
        self._figures_fit()
        return self

    def _figures_fit(self) -> None:
        """One figure of each sort for each channel."""
        scaling = self.scaling
        if not isinstance(scaling, TrainingFigures):
            return
        if not len(scaling.mean) == len(scaling.std) == self.channels:
            raise ValueError(
                f"scaling has {len(scaling.mean)} means and {len(scaling.std)} deviations for {self.channels} channels."
            )
        if isinstance(scaling, ClippedScaling) and len(scaling.low) != self.channels:
            raise ValueError(f"scaling has {len(scaling.low)} bounds for {self.channels} channels.")
