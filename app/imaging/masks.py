"""Reads the mask of an item by its label map, on its image's grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.imaging.decode import decode, decode_labels
from app.imaging.grids import onto
from app.imaging.labels import LabelMap, to_index
from app.imaging.picture import Header, Limits, Picture, Source


class Decoder(Protocol):
    """Who decodes: this process, or `app.imaging.decoders.Decoders`."""

    def decode(self, source: Source) -> Picture: ...
    def decode_labels(self, source: Source, *, above: float | None = None, colours: bool = False) -> Picture: ...


@dataclass(frozen=True)
class Here:
    """Decodes in this process."""

    limits: Limits

    def decode(self, source: Source) -> Picture:
        return decode(source, self.limits)

    def decode_labels(self, source: Source, *, above: float | None = None, colours: bool = False) -> Picture:
        return decode_labels(source, self.limits, above=above, colours=colours)


def read_labels(decoder: Decoder, source: Source, label_map: LabelMap | None) -> Picture:
    """The numbers in a mask, read as its label map needs them: colours as numbers, or 0 and 1 by its threshold."""
    return decoder.decode_labels(source, above=label_map.above if label_map else None, colours=True)


def class_indexes(
    decoder: Decoder, source: Source, label_map: LabelMap, like: Picture | Header, *, resample: bool = True
) -> np.ndarray:
    """(...) uint8 class indexes of a mask, in the shape and on the grid of its image.

    resample  by the nearest voxels where the grids differ; a dataset was refused when nobody asked for that
    """
    labels = onto(read_labels(decoder, source, label_map), like, resample=resample)
    return to_index(labels.pixels[0], label_map, is_bilevel=labels.is_bilevel)[0]
