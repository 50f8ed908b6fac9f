"""Makes a dataset version from a zip archive or from stored images.

Everything is decoded and counted before anything is kept, so a refusal leaves nothing behind. Then the bytes are
stored, and one transaction writes all rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid
from app.imaging import Examination, LabelMap, Pair, examine, open_dataset, sniff
from app.imaging.formats import HEAD_BYTES
from app.roles import Principal
from app.schemas.datasets import FileReading, NewPair, NewVersion, PairingShown, ProposedPair
from app.services import Services
from app.store import audit, datasets, images
from app.store.datasets import Draft, DraftItem
from app.store.tables import DatasetVersion, Image
from app.strict_json import parse
from app.upload import Upload


@dataclass(frozen=True)
class Labelled:
    """Pairs to read, and what came with them: a label map, names of channels, files that were left out, and how
    many shapes of which kind.
    """

    pairs: Sequence[Pair]
    label_map: LabelMap | None = None
    channel_names: Sequence[str] = ()
    ignored: Sequence[str] = ()
    passed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where a version comes from; `opened` gives its pairs for as long as they are read."""

    digest: str
    """Of the request's body."""
    label_map: dict[str, Any] | None
    opened: Callable[[], AbstractContextManager[Labelled]]
    image_ids: dict[str, UUID]
    """The images that are stored already, by the name of their pair."""
    masks: FileReading


def reading(field: str, text: str) -> Any:
    """A field of `FileReading` as a form holds it: JSON, a word, or the numbers of spacing_mm with commas between."""
    bare = field == "spacing_mm" and not text.startswith("[")
    if field == "pairing":
        return text
    return parse((f"[{text}]" if bare else text).encode())


def from_archive(upload: Upload, label_map: dict[str, Any] | None, masks: FileReading, services: Services) -> Source:
    """The pairs of an uploaded archive."""

    @contextmanager
    def opened() -> Iterator[Labelled]:
        clean = partial(_cleaned, services)
        with open_dataset(upload.file, services.settings, clean, masks.pairing) as dataset:
            yield Labelled(dataset.pairs, dataset.label_map, dataset.channel_names, dataset.ignored, dataset.passed)

    return Source(upload.sha256, label_map, opened, {}, masks)


def _cleaned(services: Services, content: bytes) -> bytes:
    """A DICOM file, or a zip of a series, without identities."""
    file, _ = services.decoders.cleaned(content, keep=services.settings.dicom_identifiers == "keep")
    with file:
        return file.read()


def from_images(session: Session, project_id: UUID, new: NewVersion, digest: str, services: Services) -> Source:
    """Pairs of stored images; Invalid names those that are not there."""
    rows = _images(session, project_id, new.pairs)
    names = _names([rows[pair.image].name for pair in new.pairs])
    read = partial(services.blobs.read, project_id)
    pairs = [
        Pair(
            name,
            pair.split,
            partial(read, rows[pair.image].sha256),
            partial(read, rows[pair.mask].sha256) if pair.mask else None,
            pair.group,
        )
        for name, pair in zip(names, new.pairs, strict=True)
    ]

    @contextmanager
    def opened() -> Iterator[Labelled]:
        yield Labelled(pairs)

    return Source(
        digest, new.label_map, opened, {name: pair.image for name, pair in zip(names, new.pairs, strict=True)}, new
    )


def _images(session: Session, project_id: UUID, pairs: Sequence[NewPair]) -> dict[UUID, Image]:
    wanted = [image_id for pair in pairs for image_id in (pair.image, pair.mask) if image_id]
    rows = images.by_id(session, project_id, wanted)
    unknown = [
        (position, role)
        for position, pair in enumerate(pairs)
        for role in ("image", "mask")
        if getattr(pair, role) not in (None, *rows)
    ]
    if unknown:
        errors = [
            {"pointer": f"/pairs/{position}/{role}", "detail": "There is no such image in this project."}
            for position, role in unknown[:20]
        ]
        raise Invalid(
            f"{len(unknown)} images of the pairs are not stored here. Upload them first: POST /v1/images.",
            errors=errors,
        )
    return rows


def _names(names: Sequence[str]) -> list[str]:
    """Each name without its extension, with a number where it comes again."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        stem = name.removesuffix(".gz").rpartition(".")[0] or name
        seen[stem] = seen.get(stem, 0) + 1
        unique.append(stem if seen[stem] == 1 else f"{stem} ({seen[stem]})")
    return unique


def draft(services: Services, project_id: UUID, name: str, source: Source, *, must_be_new: bool) -> Draft:
    """Read and count every pair, then store its bytes: a version that waits for its number.

    Raises what `open_dataset` and `examine` raise, and Conflict when `must_be_new` and the name is taken by other
    content; in all these cases nothing was kept.
    """
    with source.opened() as found_there:
        pairs = found_there.pairs
        examination = examine(
            pairs,
            services.settings,
            _label_map(source, found_there.label_map),
            decoder=services.decoders,
            resample=source.masks.resample,
            channel_names=found_there.channel_names,
            spacing_mm=source.masks.spacing_mm,
        )
        digests = [(_sha256(pair.image), None if (mask := pair.mask) is None else _sha256(mask)) for pair in pairs]
        digest = _digest(examination, digests, source.masks.spacing_mm)
        if must_be_new:
            _refuse_taken(services, project_id, name, digest)
        items = [
            _kept(services, project_id, pair, item, source.image_ids.get(pair.name))
            for pair, item in zip(pairs, examination.items, strict=True)
        ]
    found = ("classes", "channels", "dimensions", "statistics", "warnings")
    columns = {name: getattr(examination, name) for name in found} | {"label_map": examination.label_map.as_dict()}
    columns["warnings"] = [*_left_out(found_there.ignored), *_passed(found_there.passed), *columns["warnings"]]
    columns["spacing_mm"] = source.masks.spacing_mm
    return Draft(digest, columns, items)


def _left_out(ignored: Sequence[str]) -> list[dict[str, Any]]:
    """The warning that names files which were not read."""
    if not ignored:
        return []
    shown = ", ".join(ignored[:20]) + (f" and {len(ignored) - 20} more" if len(ignored) > 20 else "")
    detail = f"{len(ignored)} files were not read, because they are no images or belong to none: {shown}."
    return [{"code": "ignored_files", "detail": detail, "item": None}]


def _passed(passed: Mapping[str, int]) -> list[dict[str, Any]]:
    """The warning that counts the shapes of an export that cover no area."""
    if not passed:
        return []
    told = ", ".join(f"{count} {kind}" for kind, count in passed.items())
    detail = f"Of the export were not read, because they are no outlines: {told}."
    return [{"code": "ignored_shapes", "detail": detail, "item": None}]


def shown_pairing(upload: Upload, services: Services) -> PairingShown:
    """Which file of an archive would be the mask of which, without storing anything."""
    with open_dataset(upload.file, services.settings, partial(_cleaned, services), "proposed") as dataset:
        found = dataset.proposal
        return PairingShown(
            pairs=[ProposedPair(**vars(match)) for match in found.matches] if found else [],
            count=sum(pair.read_mask is not None for pair in dataset.pairs),
            is_known=found is None,
            export=dataset.export,
            patterns=found.patterns if found else [],
            ignored=dataset.ignored,
        )


def _label_map(source: Source, described: LabelMap | None) -> LabelMap | None:
    """The map of the request, else that of the archive; with a threshold the one class that they name is above it."""
    label_map = LabelMap.parse(source.label_map) if source.label_map else described
    above = source.masks.mask_threshold
    return label_map if above is None else LabelMap.thresholded(label_map, above)


def add(
    session: Session, caller: Principal, name: str, ready: Draft, *, must_be_new: bool
) -> tuple[DatasetVersion, bool]:
    """The version of a draft, and whether it is new; Conflict when `must_be_new` and the name is taken."""
    _, version, new = datasets.add_version(session, caller.project_id, name, ready, must_be_new=must_be_new)
    if new:
        audit.note(session, caller, "dataset.create", f"{name}@{version.number}")
    return version, new


def _digest(
    examination: Examination, digests: Sequence[tuple[str, str | None]], spacing_mm: Sequence[float] | None
) -> str:
    """SHA-256 that names the content: the same pairs with the same meaning, whatever carried them."""
    pairs = [[item.name, item.split, item.group, *pair] for item, pair in zip(examination.items, digests, strict=True)]
    content: dict[str, Any] = {
        "label_map": list(examination.label_map.as_dict().items()),
        "pairs": sorted(pairs, key=itemgetter(0)),
    }
    if spacing_mm is not None:  # versions without it keep the digest that they had before it could be stated
        content["spacing_mm"] = list(spacing_mm)
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _refuse_taken(services: Services, project_id: UUID, name: str, digest: str) -> None:
    with services.database.read() as session:
        if datasets.is_taken(session, project_id, name, digest):
            raise Conflict(datasets.TAKEN.format(name=name))


def _kept(services: Services, project_id: UUID, pair: Pair, item: Any, image_id: UUID | None) -> DraftItem:
    """The pair with its bytes stored."""
    columns: dict[str, Any] = {"id": image_id}
    if image_id is None:
        content = pair.image
        sha256, size = services.blobs.put(project_id, content)
        columns = {"sha256": sha256, "bytes": size} | _facts(pair.name, item.picture, content)
    mask_sha256 = None if (mask := pair.mask) is None else services.blobs.put(project_id, mask)[0]
    return DraftItem(pair.name, columns, mask_sha256, pair.split, pair.group, item.statistics)


def _facts(name: str, picture: dict[str, Any], content: bytes) -> dict[str, Any]:
    format = sniff(content[:HEAD_BYTES])
    label = name.rpartition("/")[2][: 255 - len(format.suffixes[0])] + format.suffixes[0]
    return {"name": label, "format": format.name, "dimensions": len(picture["shape"])} | {
        key: picture[key] for key in ("channels", "shape", "dtype", "spacing_mm")
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
