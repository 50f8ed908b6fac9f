"""Schemas of datasets: a name, its immutable versions, their items."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field
from pydantic.config import JsonDict

from app.schemas.base import Address, Label, Name, Real, Schema, Spacing, Whole

Split = Literal["train", "val", "test"]

ClassName = Annotated[Label, Field(max_length=64)]
Value = Annotated[Whole, Field(ge=-(2**31), le=2**31 - 1)]

Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
Rule = Annotated[str, Field(max_length=32, pattern=r"^(#[0-9a-fA-F]{6}|others|> ?-?\d{1,9}(\.\d{1,9})?)$")]

LabelMap = Annotated[
    dict[ClassName, Value | Rule | Annotated[list[Value | Colour], Field(min_length=1, max_length=256)]],
    Field(
        min_length=1,
        max_length=66,
        examples=[{"membrane": 0}, {"background": 0, "myelin": 1, "axon": 2, "ignore": 255}],
    ),
]
"""Class name to the mask value, or values, that mean it. `ignore` lists values that mean "not labelled". Naming
`background` makes the map strict: a value that it does not list is refused. Otherwise every such value is background.

Beside numbers: colours of RGB masks (`"#ff0000"`); `"others"` for every value that is not listed, as numbers of objects
need (`{"background": 0, "cell": "others"}`); `"> 127"` for every value above a threshold."""


class NewPair(Schema):
    """A stored image and the stored mask that labels it."""

    image: UUID
    mask: UUID | None
    """null: nobody labelled the image.

    Only terms that need no reference learn from it, and it is never validated on.
    """
    split: Split | None = None
    """Keeps the pair in one part; null leaves it to the job."""
    group: Label | None = None
    """Pairs of one group (a patient, an animal) never straddle training and validation."""


PAIRS_EXAMPLE: JsonDict = {
    "name": "isbi12",
    "label_map": {"membrane": 0},
    "pairs": [
        {
            "image": "01936f5e-7c00-7000-8000-000000000001",
            "mask": "01936f5e-7c00-7000-8000-000000000002",
            "split": "train",
            "group": None,
        }
    ],
}


class FileReading(Schema):
    """How files are read that are not as they should be."""

    mask_threshold: Real | None = None
    """Mask values above it are foreground, for masks that compression or resampling blurred; null: values are
    labels.
    """
    resample: bool = False
    """Bring masks on another grid to that of their image by the nearest voxels, instead of refusing them."""
    spacing_mm: Spacing | None = None
    """Size of a pixel in mm along rows and columns (planes, rows and columns), the same in all images, where the files
    say nothing or something wrong; null: as they say.
    """
    pairing: Literal["exact", "proposed"] = "exact"
    """Of an archive without `images/` and `masks/` or nnU-Net's folders: refuse it, or take the pairs that
    `POST /v1/datasets/pairing` shows.
    """


class NewVersion(FileReading):
    """A dataset version from images that are stored already."""

    label_map: LabelMap | None = None
    """null: the masks must speak for themselves: 0 and 1, 0 and 255, or 0, 1, 2, ... without gaps."""
    pairs: Annotated[list[NewPair], Field(min_length=1, max_length=10_000)]

    model_config = {
        **Schema.model_config,
        "json_schema_extra": {"examples": [{key: PAIRS_EXAMPLE[key] for key in ("label_map", "pairs")}]},
    }


class NewDataset(NewVersion):
    """A dataset and its first version from images that are stored already."""

    name: Name

    model_config = {**Schema.model_config, "json_schema_extra": {"examples": [PAIRS_EXAMPLE]}}


class ProposedPair(Schema):
    """An image and a mask of an archive, by their paths in it."""

    name: str
    image: str
    mask: str
    split: Split | None
    group: str | None


class PairingShown(Schema):
    """Which file of an archive is the mask of which; nothing was stored."""

    pairs: list[ProposedPair]
    """Where `is_known` is true, empty: images and masks have the same names."""
    count: int
    """Pairs that a dataset of this archive would have."""
    is_known: bool
    """The folders are laid out as datasets are read without asking; else send `pairing=proposed`."""
    export: str | None
    """The annotation tool whose export it is: COCO, YOLO, CVAT or Label Studio; null: none of these."""
    patterns: list[str]
    """How the pairs were found, the most frequent first."""
    ignored: list[str]
    """Files that would not be read: no images, or without a counterpart."""


class LabelWarning(Schema):
    """A label that looks wrong; the version was accepted all the same."""

    code: str
    """Such as stray_values, empty_mask, exif_turned, rare_class, object_numbers, mixed_depths or pair_deleted."""
    detail: str
    item: str | None = None
    """Name of the pair; null when it concerns the whole version."""


class DatasetVersion(Schema):
    """An immutable list of pairs with the meaning of the mask's values, and what was counted in it."""

    id: UUID
    dataset: str
    version: int
    ref: str
    """What jobs name it by: `isbi12@1`."""
    created_at: datetime
    digest: str
    """SHA-256 of the pairs and the label map: the same content is the same version."""
    classes: list[str]
    """Class names by index; 0 is background."""
    label_map: dict[str, int | str | list[int]]
    channels: int
    dimensions: int
    spacing_mm: list[float] | None
    """Pixel size that was stated for all images; null: each has the one of its own row."""
    pairs: int
    """Images with a mask."""
    statistics: dict[str, Any]
    """Shapes, pixels per class, Betti numbers per class, parts, and how many images have no mask."""
    warnings: list[LabelWarning]
    links: dict[str, Address]


class Dataset(Schema):
    """A name for data that grows in versions."""

    id: UUID
    name: str
    created_at: datetime
    versions: int
    """How many there are."""
    latest: DatasetVersion | None
    """null when every version was deleted."""
    links: dict[str, Address]


class DatasetItem(Schema):
    """One pair of a version and what was counted in its mask."""

    position: int
    name: str
    image: UUID
    shape: list[int]
    split: Split | None
    group: str | None
    mask_sha256: str | None
    """null: an image without a mask."""
    statistics: dict[str, Any]
    """Pixels and Betti numbers per class."""
    links: dict[str, Address]
