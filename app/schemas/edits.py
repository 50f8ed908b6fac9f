"""Edits of a mask by hand: what is asked for, and what became of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from app.schemas.base import Address, Label, Schema, Whole, example
from app.schemas.predictions import ID, Place
from app.schemas.topology import MaskOptions

Kind = Literal["connect", "cut", "fill", "remove"]
Coordinate = Annotated[Whole, Field(ge=0, lt=2**31)]
Pixel = Annotated[list[Coordinate], Field(min_length=2, max_length=3)]
"""[row, column] or [plane, row, column]."""

EDIT: dict[str, Any] = {
    "id": ID,
    "number": 1,
    "kind": "connect",
    "class_name": "vessel",
    "at": [10, 26],
    "to": None,
    "adds": True,
    "pixels": 3,
    "box": [[10, 25], [11, 28]],
    "cost": 0.6,
    "runs": [[10, 25, 28, 1]],
    "before": {"vessel": {"beta0": 2, "beta1": 0}},
    "after": {"vessel": {"beta0": 1, "beta1": 0}},
    "created_at": "2026-11-30T10:00:00Z",
    "links": {
        "self": f"/v1/predictions/{ID}/edits/{ID}",
        "prediction": f"/v1/predictions/{ID}",
        "mask": f"/v1/predictions/{ID}/edits/mask",
    },
}
WISH = {"kind": "connect", "at": [10, 26], "to": None, "class_name": "vessel"}


class NewEdit(Schema):
    """One edit to be made: a person says where, the map of the network says which pixels."""

    kind: Kind
    """connect: foreground along the cheapest path through a gap. cut: background along the cheapest cut across a
    structure. fill: the hole [cavity] at a pixel. remove: the component at a pixel.
    """
    at: Pixel
    to: Pixel | None = None
    """connect: the other component, or the other side of the gap. cut: what is to be parted from `at`; or, both in the
    background, what the way is opened to. null: connect the two pieces nearest to `at`, cut across at `at`.
    """
    class_name: Label | None = None
    """null: the only class but the background; models of several classes need it."""

    model_config = {**Schema.model_config, **example(WISH)}


class Betti(Schema):
    """Betti numbers of a class."""

    beta0: int
    """Connected components."""
    beta1: int
    """Loops (in volumes: tunnels)."""
    beta2: int | None = None
    """Cavities of a volume."""


class Change(Schema):
    """What an edit changes."""

    kind: Kind
    at: Place
    to: Place | None
    adds: bool
    """Whether pixels become foreground of the class, or cease to be it."""
    pixels: int
    """How many change."""
    box: list[Place]
    """[start, stop) of them."""
    cost: float
    """Sum over them of how far the map is from the threshold, each at least a tenth of the map's mean; those that the
    map has so already cost nothing.
    """
    runs: list[list[int]]
    """[row, start, stop, class position] or [plane, row, start, stop, class position]: half-open pieces of lines and
    what they become; the first 100 000. Give the pixels their former classes to undo the edit.
    """


class HandEdit(Change):
    """One edit of the mask of a stored prediction, the Betti numbers of every class counted before and after."""

    id: UUID
    number: int
    """In the order in which they are applied, from 1."""
    class_name: str
    before: dict[str, Betti]
    after: dict[str, Betti]
    created_at: datetime
    links: dict[str, Address]

    model_config = {**Schema.model_config, **example(EDIT)}


Written = Annotated[
    str,
    Field(pattern=r"^[0-9]{1,10},[0-9]{1,10}(,[0-9]{1,10})?$", examples=["10,26"]),
]
"""`row,column` or `plane,row,column`."""


class EditOptions(MaskOptions):
    """Which edit is made of a mask or map that is sent along. No option changes the shape of an answer."""

    kind: Kind
    """connect, cut, fill or remove, as for stored predictions."""
    at: Written
    to: Written | None = None


class StoredMap(Schema):
    """Stored images to edit, in place of bytes."""

    image: UUID
    mask: UUID | None = None
    """The mask as it is now, of the same shape; null: the pixels of the map above the threshold."""

    model_config = {**Schema.model_config, **example({"image": ID, "mask": None})}


class AnalysedEdit(Change):
    """One edit of a mask or map that was sent, and the Betti numbers of its foreground before and after."""

    shape: list[int]
    threshold: float
    label: int | None
    before: Betti
    after: Betti
    timings_ms: dict[str, float]

    model_config = {
        **Schema.model_config,
        **example(
            {key: EDIT[key] for key in ("kind", "at", "to", "adds", "pixels", "box", "cost", "runs")}
            | {
                "shape": [20, 60],
                "threshold": 0.5,
                "label": None,
                "before": {"beta0": 2, "beta1": 0},
                "after": {"beta0": 1, "beta1": 0},
                "timings_ms": {"decode": 1.2, "edit": 4.0},
            }
        ),
    }
