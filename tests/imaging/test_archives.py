"""Reading dataset archives: layouts, unsafe entries, damaged or oversized zips."""

from __future__ import annotations

import io
import json
import random
import struct
import time
import zipfile
import zlib

import nibabel
import numpy as np
import pytest

from app.errors import (
    BadArchive,
    BadDataset,
    ChecksumMismatch,
    CorruptImage,
    ExpandsTooLarge,
    Problem,
    TooLarge,
    UnsupportedArchive,
)
from app.imaging import decode, decode_mask, encode_nifti_gz, encode_png, open_dataset
from tests.imaging.crafted_files import gzipped, member, nifti, raw_zip, zip_of

IMAGE = encode_png(np.arange(48, dtype=np.uint8).reshape(6, 8))
MASK = encode_png((np.arange(48).reshape(6, 8) % 2 * 255).astype(np.uint8))


def pairs_of(archive: bytes, limits) -> list[tuple[str, bytes, bytes, str | None]]:
    with open_dataset(archive, limits) as dataset:
        return [(pair.name, pair.image, pair.mask, pair.split) for pair in dataset]


# Layouts ------------------------------------------------------------------------------------------------------------


def test_images_and_masks_are_paired_by_name_ignoring_extension(limits):
    archive = zip_of(
        {"masks/b.tif": b"mask b", "images/a.jpg": b"image a", "images/b.png": b"image b", "masks/a.png": b"mask a"}
    )
    assert pairs_of(archive, limits) == [("a", b"image a", b"mask a", None), ("b", b"image b", b"mask b", None)]


def test_the_archive_may_hold_one_folder_and_other_files(limits):
    files = {
        "set/images/a.png": IMAGE,
        "set/masks/a.png": MASK,
        "set/README.md": b"read me",
        "set/masks_2nd/a.png": b"not ours",
        "set/manifest.csv": b"",
    }
    clutter = {"__MACOSX/set/images/._a.png": b"", "set/images/.DS_Store": b"", "set/masks/Thumbs.db": b""}
    assert [pair[0] for pair in pairs_of(zip_of(files), limits)] == ["a"]
    assert [
        pair[0]
        for pair in pairs_of(
            zip_of({"images/a.png": IMAGE, "masks/a.png": MASK, "images/.hidden.png": b"", "__MACOSX/x": b""}), limits
        )
    ] == ["a"]
    with_clutter = {**files, **{name: data for name, data in clutter.items() if name.startswith("set/")}}
    assert [pair[0] for pair in pairs_of(zip_of(with_clutter), limits)] == ["a"]
    assert [pair[0] for pair in pairs_of(zip_of({**files, **clutter}), limits)] == ["a"]


def test_folders_called_train_val_and_test_are_splits(limits):
    archive = zip_of(
        {
            f"{kind}/{split}/x{ext}": b"."
            for split in ("train", "val", "test")
            for kind, ext in (("images", ".png"), ("masks", ".tif"))
        }
    )
    assert [(name, split) for name, _, _, split in pairs_of(archive, limits)] == [
        ("test/x", "test"),
        ("train/x", "train"),
        ("val/x", "val"),
    ]
    with pytest.raises(BadDataset, match="train, val, test"):
        pairs_of(zip_of({"images/left/x.png": b".", "masks/left/x.png": b"."}), limits)


def test_nnunet_channels_are_merged_in_2d_and_3d(limits):
    described = json.dumps(
        {
            "channel_names": {"0": "T1", "1": "T2"},
            "labels": {"background": 0, "tumour": 1, "ignore": 2},
            "file_ending": ".png",
        }
    ).encode()
    flat = [np.full((6, 8), value, np.uint16) for value in (3, 700)]
    archive = zip_of(
        {
            "dataset.json": described,
            "imagesTr/c1_0000.png": encode_png(flat[0]),
            "imagesTr/c1_0001.png": encode_png(flat[1]),
            "labelsTr/c1.png": MASK,
        }
    )
    with open_dataset(archive, limits) as dataset:
        (pair,) = dataset
        assert (pair.name, pair.split, dataset.channel_names, dataset.label_map.as_dict()) == (
            "c1",
            None,
            ["T1", "T2"],
            {"background": 0, "tumour": 1, "ignore": 2},
        )
        np.testing.assert_array_equal(decode(pair.image, limits).pixels, np.stack(flat))
    affine = np.diag([2.0, 3, 4, 1])
    volumes = [encode_nifti_gz(np.full((3, 4, 5), value, np.float32), affine) for value in (0.5, 7)]
    archive = zip_of(
        {"imagesTr/c1_0000.nii.gz": volumes[0], "imagesTr/c1_0001.nii.gz": volumes[1], "labelsTr/c1.nii.gz": volumes[0]}
    )
    picture = decode(pairs_of(archive, limits)[0][1], limits)
    assert picture.pixels.shape == (2, 3, 4, 5) and picture.pixels[:, 0, 0, 0].tolist() == [0.5, 7]
    np.testing.assert_allclose(picture.affine, affine)


def test_decathlon_layout_and_labelled_tests_are_read(limits):
    files = {
        "imagesTr/h_0001.nii.gz": b"i",
        "labelsTr/h_0001.nii.gz": b"l",
        "imagesTs/t_0000.png": b"ti",
        "labelsTs/t.png": b"tl",
    }
    files["dataset.json"] = (
        b'{"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}'
    )
    with open_dataset(zip_of(files), limits) as dataset:
        assert [(pair.name, pair.split) for pair in dataset] == [("h_0001", None), ("t", "test")]
        assert dataset.label_map.names == ["background", "Anterior", "Posterior"]
    without = {name: data for name, data in files.items() if not name.startswith("labelsTs")}
    assert [pair[0] for pair in pairs_of(zip_of(without), limits)] == ["h_0001"]


def test_archive_bytes_are_read_lazily_each_time(limits, tmp_path):
    path = tmp_path / "set.zip"
    path.write_bytes(raw_zip(member(b"images/a.png", b"good"), member(b"masks/a.png", b"bad", crc=1)))
    with open_dataset(path, limits) as dataset:
        (pair,) = list(dataset)
        assert (pair.image, pair.image, len(dataset)) == (b"good", b"good", 1)
        with pytest.raises(ChecksumMismatch, match="Entry 1"):
            _ = pair.mask


LAYOUT_FAULTS = {
    "no mask": (
        {"images/a.png": b".", "images/b.png": b".", "masks/b.png": b"."},
        r"1 files of images/ have no mask \(a\)",
    ),
    "no image": (
        {"images/a.png": b".", "masks/a.png": b".", "masks/c.png": b"."},
        r"1 files of masks/ have no image \(c\)",
    ),
    "both": ({"images/a.png": b".", "masks/b.png": b"."}, r"\(a\).*\(b\)"),
    "neither folder": ({"a.png": b".", "b.png": b"."}, "no pair"),
    "no files": ({}, "no pair"),
    "two of one name": ({"images/a.png": b".", "images/a.jpg": b".", "masks/a.png": b"."}, "named a"),
    "channels differ": (
        {
            "imagesTr/a_0000.png": b".",
            "imagesTr/b_0000.png": b".",
            "imagesTr/b_0001.png": b".",
            "labelsTr/a.png": b".",
            "labelsTr/b.png": b".",
        },
        "different channels",
    ),
    "channel 1 only": ({"imagesTr/a_0001.png": b".", "labelsTr/a.png": b"."}, "different channels"),
    "broken dataset.json": ({"dataset.json": b"{", "images/a.png": b".", "masks/a.png": b"."}, "valid JSON"),
    "deep dataset.json": (
        {
            "dataset.json": b'{"labels": ' + b"[" * 100_000,
            "noise.bin": random.Random(0).randbytes(1000),
            "images/a.png": b".",
            "masks/a.png": b".",
        },
        "valid JSON",
    ),
    "dataset.json is a list": ({"dataset.json": b"[]", "images/a.png": b".", "masks/a.png": b"."}, "an object"),
    "labels are a list": ({"dataset.json": b'{"labels": []}', "images/a.png": b".", "masks/a.png": b"."}, "object"),
    "labels are regions": (
        {
            "dataset.json": b'{"labels": {"background": 0, "whole": [1, 2], "core": [2]}}',
            "images/a.png": b".",
            "masks/a.png": b".",
        },
        "more than one name",
    ),
    "large dataset.json": (
        {"dataset.json": random.Random(0).randbytes(1 << 21), "images/a.png": b".", "masks/a.png": b"."},
        "at most",
    ),
}


@pytest.mark.parametrize("kind", LAYOUT_FAULTS)
def test_a_layout_that_does_not_pair_up_says_what_is_missing(kind, limits):
    files, message = LAYOUT_FAULTS[kind]
    with pytest.raises(BadDataset, match=message):
        pairs_of(zip_of(files), limits)


def test_channel_files_that_differ_are_refused_when_they_are_read(limits):
    files = {
        "imagesTr/a_0000.png": IMAGE,
        "imagesTr/a_0001.png": encode_png(np.zeros((6, 9), np.uint8)),
        "labelsTr/a.png": MASK,
    }
    with pytest.raises(BadDataset, match="differ"):
        pairs_of(zip_of(files), limits)


# Not a zip ----------------------------------------------------------------------------------------------------------


def test_files_that_are_not_zip_are_refused(limits):
    foreign = {
        "nothing": b"",
        "gzipped text": gzipped(b"hello" * 200),
        "7z": b"7z\xbc\xaf'\x1c" + bytes(30),
        "rar": b"Rar!\x1a\x07\0" + bytes(30),
        "image": IMAGE,
        "text": b"hello",
        "program with a zip behind it": b"MZ" + bytes(50) + zip_of({"images/a.png": b"."}),
    }
    for body in foreign.values():
        with pytest.raises(UnsupportedArchive, match="zip"):
            pairs_of(body, limits)


# Names --------------------------------------------------------------------------------------------------------------

BAD_NAMES = {
    "climbing": b"images/../../etc/passwd",
    "climbing inside": b"images/../masks/a.png",
    "absolute": b"/etc/passwd",
    "drive": b"C:/a.png",
    "drive relative": b"C:a.png",
    "climbing by backslash": b"images\\..\\..\\a.png",
    "share": b"\\\\host\\share",
    "NUL": b"images/a.png\0.txt",
    "newline": b"images/a\n.png",
    "300 bytes": b"images/" + b"a" * 300,
    "reversed text": "images/\u202egnp.a".encode(),
    "hidden mark": "images/a\u200f.png".encode(),
    "dot": b"images/./a.png",
    "double slash": b"images//a.png",
    "empty": b"",
    "not UTF-8": b"images/\xff\xfe.png",
    "nested zip": b"images/inner.zip",
    "nested tar.gz": b"inner.tar.gz",
    "nested 7z": b"images/inner.7Z",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_unsafe_entry_name_is_refused_by_its_index(name, limits):
    archive = raw_zip(member(b"images/a.png"), member(name, flags=1 << 11))
    with pytest.raises(BadArchive, match=r"[Ee]ntry 1") as refused:
        pairs_of(archive, limits)
    assert "passwd" not in refused.value.detail


def test_unicode_names_and_volume_suffixes_are_accepted(limits):
    for name in ("\u05d0\u05d1", "血管", "été", "a b (1)", "c.nii"):
        path = f"images/{name}.nii.gz".encode()
        assert (
            pairs_of(
                raw_zip(member(path, flags=1 << 11), member(path.replace(b"images", b"masks"), flags=1 << 11)), limits
            )[0][0]
            == name
        )


def test_links_devices_encryption_and_unknown_compression_are_refused(limits):
    for fault in (
        {"mode": 0o120777},
        {"mode": 0o020666},
        {"mode": 0o060666},
        {"mode": 0o010666},
        {"mode": 0o140777},
        {"flags": 1},
        {"flags": 1 << 6},
        {"flags": 1 << 13},
        {"method": 12},
        {"method": 99},
    ):
        with pytest.raises(BadArchive, match=r"[Ee]ntry 0"):
            pairs_of(raw_zip(member(b"images/a.png", **fault)), limits)


def test_duplicate_names_ignoring_case_are_refused(limits):
    for first, second in (
        (b"images/a.png", b"images/a.png"),
        (b"images/a.png", b"Images/A.PNG"),
        (b"images/a", b"images/a/"),
        ("images/\u00e9".encode(), "images/e\u0301".encode()),
    ):
        with pytest.raises(BadArchive, match="Entries 0 and 1"):
            pairs_of(raw_zip(member(first, flags=1 << 11), member(second, flags=1 << 11)), limits)


# Sizes --------------------------------------------------------------------------------------------------------------


def test_too_many_entries_are_refused_before_the_directory_is_read(limits, lean):
    many = raw_zip(*[member(b"images/%d" % index, b"") for index in range(50)])
    few = limits.model_copy(update={"max_archive_entries": 49})
    with pytest.raises(ExpandsTooLarge, match=r"50 entries.*at most 49"):
        pairs_of(many, few)
    with pytest.raises(BadDataset):
        pairs_of(many, limits.model_copy(update={"max_archive_entries": 50}))
    claimed = many[:-22] + struct.pack(
        "<4sHHHHIIH", b"PK\5\6", 0, 0, 65534, 65534, *struct.unpack("<II", many[-10:-2]), 0
    )
    with pytest.raises(ExpandsTooLarge, match="65534"):
        pairs_of(claimed, limits)


def test_a_hundred_thousand_entries_are_refused_before_they_take_memory(limits, lean):
    record = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = record * 100_000
    for count in (1, 10_000, 34_464):  # a count that lies, and one that wrapped at 2^16
        archive = b"PK\3\4" + directory + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), 4, 0)
        with pytest.raises((ExpandsTooLarge, BadArchive)):
            pairs_of(archive, limits)


def test_oversized_zip_directory_is_refused(limits):
    long = raw_zip(*[member(b"%0250d" % index, b"") for index in range(40)], count=1)
    with pytest.raises(ExpandsTooLarge, match="1 entries in a directory of"):
        pairs_of(long, limits.model_copy(update={"max_archive_entries": 1}))


def test_zip64_archives_are_read_and_huge_counts_refused(limits):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("images/a.png", "masks/a.png"):
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(b"data")
    assert pairs_of(buffer.getvalue(), limits) == [("a", b"data", b"data", None)]
    plain = raw_zip(member(b"images/a.png", b"data"), member(b"masks/a.png", b"data"))
    directory, size, start = plain[:-22], *struct.unpack("<II", plain[-10:-2])

    def wide(count: int, size: int, start: int) -> bytes:
        end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(directory), 1)
        return (
            directory
            + end64
            + locator
            + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
        )

    assert [pair[0] for pair in pairs_of(wide(2, size, start), limits)] == ["a"]
    with pytest.raises(ExpandsTooLarge, match="entries"):
        pairs_of(wide(2**62, size, start), limits)
    for lie in (wide(2, 2**62, start), wide(2, size, 2**62), wide(3, size, start), wide(1, size, start)):
        with pytest.raises((BadArchive, ExpandsTooLarge)):
            pairs_of(lie, limits)


def test_compression_ratio_and_total_size_are_checked_in_the_directory(limits, lean):
    zeros = member(b"images/a.png", bytes(10_000_000), method=8)
    with pytest.raises(ExpandsTooLarge, match="200 to 1"):
        pairs_of(raw_zip(zeros), limits)
    noise = random.Random(0).randbytes(1000)
    two = raw_zip(member(b"images/a.png", noise), member(b"masks/a.png", noise))
    assert len(pairs_of(two, limits.model_copy(update={"max_dataset_bytes": 2000}))) == 1
    with pytest.raises(ExpandsTooLarge, match="2000 bytes; at most 1999"):
        pairs_of(two, limits.model_copy(update={"max_dataset_bytes": 1999}))
    with pytest.raises(TooLarge, match="1000 bytes; at most 999"):
        pairs_of(two, limits.model_copy(update={"max_upload_bytes": 999}))


def test_an_entry_that_expands_beyond_what_it_declares_is_stopped(limits, lean):
    """The directory says 100 bytes, the stream holds a gigabyte."""
    deflater = zlib.compressobj(9, wbits=-15)
    packed = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(1024)) + deflater.flush()
    entry = member(b"images/a.png", b"", method=8, size=100, compressed=len(packed)) | {"packed": packed}
    started = time.process_time()
    with pytest.raises(ExpandsTooLarge, match="100 bytes it declares"):
        pairs_of(raw_zip(entry, member(b"masks/a.png")), limits)
    assert time.process_time() - started < 2


def test_an_entry_that_holds_less_than_it_declares_is_refused(limits):
    for entry in (
        member(b"images/a.png", b"data", method=8, size=5),
        member(b"images/a.png", b"data", method=8) | {"packed": b"\xff" * 6},
    ):
        with pytest.raises(BadArchive, match="Entry 0"):
            pairs_of(raw_zip(entry, member(b"masks/a.png")), limits)


# Contradictions -----------------------------------------------------------------------------------------------------


def test_overlapping_entries_are_refused(limits, lean):
    """The quine of 98 kB that declares 50 GB: many directory records point at one stream."""
    kernel = member(b"images/0.png", bytes(2000), method=8)
    overlaps = [kernel] + [
        member(b"images/%d.png" % index, bytes(2000), method=8, header=0) | {"packed": b"", "local_name": b""}
        for index in range(1, 5)
    ]
    with pytest.raises(BadArchive, match="overlaps"):
        pairs_of(raw_zip(*overlaps), limits)
    inside = [member(b"images/0.png", b"A" * 100), member(b"masks/0.png", b"B" * 50, header=20)]
    with pytest.raises(BadArchive, match="overlaps"):
        pairs_of(raw_zip(*inside), limits)


CONTRADICTIONS = {
    "other name in the local header": raw_zip(member(b"images/a.png", local_name=b"images/b.png")),
    "longer local name": raw_zip(member(b"images/a.png", local_name=b"images/a.png2")),
    "stored with two sizes": raw_zip(member(b"images/a.png", b"data", size=3)),
    "data behind the directory": raw_zip(member(b"images/a.png", b"data", compressed=4000, size=4000)),
    "header beyond the end": raw_zip(member(b"images/a.png", header=10**6)),
    "count too high": raw_zip(member(b"images/a.png"), count=2),
    "count too low": raw_zip(member(b"images/a.png"), member(b"b"), count=1),
    "no end record": zip_of({"images/a.png": IMAGE})[:-22],
    "half": zip_of({"images/a.png": IMAGE})[:60],
    "signature only": b"PK\3\4",
    "end record only, cut": b"PK\5\6",
    "directory at the wrong place": raw_zip(member(b"images/a.png"))[:-6] + struct.pack("<IH", 2, 0),
    "directory beyond the end": raw_zip(member(b"images/a.png"))[:-6] + struct.pack("<IH", 9999, 0),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_zip_directory_that_contradicts_the_file_is_refused(kind, limits):
    with pytest.raises(BadArchive):
        pairs_of(CONTRADICTIONS[kind], limits)


def test_archive_comment_is_allowed_and_empty_archive_has_no_pairs(limits):
    assert (
        len(pairs_of(raw_zip(member(b"images/a.png"), member(b"masks/a.png"), comment=b"PK made by hand"), limits)) == 1
    )
    with pytest.raises(BadDataset, match="no pair"):
        pairs_of(raw_zip(), limits)


def test_damaged_archive_is_refused_or_read_correctly(limits, lean):
    whole = zip_of({"images/a.png": IMAGE, "masks/a.png": MASK, "images/b.png": IMAGE, "masks/b.png": MASK})
    expected = pairs_of(whole, limits)
    rng = random.Random(3)
    for number in range(600):
        damaged = bytearray(whole)
        if number % 3 == 0:
            damaged = damaged[: rng.randrange(len(whole))]
        else:
            for _ in range(rng.choice((1, 3))):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            found = pairs_of(bytes(damaged), limits)
        except Problem as problem:
            assert 400 <= problem.status < 500
        else:
            assert [pair[1:3] for pair in found] == [pair[1:3] for pair in expected]


def test_reading_an_archive_holds_one_pair_in_memory(limits, tmp_path, lean):
    path = tmp_path / "large.zip"
    rng = random.Random(0)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(20):
            for kind in ("images", "masks"):
                archive.writestr(f"{kind}/{index}.png", rng.randbytes(4 << 20))
    with open_dataset(path, limits) as dataset:
        assert sum(len(pair.image) + len(pair.mask) for pair in dataset) == 40 * (4 << 20)


def test_damaged_image_in_an_archive_is_reported_as_an_image_error(limits):
    archive = zip_of({"imagesTr/a_0000.nii": nifti()[:-1], "imagesTr/a_0001.nii": nifti(), "labelsTr/a.nii": nifti()})
    with pytest.raises(CorruptImage, match="truncated"):
        pairs_of(archive, limits)


def test_real_folders_zipped_as_they_are_pair_up(data, limits, tmp_path):
    for name, extension in (("dsb2018", ".png"), ("msd_hippocampus", ".nii.gz")):
        path = tmp_path / f"{name}.zip"
        masks = sorted((data(name) / "masks").iterdir())[:3]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(data(name) / "README.md", f"{name}/README.md")
            for mask in masks:
                archive.write(mask, f"{name}/masks/{mask.name}")
                archive.write(data(name) / "images" / mask.name, f"{name}/images/{mask.name}")
        with open_dataset(path, limits) as dataset:
            assert [pair.name for pair in dataset] == [mask.name.removesuffix(extension) for mask in masks]
            for pair, mask in zip(dataset, masks, strict=True):
                assert pair.mask == mask.read_bytes()
                assert decode(pair.image, limits).shape == decode_mask(pair.mask, limits).shape
    assert nibabel.load(masks[0]).shape[::-1] == decode_mask(masks[0], limits).shape


def test_names_as_windows_and_bsdtar_write_them_are_read(limits):
    image = encode_png(np.zeros((4, 4), np.uint8))
    for layout in ("images\\a.png", "./images/a.png", ".\\images\\a.png"):
        names = (layout, layout.replace("images", "masks"))
        with open_dataset(io.BytesIO(raw_zip(*(member(name.encode(), image) for name in names))), limits) as dataset:
            assert [pair.name for pair in dataset] == ["a"]
            assert dataset.pairs[0].image == dataset.pairs[0].mask == image
