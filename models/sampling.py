"""Draws the patches of a training step.

What step n sees is a function of the seed and of n alone. So a run that is resumed draws the same patches as one that
was never interrupted, and there is no data order to keep in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from models.augmentation import Augmentation
from models.data import Item
from models.errors import InvalidInput
from models.scaling import scale_of

KEPT_PLACES = 10_000
"""Most places of a class that are remembered of an image; a patch is drawn around one of them."""


@dataclass(frozen=True)
class Oversampling:
    """How often patches are drawn around structures instead of anywhere.

    fraction  in [0, 1]: chance that a labelled patch is drawn around a place of a random class of its image
    places    "pixels": every pixel of the class alike, so that large structures are seen more often; "skeleton": pixels
              of its skeleton, so that a thin structure counts as much as a thick one of its length
    """

    fraction: float = 0.0
    places: str = "pixels"


class PatchSampler:
    """Draws the batch of a step: every image once an epoch in a shuffled order, a place in it, augmented.

    items       training items; images and labels stay on the disk, memory-mapped, and a patch is scaled when it is cut,
                so that memory does not grow with the set
    patch       sides of a patch; what an image lacks is filled up around it, its border pixels repeated, and labelled
                `ignore`
    unlabelled  items without a label, of which each batch holds `without`, after the labelled ones; their labels are
                all `ignore`
    augment     what happens to patches (models.augmentation); True and False: the default preset, and nothing
    ignore      the value of labels that means "not labelled"; None only where nothing is filled up and all are labelled
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        patch: Sequence[int],
        batch: int,
        scaling: dict[str, Any],
        augment: bool | Augmentation,
        seed: int,
        unlabelled: Sequence[Item] = (),
        without: int = 0,
        ignore: int | None = None,
        oversampling: Oversampling | None = None,
    ):
        self.patch, self.seed, self.ignore = tuple(patch), seed, ignore
        self.augmentation = Augmentation.read(augment) if isinstance(augment, bool) else augment
        self.items = (*items, *(unlabelled if without else ()))
        if ignore is None and (small := smaller_than(self.patch, self.items)):
            raise InvalidInput(
                f"Patch {_by(self.patch)} is larger than image {small[0].id}, {_by(small[0].image().shape[1:])} pixels,"
                " and there is no value for pixels that are not labelled."
            )
        if ignore is None and self.augmentation.warps:
            raise InvalidInput(
                "Warped patches reach beyond the image, and no value means that a pixel is not labelled."
            )
        self.images = [item.image() for item in self.items]
        self.scales = [scale_of(image, scaling) for image in self.images]
        self.labels = [_label_or(ignore, item) for item in self.items]
        self.oversampling = oversampling or Oversampling()
        self.places = [
            _places(item, self.oversampling.places, np.random.default_rng([seed, number, 4]))
            if self.oversampling.fraction and number < len(items)
            else []
            for number, item in enumerate(self.items)
        ]
        self.pools = [
            (0, len(items), batch - without),
            (len(items), len(unlabelled), without),
        ]  # start, items, how many a batch

    def epoch(self, step: int) -> int:
        """Times that all labelled images have been drawn before this step (steps are numbered from 1)."""
        _, size, count = self.pools[0]
        return (step - 1) * count // size

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """images (batch, C, *patch) float32, labels (batch, *patch) uint8, and pixel sizes (batch, axes) mm or None, of
        one step.
        """
        rng = np.random.default_rng([self.seed, step, 1])
        chosen = [
            self._item(draw, pool)
            for pool, (_, _, count) in enumerate(self.pools)
            for draw in range((step - 1) * count, step * count)
        ]
        images, labels = zip(*(self._patch(index, rng) for index in chosen), strict=True)
        spacing = [self.items[index].spacing_mm for index in chosen]
        return np.stack(images), np.stack(labels), None if None in spacing else np.array(spacing)

    def _item(self, draw, pool=0):
        start, size, _ = self.pools[pool]
        epoch, place = divmod(draw, size)
        return (
            start + np.random.default_rng([self.seed, epoch, 2 * pool]).permutation(size)[place]
        )  # key 1 is that of `draw`, 4 that of the places

    def _patch(self, index, rng):
        image, label, scaled = self.images[index], self.labels[index], self.scales[index]
        places = self.places[index]
        if places and rng.random() < self.oversampling.fraction:
            of_class = places[rng.integers(len(places))]
            wanted = np.unravel_index(of_class[rng.integers(len(of_class))], label.shape)
            corner = [_around(*each) for each in zip(wanted, label.shape, self.patch, strict=True)]
        else:
            corner = [_anywhere(*each, rng) for each in zip(label.shape, self.patch, strict=True)]
        spacing = self.items[index].spacing_mm
        if (places := self.augmentation.places(self.patch, spacing, rng)) is None:
            image, label = self._cut(image, label, corner, scaled)
        else:
            image, label = self._warped(image, label, places + np.reshape(corner, (-1, *[1] * label.ndim)), scaled)
        return self.augmentation(image, label, spacing, rng)

    def _warped(self, image, label, places, scaled):
        """What lies at some places (axes, *patch) of an image; beyond its border nothing is labelled."""
        window, first = _around_all(places, label.shape)
        part = scaled(image[(slice(None), *window)])
        grey = [ndimage.map_coordinates(channel, places - first, order=1, mode="nearest") for channel in part]
        nearest = np.rint(places).astype(np.intp)
        size = np.reshape(label.shape, (-1, *[1] * label.ndim))
        outside = ((nearest < 0) | (nearest >= size)).any(0)
        moved = label[tuple(np.clip(nearest, 0, size - 1))]
        return np.stack(grey), np.where(outside, np.uint8(self.ignore), moved)

    def _cut(self, image, label, corner, scaled):
        """The window of the patch at a corner, which may lie outside of the image."""
        bounds = list(zip(corner, self.patch, label.shape, strict=True))
        window = tuple(slice(max(start, 0), min(start + side, size)) for start, side, size in bounds)
        image, label = scaled(image[(slice(None), *window)]), np.array(label[window])
        missing = [(max(-start, 0), max(start + side - size, 0)) for start, side, size in bounds]
        if any(map(any, missing)):
            image = np.pad(image, [(0, 0), *missing], mode="edge")
            label = np.pad(label, missing, constant_values=self.ignore)
        return image, label


def smaller_than(patch: Sequence[int], items: Sequence[Item]) -> list[Item]:
    """The items with a side that is shorter than that of the patch."""
    return [
        item for item in items if any(side > size for side, size in zip(patch, item.image().shape[1:], strict=True))
    ]


def _around_all(places, shape):
    """The window of an image that linear interpolation at places (axes, ...) reads, and its first pixel, to be taken
    from the places.
    """
    axes = tuple(range(1, places.ndim))
    least, most = np.floor(places.min(axes)).astype(int), np.floor(places.max(axes)).astype(int) + 2
    window = []
    for start, stop, size in zip(least, most, shape, strict=True):
        first = min(max(start, 0), size - 1)
        window.append(slice(first, max(min(stop, size), first + 1)))
    return tuple(window), np.reshape([each.start for each in window], (-1, *[1] * len(shape)))


def _anywhere(size, side, rng):
    """A corner: of a patch inside of the image, or of one that holds all of it."""
    return rng.integers(size - side + 1) if side <= size else -rng.integers(side - size + 1)


def _around(wanted, size, side):
    """The corner of a patch with a pixel as near to its middle as the border of the image allows."""
    least, most = min(0, size - side), max(0, size - side)
    return int(np.clip(wanted - side // 2, least, most))


def _places(item, kind, rng):
    """For each class of an item, flat places (n,) of its pixels, or of those of its skeleton."""
    from topology.skeleton import skeletonize  # compiled kernels: loaded where they are asked for

    label, found = np.asarray(item.label()), []
    for value in np.unique(label):
        if value in (0, item.ignore):
            continue
        mask = label == value
        places = np.flatnonzero(skeletonize(mask) if kind == "skeleton" else mask)
        found.append(places if len(places) <= KEPT_PLACES else np.sort(rng.choice(places, KEPT_PLACES, replace=False)))
    return found


def _label_or(ignore, item):
    """The label of an item; of one without, `ignore` at every pixel."""
    return np.broadcast_to(np.uint8(ignore), item.image().shape[1:]) if item.label_path is None else item.label()


def _by(sides):
    return " x ".join(str(side) for side in sides)
