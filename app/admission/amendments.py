"""The next version of a dataset: the newest with other masks, parts or items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.admission import datasets as admission
from app.admission.datasets import Source
from app.errors import Conflict, Invalid
from app.imaging import IGNORE, LabelMap, Pair
from app.roles import Principal
from app.schemas.datasets import FileReading
from app.services import Services
from app.store import datasets as store, rows as named
from app.store.tables import Dataset, DatasetItem, DatasetVersion, Image


@dataclass(frozen=True)
class Changes:
    """What is other in the next version."""

    masks: Mapping[UUID, bytes] = field(default_factory=dict)
    """Image -> its new mask, in the values of the dataset's label map; an image that the dataset lacks is added."""
    splits: Mapping[str, str | None] = field(default_factory=dict)
    """Name of an item -> its part; None leaves it to the job."""
    excluded: Collection[str] = ()
    """Names of items that are left out."""


def amend(
    services: Services, caller: Principal, name: str, base: int, changes: Changes
) -> Callable[[Session], DatasetVersion]:
    """Read and count the changed version; what is returned writes it, or answers the one that is so already.

    base  number of the version that the caller saw, which must be the newest, else Conflict
    Raises Invalid for items and images that are not there, and what a new dataset raises; nothing was kept then.
    """
    with services.database.read() as session:
        dataset = store.require(session, caller.project_id, name)
        version = store.require_version(session, dataset, base)
        _refuse_older(session, dataset, base)
        source = _source(session, services, version, changes)
    draft = admission.draft(services, caller.project_id, name, source, must_be_new=False)

    def rows(session: Session) -> DatasetVersion:
        _refuse_older(session, named.locked(Dataset, session, caller.project_id, name), base)
        return admission.add(session, caller, name, draft, must_be_new=False)[0]

    return rows


def _refuse_older(session: Session, dataset: Dataset, base: int) -> None:
    newest = store.newest(session, dataset)
    if newest is None or newest.number != base:
        now = f"version {newest.number}" if newest else "no version"
        raise Conflict(
            f"This changes version {base} of {dataset.name}, and its newest is {now}. Look at the newest, then change"
            " that."
        )


def _source(session: Session, services: Services, version: DatasetVersion, changes: Changes) -> Source:
    kept = session.execute(
        select(DatasetItem, Image)
        .join(Image, Image.id == DatasetItem.image_id)
        .where(DatasetItem.version_id == version.id)
        .order_by(DatasetItem.position)
    ).all()
    unknown = ({*changes.splits, *changes.excluded}) - {item.name for item, _ in kept}
    if unknown:
        raise Invalid(f"The dataset has no item {', '.join(sorted(unknown))[:200]}.")
    read = partial(services.blobs.read, version.project_id)
    pairs, image_ids, there = list[Pair](), dict[str, UUID](), set[UUID]()
    for item, image in kept:
        there.add(image.id)
        if item.name in changes.excluded:
            continue
        mask = _reader(changes.masks[image.id]) if image.id in changes.masks else None
        if mask is None and item.mask_sha256 is not None:
            mask = partial(read, item.mask_sha256)
        split = changes.splits.get(item.name, item.split)
        pairs.append(Pair(item.name, split, partial(read, image.sha256), mask, item.group))
        image_ids[item.name] = image.id
    for image_id in changes.masks:
        if image_id not in there:
            image = session.get_one(Image, image_id)
            item_name = _free(image.name, image_ids)
            pairs.append(Pair(item_name, None, partial(read, image.sha256), _reader(changes.masks[image_id])))
            image_ids[item_name] = image_id

    @contextmanager
    def opened() -> Iterator[admission.Labelled]:
        yield admission.Labelled(pairs)

    return Source(
        _digest(version, changes),
        version.label_map,
        opened,
        image_ids,
        FileReading(resample=True, spacing_mm=version.spacing_mm),
    )


def _reader(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _free(file_name: str, taken: Collection[str]) -> str:
    """The name of an item for a file of this name: without its ending, with a number where it is taken."""
    stem = file_name.removesuffix(".gz").rpartition(".")[0] or file_name
    return next(name for k in range(len(taken) + 1) if (name := stem if k == 0 else f"{stem} ({k + 1})") not in taken)


def _digest(version: DatasetVersion, changes: Changes) -> str:
    masks = {str(image): hashlib.sha256(mask).hexdigest() for image, mask in changes.masks.items()}
    told = [version.digest, masks, dict(changes.splits), sorted(changes.excluded)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def in_values(labels: np.ndarray, classes: Sequence[str], version: DatasetVersion) -> np.ndarray:
    """(...) uint8: class positions as values that the label map of a version reads as the same classes.

    labels   (...) uint8 positions in `classes`, IGNORE where nothing is labelled
    classes  background first; Invalid unless they are those of the version, in any order
    Invalid for label maps of colours and of values above 255.
    """
    meaning = LabelMap.parse(version.label_map)
    if set(classes[1:]) != set(meaning.names[1:]):
        raise Invalid(
            f"The mask has the classes {', '.join(classes[1:])}; the dataset has {', '.join(meaning.names[1:])}. Choose"
            " a dataset of the same classes."
        )
    value_of = _values(meaning)
    table = np.zeros(256, np.uint8)
    table[IGNORE] = value_of.get("ignore", value_of[meaning.names[0]])
    for position, name in enumerate(classes):
        table[position] = value_of[meaning.names[0] if position == 0 else name]
    return table[labels]


def plain_values(version: DatasetVersion) -> dict[str, int]:
    """The value that `in_values` writes for each class but the background; refused as there."""
    meaning = LabelMap.parse(version.label_map)
    found = _values(meaning)
    return {name: found[name] for name in meaning.names[1:]}


def _values(meaning: LabelMap) -> dict[str, int]:
    """One mask value of each class."""
    if meaning.above is not None:
        found = {meaning.names[0]: 0, meaning.names[1]: 255}
        possible = 0 <= meaning.above < 255
    else:
        listed = meaning.index_of()
        free = (value for value in range(256) if value not in listed)
        background = meaning.background[0] if meaning.background else next(free)
        found = {meaning.names[0]: background}
        for name, values in meaning.classes:
            found[name] = values[0] if values else next(free)
        if meaning.ignore:
            found["ignore"] = meaning.ignore[0]
        possible = all(0 <= value <= 255 for value in found.values())
    if not possible:
        raise Invalid(
            "The label map of the dataset reads colours or values above 255, which are not written here. Download the"
            " mask, and upload the dataset with it."
        )
    return found
