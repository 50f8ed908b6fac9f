"""A folder of labelled images: reading, checking, splitting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.errors import InvalidInput

SHIFTED = "shifted"
"""The split of items of another set."""
SAME_SIZE = 0.1
"""Pixels whose sizes differ by at most this part are alike; serving says the same."""


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
    ignore: int | None = None
    """The value in its label that means "not labelled"."""

    def image(self) -> np.ndarray:
        """(C, ...) of any real dtype."""
        return np.load(self.image_path, mmap_mode="r", allow_pickle=False)

    def label(self) -> np.ndarray:
        """(...) uint8 class indices; only of a labelled image."""
        assert self.label_path is not None, f"item {self.id} has no label"
        return np.load(self.label_path, mmap_mode="r", allow_pickle=False)

    def foreground_places(self) -> np.ndarray:
        """(n,) int64: flat places of the pixels of any foreground class."""
        label = np.asarray(self.label())
        places = np.flatnonzero(label)
        return places if self.ignore is None else places[label.ravel()[places] != self.ignore]


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
    shifted: tuple[Item, ...] = ()
    """Labelled ones of another set, on which the end of a run is measured and nothing else."""
    orientation: str | None = None
    """Where columns, rows and planes of every volume run ("RAS"), if known."""

    @property
    def outputs(self) -> int:
        """Channels of the network's answer: one sigmoid for two classes, one softmax channel per class for more."""
        return 1 if len(self.classes) == 2 else len(self.classes)


def read_dataset(folder: str | Path) -> Dataset:
    """The dataset in a folder, every image and label checked against it (headers always, label values once)."""
    folder = Path(folder)
    try:
        facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        every = [_read_item(folder, entry, facts.get("ignore")) for entry in facts["items"]]
        shifted = tuple(item for item in every if item.split == SHIFTED)
        items, unlabelled = (
            tuple(item for item in every if (item.label_path is None) == without and item.split != SHIFTED)
            for without in (False, True)
        )
        dataset = Dataset(
            tuple(facts["classes"]),
            facts.get("ignore"),
            facts.get("channels", 1),
            facts.get("dimensions", 2),
            items,
            unlabelled,
            shifted,
            facts.get("orientation"),
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


def _read_item(folder, entry, ignore):
    spacing = entry.get("spacing_mm")
    return Item(
        id=entry["id"],
        image_path=folder / entry["image"],
        label_path=None if entry["label"] is None else folder / entry["label"],
        spacing_mm=None if spacing is None else tuple(spacing),
        group=entry.get("group") or entry["id"],  # an image without a group is a group of its own
        split=entry.get("split"),
        ignore=ignore,
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


def common_spacing(items: Sequence[Item]) -> list[float] | None:
    """Median size of the pixels along each axis; None where one is unknown or differs from it by more than
    `SAME_SIZE`.
    """
    known = [item.spacing_mm for item in items if item.spacing_mm is not None]
    if not known or len(known) < len(items):
        return None
    sizes = np.array(known, np.float64)
    median = np.median(sizes, axis=0)
    return median.tolist() if np.abs(np.log(sizes / median)).max() <= np.log1p(SAME_SIZE) else None


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


def classes_in(items: Sequence[Item], dataset: Dataset) -> list[int]:
    """How many of the items hold each class, background first."""
    held = np.zeros(len(dataset.classes), int)
    for item in items:
        present = np.unique(np.asarray(item.label()))
        held[present[present < len(held)]] += 1
    return held.tolist()
