"""A folder of labelled images: reading, scaling, splitting, and drawing patches.

What step n sees is a function of the seed and of n alone. So a run that is resumed draws the same patches as one that
was never interrupted, and there is no data order to keep in a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import InvalidInput

DTYPES = ("uint8", "uint16", "int16", "float32")
"""The types that serving can tell apart."""
NEXT_TO_CONSTANT = 1e-6  # added to the deviation, so that a constant image becomes zeros


@dataclass(frozen=True)
class Item:
    """One image of a dataset folder, labelled unless `label_path` is None; arrays are read when asked for,
    memory-mapped.
    """

    id: str
    image_path: Path
    label_path: Path | None
    spacing_mm: tuple[float, ...] | None
    group: str
    split: str | None

    def image(self) -> np.ndarray:
        """(C, ...) of any real dtype."""
        return np.load(self.image_path, mmap_mode="r", allow_pickle=False)

    def label(self) -> np.ndarray:
        """(...) uint8 class indices; only of a labelled image."""
        assert self.label_path is not None, f"item {self.id} has no label"
        return np.load(self.label_path, mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says: classes, the value that means "not labelled", and the items."""

    classes: tuple[str, ...]
    ignore: int | None
    channels: int
    dimensions: int
    items: tuple[Item, ...]
    """Those with a label."""
    unlabelled: tuple[Item, ...] = ()
    """Those without; losses that need no reference learn from them too."""

    @property
    def outputs(self) -> int:
        """Channels of the network's answer: one sigmoid for two classes, one softmax channel per class for more."""
        return 1 if len(self.classes) == 2 else len(self.classes)


def read_dataset(folder: str | Path) -> Dataset:
    """The dataset in a folder, every image and label checked against it (headers always, label values once)."""
    folder = Path(folder)
    try:
        facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        every = [_read_item(folder, entry) for entry in facts["items"]]
        items, unlabelled = (
            tuple(item for item in every if (item.label_path is None) == without) for without in (False, True)
        )
        dataset = Dataset(
            tuple(facts["classes"]),
            facts.get("ignore"),
            facts.get("channels", 1),
            facts.get("dimensions", 2),
            items,
            unlabelled,
        )
    except FileNotFoundError as error:
        raise InvalidInput(
            f"There is no dataset.json in {folder}. Give the folder that holds it with --data."
        ) from error
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"{folder / 'dataset.json'} is not a dataset description: {error!r}.") from error
    if len(dataset.classes) < 2:
        raise InvalidInput(
            f"The dataset names {len(dataset.classes)} classes; at least 2 are needed, background first."
        )
    if not items:
        raise InvalidInput("The dataset has no labelled items; there is nothing to learn from.")
    for item in every:
        _check_item(item, dataset)
    return dataset


def _read_item(folder, entry):
    spacing = entry.get("spacing_mm")
    return Item(
        id=entry["id"],
        image_path=folder / entry["image"],
        label_path=None if entry["label"] is None else folder / entry["label"],
        spacing_mm=None if spacing is None else tuple(spacing),
        group=entry.get("group") or entry["id"],  # an image without a group is a group of its own
        split=entry.get("split"),
    )


def _check_item(item, dataset):
    try:
        image, label = item.image(), None if item.label_path is None else item.label()
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInput(f"Item {item.id} cannot be read: {error}.") from error
    if image.ndim != dataset.dimensions + 1 or image.shape[0] != dataset.channels:
        raise InvalidInput(
            f"Image of item {item.id} has shape {image.shape}; {dataset.channels} channels and {dataset.dimensions}"
            " image axes are expected."
        )
    if label is not None and label.shape != image.shape[1:]:
        raise InvalidInput(
            f"Item {item.id} has an image of {image.shape[1:]} and a label of {label.shape} pixels; they must be equal."
        )
    if image.dtype.kind not in "uif":
        raise InvalidInput(f"Image of item {item.id} has dtype {image.dtype}; a real number type is needed.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InvalidInput(
            f"Image of item {item.id} holds {int((~np.isfinite(image)).sum())} values that are not finite numbers."
            " Replace them."
        )
    stray = (
        set() if label is None else set(np.unique(label).tolist()) - set(range(len(dataset.classes))) - {dataset.ignore}
    )
    if stray:
        raise InvalidInput(
            f"Label of item {item.id} holds {sorted(stray)}; the classes are 0 to {len(dataset.classes) - 1}"
            + (f" and {dataset.ignore} means not labelled." if dataset.ignore is not None else ".")
        )


def split_items(
    items: Sequence[Item], *, folds: int | None = None, fold: int = 0, validation_fraction: float = 0.2, seed: int = 0
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """(training items, validation items); items of one group are never on both sides.

    Items with a split keep it, and so does the rest of their group. Groups without one are shuffled by the seed; then
    fold number `fold` of `folds` is for validation, or, without folds, `validation_fraction` of the groups (at least
    one, if there are two or more). When validation items are given and no folds are asked for, every other item is for
    training.
    """
    decided: dict[str, str] = {}
    for item in items:
        if item.split is not None and decided.setdefault(item.group, item.split) != item.split:
            raise InvalidInput(
                f"Group {item.group} has items for training and for validation; keep a group on one side."
            )
    free = sorted({item.group for item in items} - set(decided))
    order = [free[i] for i in np.random.default_rng([seed, len(free)]).permutation(len(free))]
    if folds is not None:
        if len(free) < folds and "val" not in decided.values():
            raise InvalidInput(
                f"{folds} folds need at least {folds} groups; the dataset has {len(free)}. Use fewer folds."
            )
        chosen = order[fold::folds]
    elif "val" in decided.values():
        chosen = []
    else:
        chosen = order[: min(max(1, round(validation_fraction * len(order))), len(order) - 1)]
    decided |= dict.fromkeys(free, "train") | dict.fromkeys(chosen, "val")
    return tuple(i for i in items if decided[i.group] == "train"), tuple(i for i in items if decided[i.group] == "val")


def unlabelled_for_training(items: Sequence[Item], val_items: Sequence[Item]) -> tuple[Item, ...]:
    """The unlabelled items that a run may learn from: not kept for validation or test, and of no group that is
    validated on.
    """
    validated = {item.group for item in val_items}
    return tuple(item for item in items if item.split in (None, "train") and item.group not in validated)


def fit_scaling(kind: str, items: Sequence[Item]) -> dict[str, Any]:
    """The scaling as the manifest states it: {"kind": "image"}, or {"kind": "dataset", "mean", "std", "dtype"} over
    the given items; dtype is None where they have several.
    """
    if kind == "image":
        return {"kind": "image"}
    count, total, squares, dtypes = 0, np.zeros(()), np.zeros(()), set()
    for item in items:
        dtypes.add(item.image().dtype.name)
        image = np.asarray(item.image(), dtype=np.float64).reshape(item.image().shape[0], -1)
        count, total, squares = count + image.shape[1], total + image.sum(1), squares + (image**2).sum(1)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    return {"kind": "dataset", "mean": mean.tolist(), "std": std.tolist(), "dtype": dtype if dtype in DTYPES else None}


def median_width(items: Sequence[Item], classes: Sequence[str]) -> float | None:
    """Median width in pixels of the labelled structures: over all skeleton pixels of all foreground classes, twice the
    distance to the background less one; None where nothing is labelled.
    """
    from topology.distance import distance_inside  # compiled kernels: loaded where they are asked for
    from topology.skeleton import skeletonize

    widths = []
    for item in items:
        label = np.asarray(item.label())
        for index in range(1, len(classes)):
            mask = label == index
            widths.append(2 * distance_inside(mask)[skeletonize(mask) > 0] - 1)
    found = np.concatenate(widths)
    return float(np.median(found)) if found.size else None


def scale(image: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """(C, ...) of any real dtype to float32 with mean 0 and deviation 1, by the image's own figures or by the
    dataset's.

    Sums are taken in float64 over the whole image, so that a tile is scaled as the image it was cut from.
    """
    image = np.asarray(image, dtype=np.float64)
    axes = tuple(range(1, image.ndim))
    if scaling["kind"] == "image":
        mean, std = image.mean(axes, keepdims=True), image.std(axes, keepdims=True)
    else:
        shape = (-1,) + (1,) * len(axes)
        mean, std = np.reshape(scaling["mean"], shape), np.reshape(scaling["std"], shape)
    return ((image - mean) / (std + NEXT_TO_CONSTANT)).astype(np.float32)


class PatchSampler:
    """Draws the batch of a step: every image once an epoch in a shuffled order, a uniform place in it, augmented.

    items       training items; scaled images are kept in memory, as float32
    patch       sides of a patch; no side may be larger than the smallest image's
    unlabelled  items without a label, of which each batch holds `without`, after the labelled ones; their labels are
                all `ignore`
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        patch: Sequence[int],
        batch: int,
        scaling: dict[str, Any],
        augment: bool,
        seed: int,
        unlabelled: Sequence[Item] = (),
        without: int = 0,
        ignore: int | None = None,
    ):
        self.patch, self.augment, self.seed = tuple(patch), augment, seed
        self.items = (*items, *(unlabelled if without else ()))
        for item in self.items:
            if any(side > size for side, size in zip(self.patch, item.image().shape[1:], strict=True)):
                raise InvalidInput(
                    f"Patch {_by(self.patch)} is larger than image {item.id}, {_by(item.image().shape[1:])} pixels. Use"
                    " a smaller patch."
                )
        self.images = [scale(item.image(), scaling) for item in self.items]
        self.labels = [_label_or(ignore, item) for item in self.items]
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
        )  # key 1 is that of `draw`

    def _patch(self, index, rng):
        image, label = self.images[index], self.labels[index]
        corner = [rng.integers(size - side + 1) for size, side in zip(label.shape, self.patch, strict=True)]
        window = tuple(slice(start, start + side) for start, side in zip(corner, self.patch, strict=True))
        image, label = image[(slice(None), *window)], label[window]
        return _augmented(image, label, self.items[index].spacing_mm, rng) if self.augment else (image, label)


def _label_or(ignore, item):
    """The label of an item; of one without, `ignore` at every pixel."""
    return (
        np.broadcast_to(np.uint8(ignore), item.image().shape[1:]) if item.label_path is None else np.array(item.label())
    )


def _augmented(image, label, spacing, rng):
    """A flip along each axis, a quarter turn of the last two where sides and pixel sizes are equal, and another
    exposure.
    """
    flips = [axis for axis in range(label.ndim) if rng.random() < 0.5]
    image, label = np.flip(image, [axis + 1 for axis in flips]), np.flip(label, flips)
    square = label.shape[-1] == label.shape[-2] and (spacing is None or spacing[-1] == spacing[-2])
    if square and rng.random() < 0.5:
        image, label = np.swapaxes(image, -1, -2), np.swapaxes(label, -1, -2)  # with the flips: all eight symmetries
    contrast, brightness, noise = rng.uniform(0.8, 1.25), rng.uniform(-0.2, 0.2), rng.uniform(0, 0.1)
    image = image * contrast + brightness + noise * rng.standard_normal(image.shape, dtype=np.float32)
    return image.astype(np.float32), label


def _by(sides):
    return " x ".join(str(side) for side in sides)
