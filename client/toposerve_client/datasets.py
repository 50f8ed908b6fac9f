"""Datasets: labelled images as immutable numbered versions."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from toposerve_client import files
from toposerve_client.errors import Json
from toposerve_client.requests import Flow, Listing, address
from toposerve_client.transport import Group, M, listing, operation

FOLDERS = ("images", "masks", "unlabelled")
"""What an archive holds; images and masks are paired by name."""
Source = str | os.PathLike[str] | Iterable[tuple[files.Image, files.Image]]
"""An archive, a folder that holds `images` and `masks`, or pairs of images and masks."""


class Datasets(Group[M]):
    """Datasets of the project."""

    @operation
    def upload(
        self,
        name: str,
        source: Source,
        *,
        label_map: Mapping[str, int | Sequence[int]] | None = None,
        new_version: bool = False,
    ) -> Flow[Json]:
        """Store labelled images as version 1 of a new dataset, or as the next version of one; the version.

        source       an archive, a folder with images/ and masks/, or pairs of (image, mask), arrays or paths
        label_map    what the values of the masks mean: `{"vessel": 255}`
        new_version  the dataset exists
        Raises Refused: `conflict` when the dataset exists and no new version was asked for.
        """
        params = {"label_map": None if label_map is None else json.dumps(label_map)}
        path = address("datasets", name, "versions") if new_version else "/v1/datasets"
        with _archived(source) as archive:
            return (
                yield from self._json(
                    "POST", path, content=archive, params=params if new_version else params | {"name": name}
                )
            )

    @operation
    def get(self, name: str, version: int | None = None) -> Flow[Json]:
        """A dataset and its newest version, or one version: classes, statistics, warnings about labels."""
        one = () if version is None else ("versions", version)
        return (yield from self._json("GET", address("datasets", name, *one)))

    @listing
    def list(self) -> Listing[Json]:
        """Every dataset, the newest first."""
        yield from self._listed("/v1/datasets")

    @listing
    def versions(self, name: str) -> Listing[Json]:
        """Every version of a dataset, the newest first."""
        yield from self._listed(address("datasets", name, "versions"))

    @listing
    def items(self, name: str, version: int) -> Listing[Json]:
        """The pairs of a version in their order, each with its statistics."""
        yield from self._listed(address("datasets", name, "versions", version, "items"))

    @operation
    def delete(self, name: str, version: int) -> Flow[None]:
        """Forget a version that no job and no model was made from."""
        yield from self._ask("DELETE", address("datasets", name, "versions", version))


@contextmanager
def _archived(source: Source) -> Iterator[Path]:
    """The archive to send, made in a temporary file unless there is one."""
    if isinstance(source, str | os.PathLike) and not Path(source).is_dir():
        path = files.content_of(source)
        assert isinstance(path, Path)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "dataset.zip"
        with zipfile.ZipFile(made, "w") as archive:
            if isinstance(source, str | os.PathLike):
                _add_folder(archive, Path(source))
            else:
                _add_pairs(archive, source)
        yield made


def _add_folder(archive: zipfile.ZipFile, folder: Path) -> None:
    found = [path for name in FOLDERS for path in sorted((folder / name).rglob("*")) if path.is_file()]
    if not found:
        raise ValueError(f"{folder} holds no files in {', '.join(f'{name}/' for name in FOLDERS)}.")
    for path in found:
        archive.write(path, path.relative_to(folder).as_posix())


def _add_pairs(archive: zipfile.ZipFile, pairs: Iterable[tuple[files.Image, files.Image]]) -> None:
    for number, pair in enumerate(pairs):
        named = next((Path(name).name.split(".")[0] for image in pair if (name := files.name_of(image))), "image")
        contents = (files.content_of(pair[0]), files.labels_of(pair[1]))
        for folder, image, content in zip(FOLDERS, pair, contents, strict=False):
            extension = "".join(Path(files.name_of(image) or "").suffixes) or _extension(content)
            entry = f"{folder}/{number:05d}-{named}{extension}"
            if isinstance(content, Path):
                archive.write(content, entry)
            else:
                archive.writestr(entry, content)


def _extension(content: bytes | Path) -> str:
    head = content if isinstance(content, bytes) else io.FileIO(content).read(8)
    return ".png" if head.startswith(files.SIGNATURE) else ".nii.gz"
