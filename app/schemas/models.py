"""Schemas of models: a name, its versions, and the aliases of versions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, create_model

from app.metric_table import METRICS
from app.schemas.base import Address, DatasetRef, Real, Schema, Whole

Fraction = Annotated[Real, Field(ge=0, le=1)]
Count = Annotated[Real, Field(ge=0, le=1e9)]


class File(Schema):
    """A file that can be downloaded; the digest is also its ETag."""

    sha256: str
    bytes: int
    href: Address


class Alias(Schema):
    """A name that points to one version; `membranes@champion` is served by whatever it points to."""

    alias: str
    version: int
    moved_at: datetime
    etag: str
    """Send it as If-Match to move the alias only if nobody else has."""


class AliasMove(Schema):
    """One line of an alias's history, which only grows."""

    alias: str
    from_version: int | None
    """null: the alias was new."""
    to_version: int | None
    """null: the alias was removed."""
    moved_at: datetime
    moved_by: str | None
    gate: dict[str, Any] | None
    """The bounds the version had to keep and the figures it was measured at."""


class Model(Schema):
    """A name under which versions of a network are kept."""

    id: UUID
    name: str
    created_at: datetime
    latest: int | None
    """Newest version; null while the first is still training."""
    aliases: list[Alias]
    links: dict[str, Address]


class ModelVersion(Schema):
    """The card of an exported network: what it was trained on and how, what it scored, and what is needed to run it."""

    id: UUID
    model: str
    version: int
    ref: str
    """What jobs and predictions name it by: `membranes:3`."""
    created_at: datetime
    source: Literal["trained", "imported"]
    """Made by a training job here, or brought in from elsewhere: then no figure of it was measured here before an
    evaluation.
    """
    aliases: list[str]
    dataset: str | None
    """The dataset version it was trained on: `isbi12@1`."""
    job: UUID | None
    """The training job that made it."""
    training_s: float | None
    """Seconds of training."""
    spec: dict[str, Any]
    """The training job, with every default filled in."""
    metrics: dict[str, Any]
    """Means over whole validation images, as training reported them."""
    manifest: dict[str, Any]
    """What a server needs: channels, scaling, classes, threshold, tile, opset, digests, verification."""
    software: dict[str, Any]
    """Versions of what trained and exported it."""
    onnx: File
    safetensors: File | None
    provider: str | None = None
    """What runs the network in the process that answers: `CPUExecutionProvider`, `CUDAExecutionProvider:1`; null while
    it is not loaded, and in lists.
    """
    threads: int | None = None
    """Cores that a prediction uses when it is alone, by what a run took when the network was loaded; null on a GPU,
    while it is not loaded, and in lists.
    """
    batch: int | None = None
    """Images of different requests predicted together at most, as measured when the network was loaded: 1 where that
    does not pay; null while it is not loaded, and in lists.
    """
    links: dict[str, Address]


class _Gate(Schema):
    """Bounds that a version must keep before an alias may point to it; means over images and classes.

    Without `dataset` the validation figures of its training decide; with it, the newest evaluation on that dataset
    version.
    """

    dataset: DatasetRef | None = None

    def bounds(self) -> dict[str, float]:
        """The bounds that are set: `{"min_dice": 0.9}`."""
        return {name: value for name, value in self.model_dump().items() if name != "dataset" and value is not None}


_BOUNDS: Any = {
    metric.bound: (
        (Fraction if metric.better == "higher" else Count) | None,
        Field(None, description=f"{metric.meaning} ({metric.unit})"),
    )
    for metric in METRICS.values()
}
Gate = create_model("Gate", __base__=_Gate, __doc__=_Gate.__doc__, **_BOUNDS)


class MoveAlias(Schema):
    """Where an alias shall point."""

    version: Annotated[Whole, Field(ge=1, le=2**31 - 1)]
    gate: Gate | None = None

    model_config = {
        **Schema.model_config,
        "json_schema_extra": {
            "examples": [{"version": 3, "gate": {"dataset": "isbi12@1", "min_cldice": 0.9, "max_beta0_error": 2}}]
        },
    }
