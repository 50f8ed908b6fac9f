"""Proposes a training from what was counted in a dataset version, and estimates its memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from statistics import median
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.schemas.base import by
from app.schemas.plans import Plan, PlannedMemory, Reason
from app.settings import Settings
from app.store import datasets
from app.store.tables import DatasetItem, DatasetVersion, Image

MiB = 2**20
USUAL_MEMORY = 8192 * MiB
"""What a plan counts with where nobody says how much there is."""
LARGEST_PATCH = {2: 256, 3: 96}
DEEPEST = {2: 5, 3: 4}
"""Most levels."""
LEAST_DEEP = 4
"""Pixels along the shortest side of the patch that the deepest level keeps."""
FIRST_WIDTH = {2: 32, 3: 16}
WIDEST = 320
BATCH = {2: 8, 3: 2}
PASSES = 60
"""How often each pixel of the training set is seen, for the number of steps."""
STEPS = (1000, 20_000)
RARE = 0.05
"""Share of the foreground below which patches are drawn around it."""
LIBRARIES = 540 * MiB
"""Resident memory of a training that has no network yet, with the losses' compiled code."""
PER_FEATURE = 10
"""Values of 4 bytes kept for each feature of each pixel: measured for U-Nets of two to four levels, forth and back."""


@dataclass
class Draft:
    """A plan in the making: sides of the patch, widths of the levels, images a batch."""

    patch: list[int]
    channels: list[int]
    batch: int
    reasons: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def because(self, name: str, value: Any, reason: str) -> None:
        """Set the reason of a field."""
        self.reasons[name] = (value, reason)

    @property
    def multiple(self) -> int:
        """What the sides of the patch are multiples of."""
        return int(2 ** (len(self.channels) - 1))


def memory_of(patch: Sequence[int], channels: Sequence[int], batch: int, channels_in: int) -> int:
    """Bytes that training a U-Net needs: libraries, features of all levels, weights with gradient and momentum."""
    pixels, dimensions = prod(patch), len(patch)
    features = sum(width * pixels // 2 ** (dimensions * level) for level, width in enumerate(channels))
    widths = [channels_in, *channels]
    taps = 3**dimensions
    encoder = sum(taps * (a * b + b * b) for a, b in zip(widths, channels, strict=False))
    decoder = sum(taps * 3 * wide * wide + 2**dimensions * wide * deep for wide, deep in pairwise(channels))
    return LIBRARIES + 4 * batch * PER_FEATURE * features + 16 * (encoder + decoder)


def plan(session: Session, version: DatasetVersion, settings: Settings, memory_bytes: int | None) -> Plan:
    """A training on this version that fits into the memory of a device.

    memory_bytes  what the device has; None: the limit of a training in the settings, or 8 GiB
    """
    ref, dimensions = datasets.ref_of(session, version.id), version.dimensions
    limit, source = _limit(settings, memory_bytes)
    shapes, spacings, groups = _facts(session, version)
    middle = [int(median(sides)) for sides in zip(*shapes, strict=True)]
    made = _shaped(middle, dimensions)
    _shrink(made, limit, version.channels)
    pixels = sum(map(prod, shapes))
    steps = round(PASSES * pixels / (made.batch * prod(made.patch)))
    steps = min(max(STEPS[0], min(STEPS[1], steps)), settings.max_steps)
    made.because(
        "steps", steps, f"each of the {pixels} pixels about {PASSES} times, but {STEPS[0]} to {STEPS[1]} steps"
    )
    training: dict[str, Any] = {
        "kind": "train",
        "dataset": ref,
        "model": ref.partition("@")[0],
        "network": {"name": "unet", "dimensions": dimensions, "channels": made.channels},
        "patch": made.patch,
        "batch": made.batch,
        "steps": steps,
        **_data_fields(version, groups, made),
    }
    reasons = [Reason(field=name, value=value, reason=reason) for name, (value, reason) in made.reasons.items()]
    spacing, notes = _spacing(spacings)
    memory = PlannedMemory(
        estimated_bytes=memory_of(made.patch, made.channels, made.batch, version.channels),
        limit_bytes=limit,
        limit_from=source,
    )
    if memory.estimated_bytes > limit:
        notes.append("Even the smallest plan is estimated to need more memory than there is.")
    if groups < 4:
        notes.append(f"There are {groups} labelled images or groups: figures on so few say little. Label more.")
    notes.append('Which loss helps is not planned but measured: send the training with `"recipe": "auto"`.')
    return Plan(dataset=ref, training=training, reasons=[*spacing, *reasons], memory=memory, notes=notes)


def _limit(settings: Settings, stated: int | None) -> tuple[int, str]:
    if stated is not None:
        return stated, "the request"
    if settings.train_memory_bytes is not None:
        return settings.train_memory_bytes, "TOPOSERVE_TRAIN_MEMORY_BYTES"
    return USUAL_MEMORY, "nobody: 8 GiB are assumed; say `memory_mib`"


def _facts(session: Session, version: DatasetVersion) -> tuple[list[list[int]], list[list[float] | None], int]:
    """Shapes and pixel sizes of the labelled images that may be learnt from, and how many groups they are."""
    group = func.coalesce(DatasetItem.group, DatasetItem.name)
    rows = session.execute(
        select(Image.shape, Image.spacing_mm, group)
        .join(DatasetItem, DatasetItem.image_id == Image.id)
        .where(
            DatasetItem.version_id == version.id,
            DatasetItem.mask_sha256.is_not(None),
            DatasetItem.split.is_distinct_from("test"),
        )
    ).all()
    return [row[0] for row in rows], [row[1] for row in rows], len({row[2] for row in rows})


def _shaped(middle: Sequence[int], dimensions: int) -> Draft:
    """Patch and levels from the median sides, before memory is looked at."""
    wanted = [min(LARGEST_PATCH[dimensions], side) for side in middle]
    levels = DEEPEST[dimensions]
    while levels > 1 and 2 ** (levels - 1) * LEAST_DEEP > min(wanted):
        levels -= 1
    channels = [min(WIDEST, FIRST_WIDTH[dimensions] * 2**level) for level in range(levels)]
    made = Draft([], channels, BATCH[dimensions])
    made.patch = [max(made.multiple, side // made.multiple * made.multiple) for side in wanted]
    made.because(
        "network.channels",
        channels,
        f"{levels} levels: the deepest one keeps {LEAST_DEEP} pixels or more of the shortest side of the patch",
    )
    made.because(
        "patch",
        made.patch,
        f"the median image is {by(middle)}; at most {LARGEST_PATCH[dimensions]} a side, multiples of {made.multiple}",
    )
    made.because("batch", made.batch, f"{made.batch} patches are usual in {dimensions}D")
    return made


def _shrink(made: Draft, limit: int, channels_in: int) -> None:
    """Halve batch, patch and widths, in this order, until nine tenths of the memory suffice."""

    def fits() -> bool:
        return memory_of(made.patch, made.channels, made.batch, channels_in) <= 0.9 * limit

    while not fits() and made.batch > 2:
        made.batch //= 2
        made.because("batch", made.batch, "halved until the training fits into memory")
    while not fits() and max(made.patch) >= 2 * LEAST_DEEP * made.multiple:
        longest = made.patch.index(max(made.patch))
        made.patch[longest] = made.patch[longest] // 2 // made.multiple * made.multiple
        made.because("patch", list(made.patch), "its longest side halved until the training fits into memory")
    while not fits() and made.channels[0] > 4:
        made.channels = [max(1, width // 2) for width in made.channels]
        made.because("network.channels", made.channels, "halved until the training fits into memory")


def _data_fields(version: DatasetVersion, groups: int, made: Draft) -> dict[str, Any]:
    """Scaling, folds, where patches are drawn and how they are changed."""
    statistics = version.statistics
    dtypes = Counter(statistics.get("dtypes") or {"uint8": 1})
    dtype = dtypes.most_common(1)[0][0]
    scaling, why = {
        "int16": ("clipped", "signed 16 bits, as CT has them: a value means a material"),
        "uint16": ("percentile", "16 bits, of which the extremes are often a few wrong pixels"),
    }.get(dtype, ("image", f"{dtype} values without a unit: each image by itself"))
    chosen: dict[str, Any] = {"scaling": scaling}
    made.because("scaling", scaling, why)
    if groups >= 10:
        chosen["folds"] = 5
        made.because("folds", 5, f"{groups} images or groups are enough to hold out a fifth")
    share = statistics.get("fg_fraction")
    if share is not None and 0 < share < RARE:
        chosen["foreground_fraction"] = 0.33
        why = f"{share:.1%} of the pixels are foreground: most patches would miss it"
        made.because("foreground_fraction", 0.33, why)
    if version.channels == 3:
        chosen["augment"] = {"preset": "colour"}
        made.because("augment", chosen["augment"], "three channels: hue and saturation differ from site to site")
    made.because(
        "loss.neighbour_penalty.window", "auto", "if it is used: as wide as the labels are, found when training begins"
    )
    return chosen


def _spacing(spacings: Sequence[Sequence[float] | None]) -> tuple[list[Reason], list[str]]:
    known = [each for each in spacings if each is not None]
    if not known:
        return [], []
    middle = [round(median(sizes), 4) for sizes in zip(*known, strict=True)]
    kept = "the median size of pixels in mm; training keeps pixels as they are"
    reasons = [Reason(field="spacing", value=middle, reason=kept)]
    apart = any(abs(a / b - 1) > 0.1 for each in known for a, b in zip(each, middle, strict=True))
    if len(known) < len(spacings):
        return reasons, [f"{len(spacings) - len(known)} images do not say how large their pixels are."]
    return reasons, ["Pixel sizes differ by more than a tenth; bring the images to one size before."] if apart else []
