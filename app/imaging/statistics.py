"""What a labelled dataset holds, counted, and which of its labels look wrong.

Errors stop: a mask of another size than its image, dimensions or channels that change, a value that a strict label map
does not list. Everything else is a warning, because real datasets have islands and empty masks on purpose.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import BadDataset, Problem
from app.imaging.datasets import Pair
from app.imaging.grids import onto
from app.imaging.labels import IGNORE, MOST_OF_KINDS, LabelMap, bits, is_lossy, to_index, value_counts
from app.imaging.masks import Decoder, Here, read_labels
from app.imaging.picture import Limits, Picture
from app.imaging.spacing import contradiction, sized

TINY = 10
"""A component or hole of fewer pixels (voxels) than this is called tiny: usually a slip of the pen, and one Betti
number each.
"""


WARNINGS = {
    "tiny_islands": "Tiny islands",
    "tiny_holes": "Tiny holes",
    "empty_mask": "Empty mask",
    "full_mask": "Mask is all foreground",
    "constant_image": "Image is constant",
    "duplicate_image": "Image occurs twice",
    "stray_values": "Stray values",
    "exif_turned": "Turned by EXIF",
    "lossy_mask": "Lossy mask",
    "no_foreground": "No foreground",
    "rare_class": "Class in one image",
    "object_numbers": "Object numbers?",
    "mixed_depths": "Mixed depths",
    "channel_names": "Other channels than named",
    "ignored_files": "Files that were not read",
    "ignored_shapes": "Annotations that were not read",
    "other_spacing": "Other pixel size than stated",
}
"""Every warning about labels, and what it is called before its sentence."""


@dataclass(frozen=True)
class Item:
    """One pair, counted, or an image without a mask, whose statistics are empty.

    `statistics` and `warnings` are plain JSON; see `examine`.
    """

    name: str
    split: str | None
    group: str | None
    picture: dict[str, Any]
    statistics: dict[str, Any]
    warnings: list[dict[str, Any]]


@dataclass(frozen=True)
class Examination:
    """A whole dataset, counted.

    label_map   the one given, or the one inferred from all masks
    classes     names by class index, background first
    channels, dimensions   the same for every image
    items       one per pair, in order
    statistics  pairs, unlabelled (images without a mask), splits, shapes, dtypes, pixels per class, ignored,
                fg_fraction, betti per class (mean, min, max)
    warnings    {code, detail, item} each, those of single items included; item is None when it concerns the whole
    """

    label_map: LabelMap
    classes: list[str]
    channels: int
    dimensions: int
    items: list[Item]
    statistics: dict[str, Any]
    warnings: list[dict[str, Any]]


def examine(
    pairs: Iterable[Pair],
    limits: Limits,
    label_map: LabelMap | None = None,
    *,
    decoder: Decoder | None = None,
    resample: bool = False,
    channel_names: Sequence[str] = (),
    spacing_mm: Sequence[float] | None = None,
) -> Examination:
    """Decode every pair once, one at a time, and count what is in it.

    pairs      read twice when there is no label map, the first time masks only: the map is inferred from all of them
    resample   masks on another grid are brought to that of their image by the nearest voxels, instead of refused
    channel_names  as a description that came along names them
    spacing_mm  size of a pixel in every image, whatever its file says; None: as it says
    Per item: shape, dtype, spacing_mm; pixels and Betti numbers per class (8/4- or 26/6-connected, whole image),
    ignored pixels, fg_fraction of the labelled ones. Warnings: those of `WARNINGS`. Raises BadDataset, MaskMismatch and
    UnknownLabel, and what `decode`
    raises, each naming the pair.
    """
    pairs = list(pairs)
    if all(pair.read_mask is None for pair in pairs):
        raise BadDataset("The dataset holds no pairs. Send at least one image with its mask.")
    decoder = decoder or Here(limits)
    label_map = label_map or _inferred(pairs, decoder)
    first_with: dict[str, str] = {}
    unlisted: Counter[int] = Counter()
    items = [_examined(pair, decoder, label_map, first_with, unlisted, resample, spacing_mm) for pair in pairs]
    channels, dimensions = _uniform(items)
    whole = [*_stray(unlisted, label_map), *_of_all(items, label_map, channels, channel_names)]
    warnings = [{"code": code, "detail": detail, "item": None} for code, detail in whole]
    warnings += [warning for item in items for warning in item.warnings]
    return Examination(label_map, label_map.names, channels, dimensions, items, _totals(items, label_map), warnings)


def _inferred(pairs: Sequence[Pair], decoder: Decoder) -> LabelMap:
    counts: Counter[int] = Counter()
    for pair in pairs:
        if (mask := pair.mask) is None:
            continue
        with _named(pair):
            counts.update(value_counts(read_labels(decoder, mask, None).pixels[0]))
    return LabelMap.infer(counts)


def _examined(
    pair: Pair,
    decoder: Decoder,
    label_map: LabelMap,
    first_with: dict[str, str],
    unlisted: Counter[int],
    resample: bool,
    spacing_mm: Sequence[float] | None,
) -> Item:
    encoded, statistics, warnings = pair.image, {}, []
    with _named(pair):
        picture = decoder.decode(encoded)
        if (encoded_mask := pair.mask) is not None:
            labels = onto(read_labels(decoder, encoded_mask, label_map), picture, resample=resample)
            mask = bits(labels.pixels[0], label_map) if labels.is_bilevel else labels.pixels[0]
            index, names = to_index(mask, label_map)
            if label_map.others is None:
                listed, counts = label_map.index_of(), value_counts(mask)
                unlisted.update({value: count for value, count in counts.items() if value not in listed})
            statistics = _counted(index, names)
            warnings = [*_suspicious(index, statistics), *_odd_mask(picture, labels)]
        if sentence := contradiction(picture, spacing_mm):
            warnings.append(("other_spacing", sentence))
        picture = sized(picture, spacing_mm)
    if picture.pixels.min() == picture.pixels.max():
        warnings.append(
            (
                "constant_image",
                f"Every pixel of the image is {picture.pixels.flat[0]}. Check that it was saved as intended.",
            )
        )
    first = first_with.setdefault(hashlib.sha256(encoded).hexdigest(), pair.name)
    if first != pair.name:
        warnings.append(
            ("duplicate_image", f"The image is byte for byte that of {first}. Keep both in one split, or drop one.")
        )
    facts = {
        "shape": list(picture.shape),
        "channels": picture.channels,
        "dtype": picture.pixels.dtype.name,
        "spacing_mm": picture.spacing_mm and list(picture.spacing_mm),
    }
    return Item(
        pair.name,
        pair.split,
        pair.group,
        facts,
        statistics,
        [{"code": code, "detail": detail, "item": pair.name} for code, detail in warnings],
    )


def _counted(index: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Pixels, Betti numbers, tiny islands and tiny holes per class."""
    from topology.components import betti_numbers

    counts = np.bincount(index.reshape(-1), minlength=256)
    labelled = index.size - int(counts[IGNORE])
    classes = dict(enumerate(names))
    regions = {name: index == number for number, name in classes.items() if number}
    return {
        "pixels": {name: int(counts[number]) for number, name in classes.items()},
        "ignored": int(counts[IGNORE]),
        "fg_fraction": float(counts[1:IGNORE].sum() / labelled) if labelled else 0.0,
        "betti": {name: list(betti_numbers(region)) for name, region in regions.items()},
        "tiny_islands": {name: tiny_islands(region) for name, region in regions.items()},
        "tiny_holes": {name: tiny_holes(region) for name, region in regions.items()},
    }


def tiny_islands(region: np.ndarray) -> int:
    """Components of fewer than `TINY` pixels."""
    from topology.components import label_components

    return _tiny(*label_components(region))


def tiny_holes(region: np.ndarray) -> int:
    """Enclosed background components (holes in the plane, cavities in space) of fewer than `TINY` pixels."""
    from topology.components import label_holes

    return _tiny(*label_holes(region))


def _tiny(labels: np.ndarray, count: int) -> int:
    return int((np.bincount(labels.reshape(-1), minlength=count + 1)[1:] < TINY).sum())


def _suspicious(index: np.ndarray, statistics: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    if statistics["fg_fraction"] == 0:
        found.append(
            (
                "empty_mask",
                "The mask labels no foreground. Check that it belongs to this image and that the label map is right.",
            )
        )
    elif statistics["fg_fraction"] == 1:
        found.append(
            ("full_mask", "The mask labels every pixel as foreground. Check the label map: it may be inverted.")
        )
    for code, what in (("tiny_islands", "components"), ("tiny_holes", "enclosed holes")):
        for name, count in statistics[code].items():
            if count:
                found.append(
                    (
                        code,
                        (
                            f"{count} {what} of {name} have fewer than {TINY} pixels; each counts as one in the Betti"
                            " numbers. Remove them if they are slips."
                        ),
                    )
                )
    return found


def _odd_mask(picture: Picture, labels: Picture) -> list[tuple[str, str]]:
    """What is odd about how a mask was stored."""
    found = []
    if picture.orientation != labels.orientation:
        turned, other = ("image", "mask") if picture.orientation != 1 else ("mask", "image")
        found.append(
            (
                "exif_turned",
                (
                    f"EXIF orientation {max(picture.orientation, labels.orientation)} turns the {turned} and not the"
                    f" {other}. Where the mask was drawn on the image as it is stored, not as it is shown, its labels"
                    f" lie at the wrong place: save the {turned} without EXIF orientation."
                ),
            )
        )
    if labels.format == "jpeg":
        found.append(
            (
                "lossy_mask",
                (
                    "The mask is a JPEG, whose compression changes labels near every outline. Send it as PNG, or"
                    " `mask_threshold` to count what is above a threshold as foreground."
                ),
            )
        )
    return found


def _stray(unlisted: Counter[int], label_map: LabelMap) -> list[tuple[str, str]]:
    """A map that is not strict counts unlisted values as background.

    One such value is that background; more are suspicious.
    """
    stray = unlisted.most_common()[1:]
    if label_map.strict or not stray:
        return []
    shown = ", ".join(f"{value} in {count} pixels" for value, count in stray[:8]) + (
        f" and {len(stray) - 8} more" if len(stray) > 8 else ""
    )
    lossy = " They look lossy, as compression or resampling leave masks: `mask_threshold` counts what is above it."
    detail = (
        f"Beside {unlisted.most_common(1)[0][0]}, the masks hold {len(stray)} values that the label map does not list"
        f" ({shown}); they count as background.{lossy if len(stray) > 1 or is_lossy(unlisted) else ''}"
    )
    return [("stray_values", detail)]


def _of_all(
    every: list[Item], label_map: LabelMap, channels: int, channel_names: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """What is odd about the dataset as a whole."""
    items = [item for item in every if item.statistics]
    within = {name: [item.name for item in items if item.statistics["pixels"][name]] for name in label_map.names[1:]}
    if not any(within.values()):
        yield (
            "no_foreground",
            "No mask labels any foreground, so nothing can be learnt from them. Check the label map.",
        )
    for name, where in within.items():
        if len(where) == 1 and len(items) > 2:
            yield (
                "rare_class",
                f"Only {where[0]} of {len(items)} images holds {name}: it is either trained on or validated on.",
            )
    if len(within) > MOST_OF_KINDS and all(item.statistics["betti"][name][0] <= 1 for item in items for name in within):
        yield (
            "object_numbers",
            (
                f"{len(within)} classes, none with two components in one image: are these numbers of objects? Then post"
                ' the label map {"background": 0, "object": "others"}, which makes one class of all but 0.'
            ),
        )
    dtypes = Counter(item.picture["dtype"] for item in every)
    if len(dtypes) > 1:
        listed = " and ".join(f"{count} of {dtype}" for dtype, count in dtypes.most_common())
        yield (
            "mixed_depths",
            f"The images are {listed}. The same scene has other values in each: save all with one depth.",
        )
    if channel_names and len(channel_names) != channels:
        yield (
            "channel_names",
            (
                f"dataset.json names {len(channel_names)} channels ({', '.join(channel_names[:8])}) and the images have"
                f" {channels}."
            ),
        )


def _uniform(items: list[Item]) -> tuple[int, int]:
    """Channels and dimensions, the same for all."""
    kinds: dict[tuple[int, int], list[str]] = defaultdict(list)
    for item in items:
        kinds[item.picture["channels"], len(item.picture["shape"])].append(item.name)
    if len(kinds) > 1:
        listed = "; ".join(
            f"{len(names)} images are {dimensions}D with {channels} channels, such as {names[0]}"
            for (channels, dimensions), names in kinds.items()
        )
        raise BadDataset(f"The images of a dataset must be alike: {listed}. Convert them, or make two datasets.")
    return next(iter(kinds))


def _totals(every: list[Item], label_map: LabelMap) -> dict[str, Any]:
    items = [item for item in every if item.statistics]
    pixels = {name: sum(item.statistics["pixels"][name] for item in items) for name in label_map.names}
    foreground = sum(pixels[name] for name, _ in label_map.classes)
    betti = {name: np.array([item.statistics["betti"][name] for item in items]) for name, _ in label_map.classes}
    return {
        "pairs": len(items),
        "unlabelled": len(every) - len(items),
        "splits": dict(Counter(item.split or "undecided" for item in items)),
        "shapes": dict(Counter(_sides(item.picture["shape"]) for item in every)),
        "dtypes": dict(Counter(item.picture["dtype"] for item in every)),
        "pixels": pixels,
        "ignored": sum(item.statistics["ignored"] for item in items),
        "fg_fraction": foreground / max(1, sum(pixels.values())),
        "betti": {
            name: {
                "mean": numbers.mean(axis=0).tolist(),
                "min": numbers.min(axis=0).tolist(),
                "max": numbers.max(axis=0).tolist(),
            }
            for name, numbers in betti.items()
        },
    }


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@contextmanager
def _named(pair: Pair) -> Iterator[None]:
    """Say which pair a problem belongs to, once, where it is known."""
    try:
        yield
    except Problem as problem:
        raise type(problem)(f"{pair.name}: {problem.detail}", errors=problem.errors) from problem
