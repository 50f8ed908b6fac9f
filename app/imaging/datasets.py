"""Reads a labelled dataset from a zip or tar.gz archive, one pair at a time.

Two layouts, at the top of the archive or inside one folder:
    images/NAME.ext  masks/NAME.ext            paired by name; the extensions may differ; images/train, images/val,
                     images/test
                                               (and the same below masks/) put the pairs into that split;
                                               unlabelled/NAME.ext beside them are images without a mask
    imagesTr/CASE_0000.ext  labelsTr/CASE.ext  nnU-Net, with dataset.json (labels, channel_names); _0001 ... are more
                            channels;
                                               imagesTs with labelsTs is the test split
A folder images/NAME (or images/train/NAME) that holds the DICOM files of one series is one image of that name.
Masks that are DICOM structure sets are drawn on its grid; classes are called as their regions, in alphabetical order.
Identities are taken out of DICOM images and masks as they are read. Other files beside these folders (a README, a
manifest) are left alone. Exports of annotation tools (COCO, YOLO, CVAT, Label Studio) are drawn as masks of classes
(`app.imaging.annotations`). Any other layout is paired as `app.imaging.pairing` proposes, where its sender wants that.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Literal

from app.errors import BadDataset
from app.imaging.annotations.exports import recognised
from app.imaging.annotations.shapes import Labelled, mask_of
from app.imaging.archive import Archive, Entry
from app.imaging.decode import decode
from app.imaging.dicom.files import is_dicom
from app.imaging.dicom.identity import cleaned
from app.imaging.dicom.structures import is_structure_set, labels_of, regions_of
from app.imaging.encode import encode_channels, encode_nifti_gz, encode_png
from app.imaging.formats import HEAD_BYTES
from app.imaging.header import opened, read_header
from app.imaging.labels import BACKGROUND, LabelMap
from app.imaging.layouts import (
    CLUTTER,
    EXTENSION,
    FOLDERS,
    NO_DICOM,
    SPLITS,
    UNLABELLED,
    by_case,
    by_name,
    refuse_unpaired,
    short_names,
    split_of,
    top_folder,
)
from app.imaging.pairing import Proposal, proposed, seen
from app.imaging.picture import Source
from app.imaging.tar import BLOCK, as_zip, is_tar

if TYPE_CHECKING:
    from app.settings import Settings

Clean = Callable[[bytes], bytes]
"""Takes the identities out of a DICOM file, or of a zip of a series."""
MAX_JSON_BYTES = 1024 * 1024
_JUNK = re.compile(
    r"\.(txt|md|rst|csv|tsv|xlsx?|json|xml|ya?ml|html?|pdf|docx?|log|ini|toml|py|ipynb|m|sh|db|lnk)$"
    r"|(^|/)(readme|licen[cs]e)$",
    re.IGNORECASE,
)
"""Files beside images that are no images; those whose extension may be one (or none, as in DICOM) are not left out."""
Pairing = Literal["exact", "proposed"]


@dataclass(frozen=True)
class Pair:
    """An image and the mask that labels it, or None.

    Their bytes are read anew on every access, so that a list of pairs costs nothing.
    """

    name: str
    split: str | None
    read_image: Callable[[], bytes]
    read_mask: Callable[[], bytes] | None
    group: str | None = None

    @property
    def image(self) -> bytes:
        """The encoded image; several nnU-Net channels come merged, as TIFF in the plane and .nii.gz in space."""
        return self.read_image()

    @property
    def mask(self) -> bytes | None:
        """The encoded mask; None of an image without one."""
        return self.read_mask() if self.read_mask else None


class Dataset:
    """The pairs of an archive, sorted by name, and after them its images without a mask; iterate as often as you like
    while the archive is open.

    label_map      from dataset.json, or None
    channel_names  from dataset.json, or []
    ignored        paths of files that are no images, and of those that belong to no pair
    proposal       how the pairs were found where no known layout fits, else None
    export         the annotation tool whose export it is, or None
    passed         shapes of an export that were not read, by kind
    """

    def __init__(self, archive: Archive, limits: Settings, clean: Clean, pairing: Pairing = "exact"):
        self._archive, self._limits, self._clean = archive, limits, clean
        top = top_folder(archive.entries)
        files = {entry.name.removeprefix(top): entry for entry in archive.entries if not CLUTTER.search(entry.name)}
        described = _described(archive, files.pop("dataset.json", None))
        self.ignored = sorted(path for path in files if _JUNK.search(path))
        everything = files
        files = {path: entry for path, entry in files.items() if not _JUNK.search(path)}
        self.export: str | None = None
        self.passed: dict[str, int] = {}
        self.proposal: Proposal | None = None
        self.channel_names: list[str] = [
            str(name) for name in described.get("channel_names", described.get("modality", {})).values()
        ]
        self.label_map: LabelMap | None = _label_map(described.get("labels"))
        try:
            self.pairs = self._known(files)
        except BadDataset as refusal:
            self.pairs = self._exported(everything) or self._proposed(files, pairing, refusal)
        self.pairs += [self._alone(name, entry) for name, entry in sorted(by_name(files, UNLABELLED).items())]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def _known(self, files: dict[str, Entry]) -> list[Pair]:
        """The pairs of a layout that is read without asking; BadDataset where it is none."""
        pairs = [pair for folder in FOLDERS for pair in self._paired(files, folder)]
        if not pairs:
            raise BadDataset(
                "The archive holds no pair of image and mask. Put images into images/ and masks of the same name into"
                " masks/, or use imagesTr/, labelsTr/ and dataset.json."
            )
        return pairs

    def _exported(self, files: dict[str, Entry]) -> list[Pair]:
        """The pairs of the export of an annotation tool; none where it is none."""
        sizes = {path: entry.size for path, entry in files.items()}
        found = recognised(sizes, lambda path: self._archive.read(files[path]))
        if found is None:
            return []
        export = found.export
        classes = [name for name in export.classes if name != BACKGROUND]
        if not classes:
            raise BadDataset(f"The {export.tool} export holds no polygon and no mask{_passed(export.passed)}.")
        self.export, self.passed = export.tool, export.passed
        self.label_map = LabelMap.parse({BACKGROUND: 0} | {name: at for at, name in enumerate(classes, start=1)})
        images = {image.path for image in export.images}
        self.ignored = sorted(path for path in files if path not in images and path not in found.used)
        named = short_names(images)
        return [
            Pair(
                named[image.path],
                found.splits.get(image.path),
                partial(self._read, files[image.path]),
                None if image.drawn is None else partial(self._drawn, image, classes, files[image.path]),
            )
            for image in sorted(export.images, key=lambda image: (image.drawn is None, named[image.path]))
        ]

    def _drawn(self, image: Labelled, classes: list[str], entry: Entry) -> bytes:
        """The mask of an annotated image, as PNG."""
        header = read_header(self._read(entry), self._limits)
        if header.is_volume:
            raise BadDataset(f"{image.path} is a volume; annotations are drawn on images.")
        return encode_png(mask_of(image, classes, *header.shape))

    def _proposed(self, files: dict[str, Entry], pairing: Pairing, refusal: BadDataset) -> list[Pair]:
        """The pairs that the names suggest, if they are wanted; else the refusal, with what was seen."""
        labelled = [path for path in files if not path.startswith(UNLABELLED + "/")]
        found = proposed({path: EXTENSION.sub("", path) for path in labelled})
        if not found.matches or pairing == "exact":
            raise BadDataset(f"{refusal.detail} {seen([*labelled, *self.ignored])}{_offer(found)}") from None
        self.proposal = found
        self.ignored = sorted([*self.ignored, *found.unpaired])
        return [
            Pair(
                match.name,
                match.split,
                partial(self._read, files[match.image]),
                partial(self._read, files[match.mask]),
                match.group,
            )
            for match in found.matches
        ]

    def _paired(self, files: dict[str, Entry], folder: str) -> list[Pair]:
        masks = by_name(files, FOLDERS[folder])
        if folder == "imagesTs" and not masks:
            return []  # nnU-Net's unlabelled test images
        series = self._series(files, folder) if folder == "images" else {}
        within = {entry.index for entries in series.values() for entry in entries}
        images = by_name({path: entry for path, entry in files.items() if entry.index not in within}, folder)
        cases = by_case(images, masks) if folder != "images" else {name: [entry] for name, entry in images.items()}
        refuse_unpaired([*cases, *series], masks, folder)
        read = {name: partial(self._image, channels) for name, channels in cases.items()}
        read |= {name: partial(self._one_series, entries) for name, entries in series.items()}
        regions = self._regions(masks)
        return [
            Pair(
                name,
                {"images": split_of(name), "imagesTr": None, "imagesTs": "test"}[folder],
                read[name],
                partial(self._contours, read[name], masks[name], regions)
                if regions
                else partial(self._read, masks[name]),
            )
            for name in sorted(read)
        ]

    def _regions(self, masks: dict[str, Entry]) -> list[str]:
        """The names of the regions where all masks are DICOM structure sets; none where they are masks.

        They make the label map.
        """
        may_be = [entry for entry in masks.values() if not NO_DICOM.search(entry.name)]
        sets = [entry for entry in may_be if is_structure_set(next(self._archive.pieces(entry), b""))]
        if not sets:
            return []
        if len(sets) < len(masks):
            raise BadDataset(
                f"{len(sets)} of {len(masks)} masks are DICOM structure sets and the others are not. Send one kind."
            )
        names = sorted({region.name for entry in sets for region in regions_of(self._archive.read(entry))})
        if not names:
            raise BadDataset("The DICOM structure sets hold no region with closed contours. Send masks, or draw some.")
        self.label_map = LabelMap.parse({BACKGROUND: 0} | {name: at for at, name in enumerate(names, start=1)})
        return names

    def _contours(self, read: Callable[[], bytes], mask: Entry, names: list[str]) -> bytes:
        """The mask that a structure set draws on its image."""
        image = read_header(read(), self._limits)
        labels = labels_of(regions_of(self._archive.read(mask)), names, image)
        return encode_nifti_gz(labels, image.affine) if image.is_volume else encode_png(labels)

    def _series(self, files: dict[str, Entry], folder: str) -> dict[str, list[Entry]]:
        """The folders below a folder that hold DICOM files, by their path in it."""
        folders: dict[str, list[Entry]] = defaultdict(list)
        for path, entry in files.items():
            inside, _, _ = path.removeprefix(folder + "/").rpartition("/")
            if path.startswith(folder + "/") and inside and inside not in SPLITS:
                folders[inside].append(entry)
        return {name: entries for name, entries in folders.items() if any(map(self._is_dicom, entries))}

    def _is_dicom(self, entry: Entry) -> bool:
        return is_dicom(next(self._archive.pieces(entry), b""))

    def _one_series(self, entries: list[Entry]) -> bytes:
        """A zip of the files of one series, without identities."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for number, entry in enumerate(entries):
                archive.writestr(zipfile.ZipInfo(f"{number:05d}"), self._archive.read(entry))
        return self._clean(packed.getvalue())

    def _read(self, entry: Entry) -> bytes:
        """The bytes of a file, without identities."""
        content = self._archive.read(entry)
        return self._clean(content) if is_dicom(content[:HEAD_BYTES]) else content

    def _alone(self, name: str, entry: Entry) -> Pair:
        return Pair(f"{UNLABELLED}/{name}", None, lambda: self._image([entry]), None)

    def _image(self, channels: list[Entry]) -> bytes:
        if len(channels) == 1:
            return self._read(channels[0])
        pictures = [decode(self._read(entry), self._limits) for entry in channels]
        facts = {(picture.shape, picture.channels, picture.pixels.dtype.name) for picture in pictures}
        if len(facts) > 1 or pictures[0].channels != 1:
            raise BadDataset(
                f"The channel files of one case differ, or hold more than one channel each: {sorted(map(str, facts))}."
                " Give each channel the same shape and type."
            )
        return encode_channels(pictures)


def clean_here(content: bytes) -> bytes:
    """A DICOM file, or a zip of a series, without identities; made in this process."""
    into = io.BytesIO()
    cleaned(io.BytesIO(content), into, keep=False)
    return into.getvalue()


@contextmanager
def open_dataset(
    source: Source, limits: Settings, clean: Clean = clean_here, pairing: Pairing = "exact"
) -> Iterator[Dataset]:
    """The labelled pairs of a zip or tar archive, while it is open.

    clean    takes the identities out of a DICOM file, or of a zip of a series
    pairing  "proposed": where no known layout fits, pairs as names suggest are taken, instead of refused

        with open_dataset(Path("isbi12.zip"), get_settings()) as dataset:
            for pair in dataset: ...

    Raises UnsupportedArchive, BadArchive, ExpandsTooLarge, TooLarge and ChecksumMismatch (see `Archive`), and
    BadDataset when the layout is not known, an image has no mask or a mask no image. Images and masks are not decoded
    here: `examine` does that.
    """
    with opened(source) as stream, _as_zip(stream, limits) as archive:
        yield Dataset(Archive(archive, limits), limits, clean, pairing)


@contextmanager
def _as_zip(stream: IO[bytes], limits: Settings) -> Iterator[IO[bytes]]:
    """The archive as a zip: itself, or a tar rewritten into a file that is gone afterwards."""
    stream.seek(0)
    if not is_tar(stream.read(BLOCK)):
        yield stream
        return
    limits.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=limits.scratch) as rewritten:
        as_zip(stream, rewritten, limits)
        yield rewritten


def _offer(found: Proposal) -> str:
    """What could be done instead of refusing."""
    if not found.matches:
        return ""
    return (
        f" By their names {len(found.matches)} pairs could be made ({'; '.join(found.patterns[:3])}): send"
        " `pairing=proposed` to use them, or POST /v1/datasets/pairing to see them all."
    )


def _passed(passed: Mapping[str, int]) -> str:
    """What else an export holds, in words."""
    told = ", ".join(f"{count} {kind}" for kind, count in passed.items())
    return f", but {told}, which cover no area. Draw outlines, or use a brush" if told else ""


def _described(archive: Archive, entry: Entry | None) -> dict[str, Any]:
    """The parts of nnU-Net's dataset.json that we read; an empty description when there is none."""
    if entry is None:
        return {}
    if entry.size > MAX_JSON_BYTES:
        raise BadDataset(f"dataset.json has {entry.size} bytes; at most {MAX_JSON_BYTES} are read.")
    try:
        described = json.loads(archive.read(entry))
    except (ValueError, RecursionError):
        raise BadDataset("dataset.json is not valid JSON. Correct it, or leave it out and post a label map.") from None
    kinds = {"labels": dict, "channel_names": dict, "modality": dict}
    if not isinstance(described, dict) or not all(
        isinstance(described.get(key, {}), kind) for key, kind in kinds.items()
    ):
        raise BadDataset(
            "dataset.json must be an object whose labels and channel_names are objects. See nnU-Net's dataset format."
        )
    return described


def _label_map(labels: dict[str, Any] | None) -> LabelMap | None:
    """nnU-Net 2 writes name: value; nnU-Net 1 and the Decathlon wrote "value": name."""
    if not labels:
        return None
    if all(re.fullmatch(r"-?\d{1,9}", key) for key in labels):
        labels = {str(name): int(value) for value, name in labels.items()}
    return LabelMap.parse(labels)
