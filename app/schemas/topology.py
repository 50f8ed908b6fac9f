"""Schemas of topology reports: counts, skeleton, persistence, and distance to a reference."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from pydantic import ConfigDict, Field

from app.schemas.base import Schema, SpacingQuery, example
from app.schemas.predictions import ID, REPORT, ClassTopology, Place

ANALYSIS = {
    "image": None,
    "reference": ID,
    "shape": [584, 565],
    "spacing_mm": None,
    "threshold": 0.5,
    "label": None,
    "topology": REPORT | {"class_name": "foreground"},
    "simple_points": 4120,
    "skeleton": {
        "nodes": [{"position": [12, 40], "degree": 3}],
        "branches": [{"start": [12, 40], "end": [60, 44], "length": 52.1, "radius": 2.4}],
    },
    "persistence": {
        "counts": [3, 7],
        "bars": [{"dimension": 1, "birth": 0.92, "death": 0.08, "born_at": [31, 40], "dies_at": [36, 44]}],
    },
    "comparison": {
        "metrics": {
            "dice": 0.91,
            "cldice": 0.88,
            "beta0_error": 2,
            "beta1_error": 1,
            "betti_matching_error": 4,
            "hd95": 3.0,
        },
        "error_count": 1,
        "errors": [
            {
                "kind": "break",
                "dimension": 0,
                "position": [88, 120],
                "box": [[86, 118], [91, 123]],
                "size": 9,
                "persistence": 0.31,
            }
        ],
        "metric_spec": REPORT["spec"],
        "metric_digest": REPORT["spec_digest"],
    },
    "timings_ms": {"decode": 1.9, "topology": 11.2, "persistence": 8.4, "compare": 20.3},
}


class MaskOptions(Schema):
    """How pixels become foreground. No option changes the shape of an answer."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Part of the pixel type's range (of 1 for float) above which a pixel is foreground; an integer image that holds
    only 0 and one other value is a mask, and needs none.
    """
    label: Annotated[int | None, Field(ge=-(2**31), le=2**31 - 1)] = None
    """Value that is foreground in a mask of several classes, or in one whose foreground is 0."""
    spacing_mm: SpacingQuery | None = None
    """Size of a pixel in mm along rows and columns (planes, rows and columns), where the file says nothing or something
    wrong: `0.01,0.01`.
    """
    resample: bool = False
    """Bring a reference on another grid to that of the image by its nearest voxels, instead of refusing it."""


class StoredMask(Schema):
    """A stored image to analyse, in place of bytes."""

    image: UUID

    model_config = {**Schema.model_config, **example({"image": ID})}


class StoredPair(StoredMask):
    """Stored images to analyse, in place of bytes."""

    reference: UUID | None = None
    """A mask of the same shape to compare with."""

    model_config = {**Schema.model_config, **example({"image": ID, "reference": None})}


class Node(Schema):
    """A place where branches of the skeleton meet or end."""

    position: Place
    degree: int
    """Branches that leave it."""


class Branch(Schema):
    """A curve of the skeleton between two nodes; both are null for a closed curve without one."""

    start: Place | None
    end: Place | None
    length: float
    """In the `length_unit` of the topology."""
    radius: float
    """Mean distance to the background along the curve, in the same unit."""


class Skeleton(Schema):
    """The graph of the skeleton; its totals are in the topology."""

    nodes: list[Node]
    """The 1000 of highest degree."""
    branches: list[Branch]
    """The 1000 longest."""


class GraphBranch(Schema):
    """A branch of a whole skeleton graph; its ends are places in the list of nodes, null for a closed curve."""

    source: int | None
    target: int | None
    length: float
    """In `length_unit`, as the other two."""
    radius: float
    """Mean distance to the background along the branch."""
    width: float
    """Mean width of the object: twice the radius less one pixel."""


class SkeletonGraph(Schema):
    """All nodes and branches of a skeleton."""

    length_unit: str
    """mm where the spacing of the image is known, else px."""
    length: float
    """Of all branches together."""
    nodes: list[Node]
    branches: list[GraphBranch]

    model_config = {
        **Schema.model_config,
        **example(
            {
                "length_unit": "px",
                "length": 52.1,
                "nodes": [{"position": [12, 40], "degree": 1}, {"position": [60, 44], "degree": 1}],
                "branches": [{"source": 0, "target": 1, "length": 52.1, "radius": 2.4, "width": 3.8}],
            }
        ),
    }


class Bar(Schema):
    """A feature of the map: it appears where the threshold falls to `birth` and ends where it falls to `death`."""

    dimension: int
    """0 component, 1 loop, 2 cavity."""
    birth: float
    death: float | None
    """null: it never ends."""
    born_at: Place
    dies_at: Place | None


class Persistence(Schema):
    """The features of the map at all thresholds; one that lives long is no noise."""

    counts: list[int]
    """Features by dimension."""
    bars: list[Bar]
    """The 1000 that live longest."""


class LocatedError(Schema):
    """A region where the topology is wrong."""

    kind: str
    """break, merge, spurious, missing or hole."""
    dimension: int
    position: Place
    box: list[Place]
    """[start, stop): stop is the first row and column outside."""
    size: int
    """Pixels."""
    persistence: float
    """How far the threshold would have to move until the region is right."""


class Comparison(Schema):
    """How far the mask is from its reference."""

    metrics: dict[str, float]
    error_count: int
    errors: list[LocatedError]
    """The 1000 most severe."""
    metric_spec: dict[str, Any]
    """The convention behind the numbers."""
    metric_digest: str
    """Numbers compare only where this is equal."""


class Analysis(Schema):
    """Everything that topology says about one mask or probability map."""

    image: UUID | None
    """null when its bytes came with the request."""
    reference: UUID | None
    shape: list[int]
    spacing_mm: list[float] | None
    threshold: float
    label: int | None
    topology: ClassTopology
    simple_points: int
    """Foreground pixels whose removal, one at a time, changes no Betti number."""
    skeleton: Skeleton
    persistence: Persistence
    comparison: Comparison | None
    """null without a reference."""
    timings_ms: dict[str, float]

    model_config = {**Schema.model_config, **example(ANALYSIS)}
