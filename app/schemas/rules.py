"""Rules between classes, and what became of them in an image."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.schemas.base import Label, Schema, Whole

Contact = Literal["sides", "corners"]
Border = Literal["unknown", "background"]
Foreground = Annotated[Whole, Field(ge=1, le=255)] | Label
"""A foreground class: its index, or its name in the dataset's label map."""
AnyClass = Annotated[Whole, Field(ge=0, le=255)] | Label
"""A class or the background: its index, or its name."""


class Pair(Schema):
    """A class and the classes that a rule sets beside it."""

    subject: Foreground
    """A class by name or index; 1 is the first after the background."""
    others: Annotated[list[AnyClass], Field(min_length=1, max_length=255)]
    """Classes by name or index, taken together; 0 is the background."""

    @property
    def named(self) -> list[int | str]:
        """The classes that it names."""
        return [self.subject, *self.others]

    @model_validator(mode="after")
    def _others_are_others(self) -> Pair:
        if self.subject in self.others:
            raise ValueError(f"The class {self.subject} is among its own others. Leave it out of them.")
        return self


class Rule(Pair):
    """What a class may lie beside: `{"rule": "inside", "subject": "axon", "others": ["myelin"]}` keeps axons in their
    myelin.
    """

    rule: Literal["inside", "must_touch", "must_not_touch"]
    """`inside`: the subject touches nothing but its others; `must_touch`: each of its components touches one;
    `must_not_touch`: none of its pixels does."""
    contact: Contact = "sides"
    """What neighbours share: `sides`, so that a wall may be diagonal; `corners`, an edge or a side too."""
    border: Border = "unknown"
    """What lies outside the image: `unknown`: nothing that breaks a rule; `background`: another class."""


class Place(Schema):
    """Where a rule is broken."""

    box: list[list[int]]
    """First pixel and one past the last, along each axis."""
    pixels: int


class RuleResult(Schema):
    """How often an image breaks a rule, and where."""

    rule: str
    others: list[int]
    count: int
    """Places where the prediction breaks it."""
    pixels: int
    """Pixels of the subject there."""
    places: list[Place]
    """The largest, at most twenty."""
    reference_count: int
    """Places where the reference breaks it, which it then does not suit."""
