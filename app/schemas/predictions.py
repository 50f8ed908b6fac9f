"""What was predicted, and what its topology is."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, create_model

from app.metric_table import METRICS
from app.schemas.base import Address, Schema, SpacingQuery, example
from app.schemas.rules import RuleResult

ID = "01936f5e-7c00-7000-8000-000000000001"
REPORT = {
    "class_name": "vessel",
    "beta0": 3,
    "beta1": 7,
    "beta2": None,
    "euler": -4,
    "foreground": 20411,
    "skeleton_length": 3120.4,
    "length_unit": "px",
    "skeleton_length_px": 3120.4,
    "branch_points": 58,
    "end_points": 41,
    "branches": 103,
    "spurs": 12,
    "margins": None,
    "roundness": 0.41,
    "components": [
        {"size": 20102, "box": [[12, 4], [570, 560]], "roundness": 0.01},
        {"size": 290, "box": [[400, 31], [433, 60]], "roundness": 0.29},
        {"size": 19, "box": [[8, 500], [14, 505]], "roundness": 0.93},
    ],
    "spec": {
        "connectivity": "closed",
        "threshold": 0.5,
        "padding": "background",
        "spacing": None,
        "version": "2",
        "name": "exact",
    },
    "spec_digest": "9b3f5c0a1d2e4f60",
}
PREDICTION = {
    "id": ID,
    "model": "vessels:3",
    "image": ID,
    "job": None,
    "created_at": "2026-01-05T10:00:00Z",
    "shape": [584, 565],
    "spacing_mm": None,
    "classes": ["background", "vessel"],
    "threshold": 0.5,
    "conversion": "luminance",
    "topology": [REPORT],
    "artifacts": {
        "mask": {
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "bytes": 10331,
            "media_type": "image/png",
            "href": f"/v1/predictions/{ID}/mask.png",
        }
    },
    "expectation": None,
    "repair": None,
    "measurements": [],
    "timings_ms": {"decode": 2.1, "normalise": 0.6, "infer": 52.0, "stitch": 0.4, "topology": 6.2, "encode": 1.1},
    "links": {
        "self": f"/v1/predictions/{ID}",
        "image": f"/v1/images/{ID}",
        "model": "/v1/models/vessels/versions/3",
        "reference": f"/v1/predictions/{ID}/reference",
    },
}


class PredictOptions(Schema):
    """How an image is predicted. No option changes the shape of an answer; `Accept` chooses it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    threshold: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Probability above which a pixel is foreground; default is the model's own.

    Refused for models of several classes.
    """
    variant: Literal["fp16", "int8"] | None = None
    """A smaller form of the network that was exported with it, instead of the full one; the version's manifest says
    which there are and what they change.
    """
    topology: bool | None = None
    """Add the topology report, to a JSON answer whole and to any other as the header `Toposerve-Topology`.

    Default: only to JSON.
    """
    margins: bool = False
    """Say of each feature how far the threshold may move before it changes: "the bridge at (x, y) holds by 0.04".

    Adds the topology report.
    """
    expect: Annotated[str | None, Field(min_length=1, max_length=2048, examples=["beta0:1,beta1:0"])] = None
    """What the topology shall be: `beta0:1,beta1:0` for every class, `vessel.beta0:1` for one, or JSON
    `{"vessel": {"beta0": 1}}`; numbers are beta0, beta1, beta2 (volumes) and euler. The answer says whether it is, and
    where not. Adds the topology report.
    """
    strict: bool = False
    """With `expect`: 422 `expectation_violated` unless the topology is as expected."""
    repair: bool = False
    """Change the mask as little as its map allows until it is as expected, or, without `expect`, until only features
    are left that hold by `repair_margin`; 422 `repair_failed` where no edit leads there. Adds the topology report, of
    the repaired mask.
    """
    repair_margin: Annotated[float | None, Field(gt=0, le=1)] = None
    """How far the threshold must be able to move before a feature changes, for the feature to be kept; 0.1 unless
    stated. Only for `repair` without `expect`.
    """
    other_spacing: Literal["resample", "refuse", "keep"] = "resample"
    """What is done where the pixels of the image are larger or smaller than those the model was trained on by more than
    a tenth, and both are known: resample the image, and the answer back; refuse it; or predict it as it is.
    """
    spacing_mm: SpacingQuery | None = None
    """Size of a pixel in mm along rows and columns (planes, rows and columns), where the file says nothing or something
    wrong: `0.01,0.01`.
    """
    artifact: (
        Literal["mask", "skeleton", "simple_points", "probability", "uncertainty", "probability_skeleton", "report"]
        | None
    ) = None
    """What an answer that is an image shows (a stored prediction has the first five).

    mask; skeleton; simple_points: 0 background, 60 interior, 120 simple, 180 isolated, 255 critical, whose loss splits
    a component or opens a loop; probability; uncertainty: entropy of the classes from 0 (certain) to 1 (all equally
    likely), of ridges as a whole where the network says what persistence a ridge needs; probability_skeleton: the
    probability thinned so that at every threshold it has as many components and holes as the probability has, class by
    class. In a PNG these last three are 0 to 255; in TIFF and NIfTI float32. report: what was counted, which is
    answered as JSON, or of a DICOM image as a structured report (TID 1500).
    """
    skeleton: bool = False
    """The same as `artifact=skeleton`, its older name."""
    segmentation: Literal["binary", "labelmap", "fractional"] | None = None
    """Kind of the DICOM segmentation that `Accept: application/dicom` asks for: binary, which every viewer reads,
    unless stated; labelmap, smaller where there are many classes; or fractional, the probability in 256 steps.
    """
    store: bool = False
    """Keep the image and every artifact; the answer is 201 and its Location names them."""


class Component(Schema):
    """One connected component."""

    size: int
    """Pixels."""
    box: list[list[int]]
    """[[first row, first column], [row after the last, column after the last]]; planes first in volumes."""
    roundness: float | None = None
    """4 pi area / perimeter^2, from 0 (a line) to 1 (a disc); null in volumes."""


Place = list[int]
"""[row, column] or [plane, row, column]."""


class Feature(Schema):
    """A component, loop or cavity of the map near the threshold: a bar of its superlevel filtration."""

    dimension: int
    """0 component, 1 loop (in volumes: tunnel), 2 cavity."""
    present: bool
    """Whether the mask has it."""
    margin: float
    """How far the threshold moves until that is no longer so."""
    changes_at: float
    """The threshold at which it changes."""
    position: Place
    """The pixel where it changes: `born_at` or `dies_at`."""
    birth: float
    """The feature exists at thresholds below this value and from `death` on."""
    born_at: Place
    death: float | None
    """null: it never ends."""
    dies_at: Place | None
    sentence: str
    """The same for a person; (row, column)."""
    box: list[Place] | None = None
    """Of a component or hole that is too many."""
    size: int | None = None
    """Pixels of it."""


class Margins(Schema):
    """How far the threshold may move before the topology of a class changes, on the map before any repair."""

    threshold: float
    """Where the map is cut.

    Networks of several classes: 0, and the map is the probability of the class minus the largest other.
    """
    features: list[Feature]
    """The 100 nearest to the threshold: those of the mask, and those within 0.1 that it has not."""
    present: int
    """Features of the mask: its Betti numbers added up."""
    near: int
    """Features that it has not, within 0.1."""


class Violation(Schema):
    """A number that is not what was expected."""

    class_name: str
    name: str
    """beta0, beta1, beta2 or euler."""
    expected: int
    found: int
    by: int
    """found - expected."""
    places: list[Feature]
    """Too many: the 20 that hold by least.

    Too few: the 20 that the map nearly has. euler: the 20 nearest to a change.
    """


class Expectation(Schema):
    """Whether the topology is what `expect` says."""

    satisfied: bool
    expected: dict[str, dict[str, int]]
    """Class name -> number -> value."""
    violations: list[Violation]


class Edit(Schema):
    """One change that repaired the mask."""

    class_name: str
    kind: str
    """erase or bridge a component, fill or open a hole [cavity]; plant or split a component, close or punch a loop
    [cavity].
    """
    dimension: int
    position: Place
    """The pixel that changes most."""
    box: list[Place]
    """[start, stop) of the pixels changed."""
    pixels: int
    change: float
    """The largest change of a pixel of the map, in its unit: how wrong the network must have been."""
    cost: float | None = None
    """Sum of the changes of all its pixels, each at least a tenth of the map's mean distance from the threshold.

    null: kept before costs were.
    """


class Repair(Schema):
    """What was changed of the mask."""

    certified: bool
    """Betti numbers were counted anew on the mask that is sent, and are those that were asked for."""
    edit_count: int
    edits: list[Edit]
    """The most expensive first; 1000 at most."""


class ClassTopology(Schema):
    """The topology of one class of a mask."""

    class_name: str
    beta0: int
    """Connected components."""
    beta1: int
    """Loops (in volumes: tunnels)."""
    beta2: int | None = None
    """Cavities of a volume."""
    euler: int
    foreground: int
    """Pixels of this class."""
    skeleton_length: float
    """In `length_unit`."""
    length_unit: str
    """mm where the spacing of the image is known, else px."""
    skeleton_length_px: float
    branch_points: int
    """Places where branches of the skeleton meet."""
    end_points: int
    branches: int
    """Of the skeleton as it is; `spurs` says how many of them are only roughness of the outline."""
    spurs: int | None = None
    """Of these, side branches that are no longer than the mask is wide where they leave; null in reports of before it
    was counted.
    """
    roundness: float | None = None
    """Mean over all components; null where there is none and in volumes."""
    components: list[Component]
    """The 1000 largest."""
    margins: Margins | None = None
    """null unless asked for."""
    spec: dict[str, Any]
    """The convention behind the numbers."""
    spec_digest: str
    """Numbers compare only where this is equal."""


class Stored(Schema):
    """Bytes that are kept of a prediction."""

    sha256: str
    bytes: int
    media_type: str
    href: Address


class _Measured(Schema):
    """How far one class of a prediction is from its reference; null where a metric does not apply."""

    class_name: str
    metric_spec: dict[str, Any]
    metric_digest: str
    broken_rules: list[RuleResult] | None
    """What became of each rule that was given for the class; null where none was."""


_FIGURES: Any = {
    metric.name: ((int if metric.counts else float) | None, Field(description=f"{metric.meaning} ({metric.unit})"))
    for metric in METRICS.values()
}
ClassMeasurement = create_model("ClassMeasurement", __base__=_Measured, __doc__=_Measured.__doc__, **_FIGURES)


class Prediction(Schema):
    """A prediction; `id`, `image`, `created_at` and the artifacts only when it was stored."""

    model_config = {**Schema.model_config, **example(PREDICTION)}

    id: UUID | None
    model: str
    """The version that answered: `vessels:3`."""
    image: UUID | None
    job: UUID | None
    """The job that asked for it; null when a request did."""
    created_at: datetime | None
    shape: list[int]
    """[rows, columns] or [planes, rows, columns]."""
    spacing_mm: list[float] | None
    classes: list[str]
    """A mask holds positions in this list, or 0 and 255 where there are two."""
    threshold: float | None
    """null: the most probable class."""
    conversion: str | None
    """What was done to the image, with commas between. `luminance`: colours became 0.299 R + 0.587 G + 0.114 B.
    `grey_to_rgb`: grey became three equal colours.
    `depth`: values were brought to the range of the training images' type, such as 0 to 255. `depth_unknown`: the model
    is scaled by figures of its training images and does not say of which type they were, or this type has no known
    range.
    """
    topology: list[ClassTopology] | None
    """Every class but the background; null when it was not asked for."""
    expectation: Expectation | None
    """null when nothing was expected."""
    repair: Repair | None
    """null when no repair was asked for."""
    artifacts: dict[str, Stored]
    """mask, skeleton, simple_points, probability, uncertainty."""
    measurements: list[ClassMeasurement]
    """Against the reference, when there is one."""
    timings_ms: dict[str, float]
    links: dict[str, Address]


class ReferenceImage(BaseModel):
    """A stored image that is the reference mask of a prediction."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"image": ID}]})

    image: UUID
