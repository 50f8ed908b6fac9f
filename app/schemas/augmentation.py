"""What a training may do to its patches, with bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from app.schemas.base import PART, Flag, Real, Schema, Whole


def _is_a_range(ends: list[float]) -> list[float]:
    if ends[0] > ends[1]:
        raise ValueError(f"the range begins at {ends[0]} and ends at {ends[1]}; give the smaller end first")
    return ends


Factor = Annotated[Real, Field(ge=0.1, le=10)]
Zoom = Annotated[Real, Field(ge=0.25, le=4)]
Distance = Annotated[Real, Field(ge=0, le=10)]
TWO = Field(min_length=2, max_length=2)
Factors = Annotated[list[Factor], TWO, AfterValidator(_is_a_range)]
Zooms = Annotated[list[Zoom], TWO, AfterValidator(_is_a_range)]
Distances = Annotated[list[Distance], TWO, AfterValidator(_is_a_range)]


class Augmentation(Schema):
    """Random changes of the patches: a preset, and what is to be otherwise; null: as the preset has it.

    `rotation`, `scale` and `elastic` take the nearest pixel of the label and may cut or join structures a pixel or two
    thin. All others keep the topology of the label.
    """

    model_config = PART

    preset: Literal["none", "default", "colour", "tubes", "strong"] = "default"
    """`default`: flips, turns, contrast, brightness, noise; `colour`: with gamma, hue and saturation; `tubes`: with
    hidden pieces; `strong`: everything but these, for few images of thick structures."""
    flips: Flag | None = None
    """Along each axis, each with chance 1/2."""
    turns: Flag | None = None
    """Quarter turns in the plane of the last two axes, where sides and pixel sizes are equal there."""
    rotation: Annotated[Real, Field(ge=0, le=180)] | None = None
    """Largest angle in degrees in that plane. May change the topology of the label."""
    scale: Zooms | None = None
    """Least and greatest factor by which structures grow. May change the topology of the label."""
    elastic: Annotated[Real, Field(ge=0, le=100)] | None = None
    """Deviation in pixels of the shifts of a grid of 32 pixels. May change the topology of the label."""
    contrast: Factors | None = None
    """Least and greatest factor of scaled values."""
    brightness: Annotated[Real, Field(ge=0, le=10)] | None = None
    """Most that is added or taken, in units of scaled values."""
    gamma: Factors | None = None
    """Least and greatest exponent of values between the least and the greatest of the patch."""
    hue: Annotated[Real, Field(ge=0, le=0.5)] | None = None
    """Most by which colours turn about grey, in turns: 0.5 is any colour. Images of three channels only."""
    saturation: Distances | None = None
    """Least and greatest factor of the distance from grey. Images of three channels only."""
    blur: Annotated[Real, Field(ge=0, le=10)] | None = None
    """Largest deviation of a Gaussian in pixels."""
    low_resolution: Annotated[Real, Field(ge=1, le=8)] | None = None
    """Largest factor by which the patch is shrunk and enlarged again."""
    noise: Annotated[Real, Field(ge=0, le=10)] | None = None
    """Largest deviation of Gaussian noise, in units of scaled values."""
    hidden_pieces: Annotated[Whole, Field(ge=0, le=100)] | None = None
    """Most pieces of structures that the image, not the label, loses (CoLeTra): the network learns that tubes go on."""
    hidden_side: Annotated[Whole, Field(ge=3, le=256)] | None = None
    """Side of such a piece in pixels."""
    chance: Annotated[Real, Field(ge=0, le=1)] | None = None
    """Of each of gamma, hue with saturation, blur, low resolution, hidden pieces, and rotation, scale and elastic
    together."""
