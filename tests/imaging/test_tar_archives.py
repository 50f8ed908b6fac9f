"""Datasets as tar and tar.gz archives, as other programs write them; damaged and hostile ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from app.errors import BadArchive, ExpandsTooLarge, Problem, UnsupportedArchive
from app.imaging import open_dataset
from app.settings import Settings
from tests.imaging.crafted_files import gzipped


@pytest.fixture
def limits(tmp_path: Path) -> Settings:
    """The product's own limits, with a folder for what is rewritten."""
    return Settings(work_dir=tmp_path)


FILES = {"set/images/a.png": b"image a", "set/masks/a.png": b"mask a"}
LONG = f"images/{'b' * 180}.png"


def tar_of(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w", format=form) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return into.getvalue()


def read(content: bytes, limits) -> list[tuple[str, bytes, bytes | None]]:
    with open_dataset(content, limits) as dataset:
        return [(pair.name, pair.image, pair.mask) for pair in dataset]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzipped])
def test_tar_archives_are_read_as_zips_are(form, pack, limits):
    assert read(pack(tar_of(FILES, form)), limits) == [("a", b"image a", b"mask a")]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_kept(form, limits):
    files = {LONG: b".", LONG.replace("images", "masks"): b",", "images/Zähne 1.png": b".", "masks/Zähne 1.png": b","}
    assert [name for name, _, _ in read(tar_of(files, form), limits)] == ["Zähne 1", "b" * 180]


def test_every_cut_is_refused(limits):
    whole = tar_of(FILES)
    packed = gzipped(whole)
    for content in (
        *(whole[:at] for at in range(512, 2500, 100)),
        *(packed[:at] for at in range(1, len(packed) - 8, 7)),
    ):
        with pytest.raises(Problem):
            read(content, limits)


def test_links_devices_and_names_that_climb_are_refused(limits):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        into = io.BytesIO()
        with tarfile.open(fileobj=into, mode="w") as archive:
            entry = tarfile.TarInfo("images/a.png")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        with pytest.raises(BadArchive, match="link or a device"):
            read(into.getvalue(), limits)
    with pytest.raises(BadArchive, match="plain relative path"):
        read(tar_of({"../images/a.png": b"."}), limits)


def test_what_expands_beyond_the_limits_is_stopped(limits, lean):
    entry = tarfile.TarInfo("images/a.png")
    entry.size = 1 << 30
    with pytest.raises(ExpandsTooLarge):
        read(gzipped(entry.tobuf()) + gzipped(bytes(1 << 20)) * 1024, limits)
    entry.size, entry.type = 1 << 32, tarfile.XHDTYPE  # pax records of 4 GiB
    with pytest.raises(BadArchive, match="at most"):
        read(entry.tobuf() + bytes(4096), limits)


def test_a_damaged_header_is_refused(limits):
    content = bytearray(tar_of(FILES))
    content[1024 + 3] ^= 1
    with pytest.raises(BadArchive, match="entry 1"):
        read(bytes(content), limits)
    with pytest.raises(UnsupportedArchive, match="tar"):
        read(gzipped(bytes(range(256)) * 8), limits)
