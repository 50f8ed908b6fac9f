"""Changes patches at random while they are drawn, within stated bounds.

Each change says whether it keeps the topology of the label (KEEPS_TOPOLOGY). Flips and quarter turns permute pixels, so
they do. Changes of appearance leave the label alone. Rotation by any angle, scale and elastic deformation take the
nearest pixel of the label, which may cut a structure that is one or two pixels thin or join two that are as close.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from scipy import ndimage

from models.errors import InvalidInput

Patch = tuple[np.ndarray, np.ndarray]
"""image (C, ...) float32, scaled, and label (...) uint8."""

KEEPS_TOPOLOGY = {
    "flips": True,
    "turns": True,
    "rotation": False,
    "scale": False,
    "elastic": False,
    "contrast": True,
    "brightness": True,
    "gamma": True,
    "hue": True,
    "saturation": True,
    "blur": True,
    "low_resolution": True,
    "noise": True,
    "hidden_pieces": True,
}
"""Whether the label keeps its components and holes under each change."""

BOUNDS = {
    "rotation": (0, 180),
    "elastic": (0, 100),
    "brightness": (0, 10),
    "hue": (0, 0.5),
    "blur": (0, 10),
    "low_resolution": (1, 8),
    "noise": (0, 10),
    "hidden_pieces": (0, 100),
    "hidden_side": (3, 256),
    "chance": (0, 1),
}
RANGES = {"scale": (0.25, 4), "contrast": (0.1, 10), "gamma": (0.1, 10), "saturation": (0, 10)}
GRID = 32
"""Pixels between the points of the grid whose shifts an elastic deformation joins smoothly."""


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a patch, within which bounds.

    flips           along each axis, each with chance 1/2
    turns           quarter turns in the plane of the last two axes, where sides and pixel sizes are equal there
    rotation        0 to 180; largest angle in degrees in that plane, where pixel sizes are equal
    scale           (least, most) factor by which structures grow, drawn evenly in its logarithm
    elastic         0 to 100; deviation in pixels of the shifts of a grid of GRID pixels
    contrast        (least, most) factor of scaled values
    brightness      0 to 10; most that is added, in units of scaled values
    gamma           (least, most) exponent of values between the least and the greatest of the patch
    hue             0 to 0.5; most by which colours turn about grey, in turns; three channels only
    saturation      (least, most) factor of the distance from grey; three channels only
    blur            0 to 10; largest deviation of a Gaussian in pixels
    low_resolution  1 to 8; largest factor by which the patch is shrunk and enlarged again
    noise           0 to 10; largest deviation of Gaussian noise, in units of scaled values
    hidden_pieces   0 to 100; most pieces of structures that the image, not the label, loses
    hidden_side     3 to 256; side of such a piece in pixels
    chance          of each of gamma, hue with saturation, blur, low resolution, hidden pieces, and of rotation, scale
                    and elastic together
    Sources: flips to noise as in nnU-Net (Isensee et al. 2021), hue and saturation linear in RGB so that scaled values
    will do; hidden pieces: CoLeTra (Valverde et al. 2025), filled with the nearest background instead of a network's
    painting.
    """

    flips: bool = False
    turns: bool = False
    rotation: float = 0
    scale: tuple[float, float] = (1, 1)
    elastic: float = 0
    contrast: tuple[float, float] = (1, 1)
    brightness: float = 0
    gamma: tuple[float, float] = (1, 1)
    hue: float = 0
    saturation: tuple[float, float] = (1, 1)
    blur: float = 0
    low_resolution: float = 1
    noise: float = 0
    hidden_pieces: int = 0
    hidden_side: int = 15
    chance: float = 0.3

    @classmethod
    def read(cls, facts: bool | dict[str, Any]) -> Augmentation:
        """From True (the default preset), False (nothing), or {"preset": ..., <fields in place of the preset's>}."""
        if isinstance(facts, bool):
            return PRESETS["default" if facts else "none"]
        changes: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
        }
        preset = changes.pop("preset", None) or "default"
        if preset not in PRESETS:
            raise InvalidInput(f"augment.preset is {preset!r}; choose one of {', '.join(PRESETS)}.")
        known = {each.name for each in fields(cls)}
        if unknown := sorted(set(changes) - known):
            raise InvalidInput(f"augment has no {', '.join(unknown)}; it takes preset, {', '.join(sorted(known))}.")
        read = replace(PRESETS[preset], **_given(changes))
        read.check()
        return read

    def check(self) -> None:
        """Refuses what lies out of bounds, naming them (InvalidInput)."""
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise InvalidInput(f"augment.{name} is {getattr(self, name)}; give {least} to {most}.")
        for name, (lowest, highest) in RANGES.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise InvalidInput(
                    f"augment.{name} is {[low, high]}; give the smaller and the larger end of a range in {lowest} to"
                    f" {highest}."
                )

    @property
    def warps(self) -> bool:
        """Whether patches are taken through a grid that is not the image's, so that they may lack pixels."""
        return bool(self.rotation or self.elastic or self.scale != (1, 1))

    @property
    def may_change_topology(self) -> list[str]:
        """The changes that are on and may cut or join structures in the label."""
        return [name for name, keeps in KEEPS_TOPOLOGY.items() if not keeps and getattr(self, name) not in (0, (1, 1))]

    def places(self, sides: tuple[int, ...], spacing: Any, rng: np.random.Generator) -> np.ndarray | None:
        """(axes, *sides): where the pixels of a patch come from, relative to its corner; None: from themselves."""
        if not self.warps or rng.random() >= self.chance:
            return None
        middle = (np.array(sides) - 1).reshape(-1, *[1] * len(sides)) / 2
        places = np.indices(sides, dtype=np.float64) - middle
        if self.rotation and (spacing is None or spacing[-1] == spacing[-2]):
            angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation))
            places[-2], places[-1] = (
                np.cos(angle) * places[-2] - np.sin(angle) * places[-1],
                np.sin(angle) * places[-2] + np.cos(angle) * places[-1],
            )
        if self.scale != (1, 1):
            places /= np.exp(rng.uniform(*np.log(self.scale)))
        if self.elastic:
            places += self.elastic * _smooth_shifts(sides, rng)
        return places + middle

    def __call__(self, image: np.ndarray, label: np.ndarray, spacing: Any, rng: np.random.Generator) -> Patch:
        """A patch after everything but a warp.

        image    (C, ...) float32
        label    (...) uint8
        spacing  pixel sizes, one for each axis, or None for equal ones
        """
        if self.hidden_pieces and rng.random() < self.chance:
            image = hide_pieces(image, label, int(rng.integers(1, self.hidden_pieces + 1)), self.hidden_side, rng)
        image, label = self._moved(image, label, spacing, rng)
        if (self.hue or self.saturation != (1, 1)) and len(image) == 3 and rng.random() < self.chance:
            image = recolour(image, rng.uniform(-self.hue, self.hue), rng.uniform(*self.saturation))
        if self.gamma != (1, 1) and rng.random() < self.chance:
            image = _bent(image, np.exp(rng.uniform(*np.log(self.gamma))))
        return np.ascontiguousarray(self._exposed(image, rng), dtype=np.float32), label

    def _moved(self, image, label, spacing, rng):
        if self.flips:
            flips = [axis for axis in range(label.ndim) if rng.random() < 0.5]
            image, label = np.flip(image, [axis + 1 for axis in flips]), np.flip(label, flips)
        square = label.shape[-1] == label.shape[-2] and (spacing is None or spacing[-1] == spacing[-2])
        if self.turns and square and rng.random() < 0.5:
            image, label = (
                np.swapaxes(image, -1, -2),
                np.swapaxes(label, -1, -2),
            )  # with the flips: all eight symmetries
        return image, label

    def _exposed(self, image, rng):
        """Contrast, brightness, blur, low resolution and noise, in the order in which a camera has them."""
        noise = 0.0
        if self.contrast != (1, 1) or self.brightness or self.noise:
            contrast, brightness = rng.uniform(*self.contrast), rng.uniform(-self.brightness, self.brightness)
            noise = rng.uniform(0, self.noise)
            image = image * contrast + brightness
        if self.blur and rng.random() < self.chance:
            sigma = rng.uniform(0, self.blur)
            image = ndimage.gaussian_filter(image, [0, *[sigma] * (image.ndim - 1)], mode="nearest")
        if self.low_resolution > 1 and rng.random() < self.chance:
            image = _coarsened(image, rng.uniform(1, self.low_resolution))
        return image + noise * rng.standard_normal(image.shape, dtype=np.float32) if noise else image


def _given(changes: dict[str, Any]) -> dict[str, Any]:
    """Those that are not None: the others are as the preset has them."""
    return {name: value for name, value in changes.items() if value is not None}


def _smooth_shifts(sides, rng):
    """(axes, *sides) shifts of deviation about 1, drawn on a coarse grid and joined by cubic splines."""
    coarse = [side // GRID + 4 for side in sides]
    axes = [np.arange(side) / GRID + 1 for side in sides]
    places = np.meshgrid(*axes, indexing="ij")
    return np.stack([ndimage.map_coordinates(rng.standard_normal(coarse), places, order=3) for _ in sides])


def _bent(image, exponent):
    """Each channel to the power of an exponent between its least and greatest value."""
    axes = tuple(range(1, image.ndim))
    low, high = image.min(axes, keepdims=True), image.max(axes, keepdims=True)
    width = np.maximum(high - low, 1e-6)
    return ((image - low) / width) ** np.float32(exponent) * width + low


def _coarsened(image, factor):
    """The image as a camera with fewer pixels sees it, at its own number of pixels."""
    small = [max(1, round(side / factor)) for side in image.shape[1:]]
    down = [few / side for few, side in zip(small, image.shape[1:], strict=True)]
    up = [side / few for few, side in zip(small, image.shape[1:], strict=True)]
    few = ndimage.zoom(image, [1, *down], order=0, grid_mode=True, mode="nearest")
    return ndimage.zoom(few, [1, *up], order=1, grid_mode=True, mode="nearest")


def recolour(image: np.ndarray, turn: float, saturation: float) -> np.ndarray:
    """An RGB image whose colours turn about the grey axis and move from it or to it; their mean stays.

    image       (3, ...) of any scale that is the same for all channels
    turn        in turns: a third makes red green
    saturation  factor of the distance from grey; 0 is grey
    """
    angle = 2 * np.pi * turn
    along, across = (1 - np.cos(angle)) / 3, np.sin(angle) / np.sqrt(3)
    turned = np.array(
        [
            [np.cos(angle) + along, along - across, along + across],
            [along + across, np.cos(angle) + along, along - across],
            [along - across, along + across, np.cos(angle) + along],
        ]
    )
    grey = np.full((3, 3), 1 / 3)
    matrix = (grey + saturation * (turned - grey)).astype(np.float32)
    return np.tensordot(matrix, image, axes=1)


def hide_pieces(image: np.ndarray, label: np.ndarray, pieces: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """The image without some pieces of its structures: their pixels take the value of the nearest background.

    image   (C, ...) float32
    label   (...) class indices, 0 is background
    pieces  how many; each is a window around a random pixel of a structure, which fades towards its border
    side    of the windows in pixels
    """
    structure = np.flatnonzero(label)
    if not len(structure):
        return image
    image = image.copy()
    for place in rng.choice(structure, pieces):
        middle = np.unravel_index(place, label.shape)
        window = tuple(slice(max(0, at - side // 2), at + side // 2 + 1) for at in middle)
        around = tuple(slice(max(0, each.start - side), each.stop + side) for each in window)
        covered = ndimage.binary_dilation(label[around] > 0)  # a structure's rim is bright, too
        if covered.all():
            continue  # no background near by to take its place
        nearest = ndimage.distance_transform_edt(covered, return_distances=False, return_indices=True)
        background = image[(slice(None), *around)][(slice(None), *nearest)]
        inside = tuple(
            slice(small.start - large.start, small.stop - large.start)
            for small, large in zip(window, around, strict=True)
        )
        inside = tuple(
            slice(each.start, min(each.stop, size)) for each, size in zip(inside, covered.shape, strict=True)
        )
        distances = np.meshgrid(
            *[
                (np.arange(each.start, each.start + (part.stop - part.start)) - at) / (side / 2)
                for each, part, at in zip(window, inside, middle, strict=True)
            ],
            indexing="ij",
        )
        fade = np.clip(2 - 2 * np.max(np.abs(distances), axis=0), 0, 1).astype(np.float32)
        fade *= covered[inside]
        part = image[(slice(None), *window)]
        image[(slice(None), *window)] = part + fade * (background[(slice(None), *inside)] - part)
    return image


_DEFAULT = Augmentation(flips=True, turns=True, contrast=(0.8, 1.25), brightness=0.2, noise=0.1)
PRESETS = {
    "none": Augmentation(),
    "default": _DEFAULT,
    "colour": replace(_DEFAULT, gamma=(0.7, 1.5), hue=0.5, saturation=(0.5, 1.5), chance=0.5),
    "tubes": replace(_DEFAULT, hidden_pieces=5, chance=0.5),
    "strong": replace(
        _DEFAULT,
        rotation=30,
        scale=(0.7, 1.4),
        gamma=(0.7, 1.5),
        hue=0.1,
        saturation=(0.7, 1.4),
        blur=1.0,
        low_resolution=2,
    ),
}
"""Named sets: nothing; cheap and safe; colours of any stain or lighting; tubes that must go on where they fade; and
everything that nnU-Net does, for few images of thick structures.
"""
