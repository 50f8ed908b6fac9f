"""Recognises the export of an annotation tool in an archive, by what its files hold."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from app.errors import BadDataset
from app.imaging.annotations import coco, cvat, label_studio, yolo
from app.imaging.annotations.shapes import Export, Labelled
from app.imaging.formats import SUFFIXES
from app.imaging.pairing import SPLIT_WORDS

MOST_BYTES = 64 * 1024 * 1024
"""Of all annotation files of an archive; parsed, they take about ten times as much memory."""
_IMAGE = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})$", re.IGNORECASE)
_SHOWN = 5


@dataclass(frozen=True)
class Found:
    """An export, with its images by their paths in the archive.

    used    paths of the annotation files
    splits  part of the data that an image belongs to, by path, where folders or file names say one
    """

    export: Export
    used: list[str]
    splits: dict[str, str]


def recognised(sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Found | None:
    """The export that the files of an archive make; None where they make none.

    sizes  bytes of each file, by its path
    read   the content of a file
    Raises BadDataset where an export cannot be read, names images that are not there, or several tools have written.
    """
    documents = _documents(sizes, read)
    if not documents:
        documents = _yolo(sizes, read)
    if not documents:
        return None
    tools = sorted({export.tool for _, export in documents})
    if len(tools) > 1:
        raise BadDataset(f"The archive holds exports of {' and '.join(tools)}. Send one of them.")
    return _joined(documents, [path for path in sizes if _IMAGE.search(path)])


def _documents(sizes: Mapping[str, int], read: Callable[[str], bytes]) -> list[tuple[list[str], Export]]:
    """The exports of one file each, with the path of that file."""
    found: list[tuple[list[str], Export]] = []
    room = MOST_BYTES
    for path in sorted(path for path in sizes if path.lower().endswith((".json", ".xml"))):
        room -= sizes[path]
        if room < 0:
            raise BadDataset(
                f"The .json and .xml files of the archive have more than {MOST_BYTES} bytes together; at most so many"
                " are read. Split the dataset."
            )
        content = read(path)
        if path.lower().endswith(".xml"):
            if cvat.is_cvat(content):
                found.append(([path], cvat.read(content)))
            continue
        document = _parsed(content)
        if coco.is_coco(document):
            found.append(([path], coco.read(document)))
        elif label_studio.is_label_studio(document):
            found.append(([path], label_studio.read(document)))
    return found


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None  # some other file; what the archive lacks is told by whoever asked


def _yolo(sizes: Mapping[str, int], read: Callable[[str], bytes]) -> list[tuple[list[str], Export]]:
    """Text files below folders called labels, beside images below folders called images."""
    stems = {_IMAGE.sub("", path): path for path in sizes if _IMAGE.search(path)}
    labels, room = {}, MOST_BYTES
    for path in sorted(path for path in sizes if path.endswith(".txt")):
        folders, _, name = path.rpartition("/")
        image = stems.get(_swapped(folders) + "/" + name.removesuffix(".txt"))
        if "labels" in folders.split("/") and image is not None:
            labels[path], room = image, room - sizes[path]
    if not labels:
        return []
    if room < 0:
        raise BadDataset(f"The label files have more than {MOST_BYTES} bytes together. Split the dataset.")
    texts = {path: read(path).decode("utf-8", "replace") for path in labels}
    holding = {image.rpartition("/")[0] for image in labels.values()}
    images = [path for path in stems.values() if path.rpartition("/")[0] in holding]
    names, used = _yolo_names(sizes, read)
    return [([*labels, *used], yolo.read(texts, labels, images, names))]


def _swapped(folders: str) -> str:
    """The folder of the images of a folder of labels: the last `labels` in it becomes `images`."""
    parts = folders.split("/")
    at = len(parts) - 1 - parts[::-1].index("labels") if "labels" in parts else None
    return "/".join("images" if number == at else part for number, part in enumerate(parts))


def _yolo_names(sizes: Mapping[str, int], read: Callable[[str], bytes]) -> tuple[list[str], list[str]]:
    """The names of the classes, and the files that told them."""
    for path in sorted(path for path in sizes if path.endswith((".yaml", ".yml")) and sizes[path] < 2**20):
        import yaml  # only archives of YOLO pay for it

        try:
            names = yolo.names_of(yaml.safe_load(read(path)))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise BadDataset(f"{path} is not valid YAML. Correct it, or send classes.txt in its place.") from None
        if names:
            return names, [path]
    for path in sorted(path for path in sizes if PurePosixPath(path).name in ("classes.txt", "obj.names")):
        return read(path).decode("utf-8", "replace").split("\n")[:65536], [path]
    return [], []


def _joined(documents: Sequence[tuple[list[str], Export]], images: Sequence[str]) -> Found:
    """One export of all, whose images are files of the archive."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in images:
        by_name[path.rpartition("/")[2]].append(path)
    joined = Export(documents[0][1].tool, [], [])
    splits: dict[str, str] = {}
    missing: list[str] = []
    for used, export in documents:
        joined.classes += [name for name in export.classes if name not in joined.classes]
        for kind, count in export.passed.items():
            joined.passed[kind] = joined.passed.get(kind, 0) + count
        for image in export.images:
            there = _file_of(image.path, used[0].rpartition("/")[0], by_name)
            if there is None:
                missing += [image.path] if image.drawn is not None else []
                continue
            joined.images.append(Labelled(there, image.size, image.drawn))
            if split := _split(there, used[0]):
                splits[there] = split
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        raise BadDataset(
            f"The {joined.tool} export names {len(missing)} images that are not in the archive, or whose name several"
            f" have: {shown}. Export it together with its images."
        )
    twice = [path for path, count in Counter(image.path for image in joined.images).items() if count > 1]
    if twice:
        raise BadDataset(f"{twice[0]} stands more than once in the {joined.tool} export. Keep one of them.")
    drawn = {each.class_name for image in joined.images for each in image.drawn or ()}
    joined.classes = [name for name in joined.classes if name in drawn]
    return Found(joined, [path for used, _ in documents for path in used], splits)


def _file_of(said: str, folder: str, by_name: Mapping[str, list[str]]) -> str | None:
    """The file of the archive that an export means: of that path, or the only one of its name."""
    said = said.replace("\\", "/").partition("?")[0]
    name = said.rpartition("/")[2]
    there = by_name.get(name) or by_name.get(label_studio.UPLOADED.sub("", name)) or []
    for wanted in (f"{folder}/{said}".lstrip("/"), f"{folder}/images/{said}".lstrip("/"), said):
        if wanted in there:
            return wanted
    ending = [path for path in there if path.endswith("/" + said.lstrip("/"))]
    chosen = ending if len(ending) == 1 else there
    return chosen[0] if len(chosen) == 1 else None


def _split(path: str, document: str) -> str | None:
    for text in (path.rpartition("/")[0], document):
        for word in re.findall("[a-z]+", text.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None
