"""Brings an image to the orientation and pixel size of training, and answers back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from app.errors import WrongInput
from app.imaging import Picture
from app.imaging.grids import onto, orientation_of, turned_to
from app.imaging.spacing import in_mm
from app.serving.contract import Manifest
from app.serving.pipeline import Segmentation, classified

OtherSpacing = Literal["resample", "refuse", "keep"]
"""What is done with an image whose pixels are of another size than in training."""
SAME_SIZE = 0.1
"""Pixels that are larger or smaller by at most this part are of the same size: images of one scanner differ so."""
MOST_PIXELS = 2**26
"""An image is not resampled to more than these, or than it has: 256 MiB of float32 for each class."""


@dataclass(frozen=True)
class Matched:
    """An image as the network shall see it.

    picture   turned and resampled
    turned    the grid between turning and resampling, without pixels
    original  the image as it came, without pixels
    done      "orientation" and "spacing", where something was done
    """

    picture: Picture
    turned: Picture
    original: Picture
    done: tuple[str, ...]

    @property
    def resampled(self) -> bool:
        """Whether the answer needs its probability: labels cannot be resampled well."""
        return "spacing" in self.done

    def back(self, answer: Segmentation) -> Segmentation:
        """The answer on the grid of the image as it came, and what was done as its `conversion`."""
        if not self.done:
            return answer
        labels, probability = answer.labels, answer.probability
        if self.resampled:
            assert probability is not None
            probability = _resampled(probability, self.turned.shape)
            labels = classified(probability, answer.threshold).astype(np.uint8)
        if "orientation" in self.done:
            labels = self._placed(labels[None])[0]
            probability = None if probability is None else self._placed(probability)
        conversion = ", ".join(filter(None, (*self.done, answer.conversion)))
        return replace(answer, labels=labels, probability=probability, conversion=conversion)

    def _placed(self, pixels: np.ndarray) -> np.ndarray:
        return onto(replace(self.turned, pixels=pixels), self.original).pixels


def matched(picture: Picture, manifest: Manifest, other_spacing: OtherSpacing = "resample") -> Matched:
    """The image in the orientation and with the pixel size that the manifest states, where both are known.

    Volumes are turned by their affine, which loses nothing. Pixels whose size differs by more than `SAME_SIZE` are
    resampled linearly, or refused with WrongInput. What the manifest or the image does not state is left as it is.
    """
    turned, done = picture, []
    place, wanted = picture.place, manifest.orientation
    if wanted is not None and place is not None and picture.is_volume and orientation_of(place) != wanted:
        turned = turned_to(picture, wanted)
        done.append("orientation")
    fitted, spacing = turned, turned.spacing_mm
    if other_spacing != "keep" and manifest.spacing_mm and spacing and len(spacing) == len(manifest.spacing_mm):
        factors = [here / there for here, there in zip(spacing, manifest.spacing_mm, strict=True)]
        if max(abs(math.log(factor)) for factor in factors) > math.log1p(SAME_SIZE):
            fitted = _brought(turned, factors, manifest.spacing_mm, other_spacing)
            done.append("spacing")
    return Matched(fitted, turned.without_pixels(), picture.without_pixels(), tuple(done))


def _brought(picture: Picture, factors: Sequence[float], trained: Sequence[float], policy: OtherSpacing) -> Picture:
    assert picture.spacing_mm is not None
    sides = [max(1, round(side * factor)) for side, factor in zip(picture.shape, factors, strict=True)]
    sizes = f"The image's pixels are {in_mm(picture.spacing_mm)}; this model was trained on {in_mm(trained)}."
    advice = "Resample the image, or send `other_spacing=keep` to predict it as it is."
    if policy == "refuse":
        raise WrongInput(f"{sizes} {advice}")
    if math.prod(sides) > max(MOST_PIXELS, math.prod(picture.shape)):
        raise WrongInput(f"{sizes} Brought to that it would have {math.prod(sides)} pixels. {advice}")
    return replace(
        picture, pixels=_resampled(picture.pixels, sides), spacing_mm=tuple(trained), affine=None, forms=None
    )


def _resampled(pixels: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """(C, ...) to other sides over the same extent, linearly, in the same dtype; integers are rounded."""
    from scipy.ndimage import zoom

    factors = [wanted / side for wanted, side in zip(sides, pixels.shape[1:], strict=True)]
    result = np.empty((len(pixels), *sides), pixels.dtype)
    for channel, made in zip(pixels, result, strict=True):
        zoom(channel, factors, output=made, order=1, mode="nearest", grid_mode=True)
    return result
