"""Proposes which file of an archive is the mask of which, by their names.

The layouts that are read without asking pair files of one name. People also have `a.png` beside `a_mask.png`, folders
`train/images` and `train/labels`, DRIVE's `21_training.tif` with `1st_manual/21_manual1.gif`, or a folder for each
patient. What is found here is a guess: it is shown, and used only when its sender says so.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_WORDS |= {"test": "test", "testing": "test"}
_MASK = re.compile(
    r"(masks?|labels?(tr|ts)?|lbl|segs?|segmentations?|gt|groundtruth|truth|manual\d*|annot(ation)?s?|targets?)",
    re.IGNORECASE,
)
_IMAGE = re.compile(
    r"(images?(tr|ts)?|imgs?|scans?|raw|orig(inal)?s?|inputs?|photos?|training|test|0000)", re.IGNORECASE
)
_IMAGE_FOLDER = re.compile(rf"{_IMAGE.pattern}|data", re.IGNORECASE)
_BETTER = re.compile(r"manual|label|seg|gt|truth|annot", re.IGNORECASE)
"""Of two masks of one image the one that is called so: `mask` is the field of view in DRIVE and its like."""
_BETWEEN = re.compile(r"[-_. ]+")
_SHOWN = 8


@dataclass(frozen=True)
class Match:
    """An image and its mask, by their paths."""

    name: str
    image: str
    mask: str
    split: str | None
    group: str | None
    """The folder that only belongs to it, such as that of a patient."""


@dataclass(frozen=True)
class Proposal:
    """Pairs that names suggest.

    patterns  how they were found, the most frequent first: `*.png with *_mask.png`
    unpaired  the files that are left over
    """

    matches: list[Match]
    patterns: list[str]
    unpaired: list[str]


@dataclass(frozen=True)
class _File:
    path: str
    folder: str
    stem: str
    is_mask: bool
    split: str | None
    place: str


def proposed(names: Mapping[str, str]) -> Proposal:
    """The pairs among these files.

    names  path -> path without its extension
    """
    files = [_file(path, stem) for path, stem in sorted(names.items())]
    files = _without_common_place(files)
    groups: dict[tuple[str | None, str], list[_File]] = defaultdict(list)
    for file in files:
        groups[file.split, file.place].append(file)
    couples = [couple for group in groups.values() for couple in _couples(group)]
    used = {file.path for couple in couples for file in couple}
    called = _names([image for image, _ in couples])
    matches = [
        Match(called[image.path], image.path, mask.path, image.split, image.place or None) for image, mask in couples
    ]
    found = Counter(f"{_pattern(image, image)} with {_pattern(mask, image)}" for image, mask in couples)
    return Proposal(
        sorted(matches, key=lambda match: match.name),
        [pattern for pattern, _ in found.most_common(_SHOWN)],
        [file.path for file in files if file.path not in used],
    )


def seen(paths: Iterable[str]) -> str:
    """The folders of these files, with how many files of which extension each holds, in words."""
    folders: dict[str, Counter[str]] = defaultdict(Counter)
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders[f"{folder}/" if folder else "the top"][_extension(name)] += 1
    told = [
        f"{folder} ({', '.join(f'{count} {extension}' for extension, count in kinds.most_common(3))})"
        for folder, kinds in sorted(folders.items())[:_SHOWN]
    ]
    more = f" and {len(folders) - _SHOWN} more folders" if len(folders) > _SHOWN else ""
    return f"Seen: {', '.join(told)}{more}." if told else "It holds no file."


def _extension(name: str) -> str:
    stem, dot, extension = name.removesuffix(".gz").rpartition(".")
    if not stem or not dot:
        return "without extension"
    return f".{extension}{'.gz' if name.endswith('.gz') else ''}"


def _file(path: str, stem: str) -> _File:
    folder, _, name = stem.rpartition("/")
    split, place = None, []
    says_mask = says_image = False
    for part in folder.split("/") if folder else []:
        words = [word for word in _BETWEEN.split(part) if word]
        here = next((SPLIT_WORDS[word.lower()] for word in words if word.lower() in SPLIT_WORDS), None)
        mask = any(_MASK.fullmatch(word) for word in words)
        image = any(_IMAGE_FOLDER.fullmatch(word) and word.lower() not in SPLIT_WORDS for word in words)
        split, says_mask, says_image = here or split, says_mask or mask, says_image or (image and not mask)
        if not (here or mask or image):
            place.append(part)
    is_mask = says_mask or _stripped(name, _MASK) != name
    return _File(path, folder, name, is_mask, split, "/".join(place))


def _without_common_place(files: list[_File]) -> list[_File]:
    """The same files, whose places do not begin with a folder that all of them share."""
    while files and all(file.place for file in files) and len({file.place.split("/")[0] for file in files}) == 1:
        files = [_File(**{**vars(file), "place": file.place.partition("/")[2]}) for file in files]
    return files


def _stripped(stem: str, words: re.Pattern[str]) -> str:
    """The stem without the words of that kind at its end, else without those at its beginning."""
    parts = re.split(r"([-_. ]+)", stem)
    end = len(parts)
    while end > 0 and words.fullmatch(parts[end - 1]):
        end -= 2
    if end < len(parts):
        return "".join(parts[: max(end, 0)])
    start = 0
    while start < len(parts) and words.fullmatch(parts[start]):
        start += 2
    return "".join(parts[start:])


def _couples(files: list[_File]) -> list[tuple[_File, _File]]:
    """The images and masks of one place that belong together."""
    images = [file for file in files if not file.is_mask]
    masks = sorted(
        (file for file in files if file.is_mask), key=lambda mask: (not _BETTER.search(mask.path), mask.path)
    )
    exact = _only(images, lambda file: file.stem)
    loose = _only(images, lambda file: _stripped(file.stem, _IMAGE))
    found: dict[str, tuple[_File, _File]] = {}
    for mask in masks:
        keys = (mask.stem, _stripped(mask.stem, _MASK))
        image = next((table[key] for table in (exact, loose) for key in keys if key in table), None)
        if image is not None and image.path not in found:
            found[image.path] = (image, mask)
    if not found and len(images) == len(masks) == 1 and files[0].place:
        return [(images[0], masks[0])]  # a folder for each patient, with two files of any name
    return list(found.values())


def _only(files: list[_File], key: Callable[[_File], str]) -> dict[str, _File]:
    """The files by a key that no other of them has."""
    count = Counter(map(key, files))
    return {key(file): file for file in files if count[key(file)] == 1}


def _names(images: list[_File]) -> dict[str, str]:
    """A name for each path: split, place and stem, or all of the path where that is not its own."""
    short = {file.path: "/".join(part for part in (file.split, file.place, file.stem) if part) for file in images}
    count = Counter(short.values())
    return {
        file.path: short[file.path] if count[short[file.path]] == 1 else f"{file.folder}/{file.stem}" for file in images
    }


def _pattern(file: _File, image: _File) -> str:
    """The path with * for what differs from pair to pair."""
    core = _stripped(image.stem, _IMAGE)
    parts = ["*" if part and part in file.place.split("/") else part for part in file.folder.split("/")]
    stem = file.stem.replace(core, "*", 1) if core else file.stem
    return "/".join(
        [*(part for part in parts if part), stem + file.path.removeprefix(f"{file.folder}/{file.stem}".lstrip("/"))]
    )
