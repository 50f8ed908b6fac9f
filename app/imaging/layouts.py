"""Which file of an archive is which, by the folders and names of known layouts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from app.errors import BadDataset
from app.imaging.archive import Entry
from app.imaging.formats import FORMATS, SUFFIXES

FOLDERS = {"images": "masks", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}
UNLABELLED = "unlabelled"
SPLITS = ("train", "val", "test")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")
EXTENSION = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))}|\.[^./]*)$", re.IGNORECASE)
_OTHERS = [suffix for suffix in SUFFIXES if suffix not in FORMATS["dicom"].suffixes]
NO_DICOM = re.compile(rf"({'|'.join(map(re.escape, _OTHERS))})$", re.IGNORECASE)
"""Names of files that are no DICOM, whose first bytes need not be read to know that."""
CLUTTER = re.compile(r"(^|/)(\.[^/]*|__MACOSX|Thumbs\.db|desktop\.ini)(/|$)", re.IGNORECASE)
_SHOWN = 8  # names in a message


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Paths without extension and without folders called images, where that is enough to tell them apart."""
    whole = {path: EXTENSION.sub("", path) for path in paths}
    short = {path: "/".join(part for part in name.split("/") if part != "images") for path, name in whole.items()}
    count = Counter(short.values())
    return {path: name if count[name] == 1 else whole[path] for path, name in short.items()}


def top_folder(entries: list[Entry]) -> str:
    """The one folder that everything lies in, with its slash, or "" when there is none."""
    tops = {entry.name.split("/")[0] for entry in entries if not CLUTTER.search(entry.name)}
    nested = len(tops) == 1 and all("/" in entry.name for entry in entries)
    top = tops.pop() if nested else ""
    return "" if top in {"", UNLABELLED, *FOLDERS, *FOLDERS.values()} else top + "/"


def by_name(files: dict[str, Entry], folder: str) -> dict[str, Entry]:
    """The files below a folder, by their path in it without extension."""
    found: dict[str, Entry] = {}
    for path, entry in files.items():
        if not path.startswith(folder + "/"):
            continue
        name = EXTENSION.sub("", path.removeprefix(folder + "/"))
        if name in found:
            raise BadDataset(f"Two files of {folder}/ are named {name} with different extensions. Keep one.")
        found[name] = entry
    return found


def by_case(images: dict[str, Entry], masks: dict[str, Entry]) -> dict[str, list[Entry]]:
    """nnU-Net's channel files by case; a file named exactly as a mask is a case of one channel (the Decathlon's own
    layout).
    """
    cases: dict[str, dict[int, Entry]] = defaultdict(dict)
    for name, entry in images.items():
        match = None if name in masks else _CHANNEL.fullmatch(name)
        cases[match["case"] if match else name][int(match["channel"]) if match else 0] = entry
    numbers = {tuple(sorted(channels)) for channels in cases.values()}
    if len(numbers) > 1 or any(found != tuple(range(len(found))) for found in numbers):
        raise BadDataset(
            f"The cases have different channels: {sorted(numbers)}. Every case needs _0000, _0001, ... up to the same"
            " number."
        )
    return {case: [channels[number] for number in sorted(channels)] for case, channels in cases.items()}


def split_of(name: str) -> str | None:
    """The split that a folder of images/ names; BadDataset for any other folder."""
    folder, _, rest = name.partition("/")
    if not rest:
        return None
    if folder not in SPLITS:
        raise BadDataset(
            f"images/ has a folder {folder}; only {', '.join(SPLITS)} are known there. Put the images directly into"
            " images/."
        )
    return folder


def refuse_unpaired(images: Iterable[str], masks: Iterable[str], folder: str) -> None:
    """BadDataset, with their names, where an image has no mask or a mask no image."""
    alone, idle = sorted(set(images) - set(masks)), sorted(set(masks) - set(images))
    if alone or idle:
        raise BadDataset(
            f"{len(alone)} files of {folder}/ have no mask ({_shown(alone)}) and {len(idle)} files of"
            f" {FOLDERS[folder]}/ have no image ({_shown(idle)}). Give both the same name."
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "") or "none"
