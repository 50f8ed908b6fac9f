"""Label maps, dataset statistics and file name labels."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tifffile
from hypothesis import given, strategies as st
from PIL import Image

from app.errors import BadDataset, CorruptImage, MaskMismatch, UnknownLabel
from app.imaging import (
    IGNORE,
    LabelMap,
    Pair,
    decode,
    decode_labels,
    encode_nifti_gz,
    encode_png,
    encode_tiff,
    examine,
    open_dataset,
    plain_name,
    to_index,
)
from app.imaging.labels import value_counts
from app.imaging.masks import Here, class_indexes
from app.settings import Settings
from tests.imaging.crafted_files import zip_of


def grid(picture: str, **values: int) -> np.ndarray:
    """A uint8 mask from a drawing; `.` is 0 and `#` 255 unless said otherwise."""
    key = {".": 0, "#": 255} | values
    return np.array([[key[letter] for letter in row.strip()] for row in picture.split()], np.uint8)


STRIPE = grid("""
    .##.
    .##.
    .##. """)


# Label maps ---------------------------------------------------------------------------------------------------------


def test_class_of_value_zero_makes_other_values_background():
    index, names = to_index(STRIPE, LabelMap.parse({"membrane": 0}))
    assert names == ["background", "membrane"]
    np.testing.assert_array_equal(index, [[1, 0, 0, 1]] * 3)
    assert index.dtype == np.uint8


def test_values_may_share_a_class_or_mean_ignore():
    mask = np.array([[0, 10, 20], [30, 255, 0]], np.uint16)
    map_ = LabelMap.parse({"vessel": [10, 20], "disc": 30}, ignore=255)
    index, names = to_index(mask, map_)
    assert names == ["background", "vessel", "disc"]
    np.testing.assert_array_equal(index, [[0, 1, 1], [2, IGNORE, 0]])
    assert map_.ignore_index == IGNORE and LabelMap.parse({"a": 1}).ignore_index is None
    assert LabelMap.parse({"vessel": [10, 20], "disc": 30, "ignore": 255}) == map_


def test_a_map_that_names_the_background_refuses_values_it_does_not_list():
    mask = np.array([[0, 1, 7, 7]], np.uint8)
    with pytest.raises(UnknownLabel, match="value 7 in 2 pixels"):
        to_index(mask, LabelMap.parse({"background": 0, "vessel": 1}))
    assert to_index(mask, LabelMap.parse({"vessel": 1}))[0].tolist() == [[0, 1, 0, 0]]


def test_multiclass_map_has_background_zero_unless_zero_is_a_class():
    assert LabelMap.parse({"a": 1, "b": 2}).background == (0,)
    assert LabelMap.parse({"a": 0, "b": 2}).background is None
    assert LabelMap.parse({"a": 1, "b": 2, "ignore": 0}).background is None
    with pytest.raises(UnknownLabel):
        to_index(np.array([[0, 1, 2, 3]], np.uint8), LabelMap.parse({"a": 1, "b": 2}))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32"])
def test_label_lookup_accepts_every_integer_type_and_keeps_its_input(dtype):
    mask = np.array([[0, 3, 9], [9, 3, 0]], dtype)
    mask.flags.writeable = False
    index, _ = to_index(mask[:, ::-1], LabelMap.parse({"a": 9, "b": 3}))
    np.testing.assert_array_equal(index, [[1, 2, 0], [0, 2, 1]])


def test_negative_and_large_values_can_be_classes():
    index, _ = to_index(np.array([[-1, 70000, 0]], np.int32), LabelMap.parse({"a": -1, "b": 70000}))
    assert index.tolist() == [[1, 2, 0]]


INFERRED = {
    (0, 255): ["background", "foreground"],
    (0, 1): ["background", "foreground"],
    (0, 128): ["background", "foreground"],
    (0,): ["background", "foreground"],
    (255,): ["background", "foreground"],
    (1,): ["background", "foreground"],
    (0, 1, 2): ["background", "class_1", "class_2"],
    (1, 2): ["background", "class_1", "class_2"],
    (0, 1, 2, 3): ["background", "class_1", "class_2", "class_3"],
}


@pytest.mark.parametrize("values", INFERRED)
def test_unambiguous_values_need_no_label_map(values):
    map_ = LabelMap.infer(values)
    assert map_.names == INFERRED[values] and map_.strict
    index, _ = to_index(np.array([values]), map_)
    assert (index[0] > 0).tolist() == [value != 0 for value in values]


@pytest.mark.parametrize("values", [(0, 1, 255), (0, 1, 3), (0, 127, 255), (2, 3), (7,), (-1, 0, 1), tuple(range(65))])
def test_ambiguous_values_need_a_label_map(values):
    with pytest.raises(UnknownLabel, match=r"(?i)post (a|the) label map"):
        LabelMap.infer(values)


@pytest.mark.parametrize(
    "posted",
    [
        {},
        {"ignore": 255},
        {"background": "others"},
        {"a": "others", "b": "others"},
        {"a": "> 5", "b": 2},
        {"a": "#ff000"},
        {"a": "> x"},
        {"a": 1, "b": 1},
        {"a": [1, 2], "b": [2]},
        {"a": 1, "ignore": 1},
        {"a": []},
        {"a": True},
        {"a": "1"},
        {"a": 1.0},
        {"a": None},
        {f"c{n}": n for n in range(1, 66)},
    ],
)
def test_an_impossible_label_map_is_refused(posted):
    with pytest.raises(BadDataset):
        LabelMap.parse(posted)


VALUES = st.lists(st.integers(-5, 300), min_size=1, max_size=3)


@given(st.dictionaries(st.text(min_size=1, max_size=5), VALUES | st.integers(-5, 300), min_size=1, max_size=6))
def test_a_label_map_survives_json(posted):
    try:
        map_ = LabelMap.parse(posted)
    except BadDataset:
        return
    assert LabelMap.parse(json.loads(json.dumps(map_.as_dict()))) == map_


@given(st.lists(st.integers(-3, 70000), min_size=1, max_size=30))
def test_values_are_counted_as_numpy_counts_them(values):
    for dtype in ("int32", *(["uint16"] if min(values) >= 0 and max(values) < 65536 else [])):
        counts = value_counts(np.array([values], dtype))
        assert counts == {value: values.count(value) for value in sorted(set(values))}


# Datasets -----------------------------------------------------------------------------------------------------------


def pair(
    name: str, mask: np.ndarray, image: np.ndarray | None = None, split: str | None = None, group: str | None = None
) -> Pair:
    image = (
        np.random.default_rng(abs(hash(name)) % 2**32).integers(0, 255, mask.shape).astype(np.uint8)
        if image is None
        else image
    )
    encoded = (
        (encode_png(image), encode_png(mask)) if mask.ndim == 2 else (encode_nifti_gz(image), encode_nifti_gz(mask))
    )
    return Pair(name, split, lambda: encoded[0], lambda: encoded[1], group)


RING = np.kron(
    grid("""
    .....
    .###.
    .#.#.
    .###.
    ..... """),
    np.ones((4, 4), np.uint8),
)


def test_dataset_statistics_are_per_image_and_total(limits):
    found = examine(
        [pair("ring", RING, split="train", group="p1"), pair("stripe", np.kron(STRIPE, np.ones((4, 4), np.uint8)))],
        limits,
    )
    assert (found.classes, found.channels, found.dimensions, found.label_map.as_dict()) == (
        ["background", "foreground"],
        1,
        2,
        {"background": 0, "foreground": 255},
    )
    ring, stripe = found.items
    assert (ring.name, ring.split, ring.group) == ("ring", "train", "p1")
    assert ring.picture == {"shape": [20, 20], "channels": 1, "dtype": "uint8", "spacing_mm": None}
    assert ring.statistics["pixels"] == {"background": 272, "foreground": 128}
    assert ring.statistics["betti"] == {"foreground": [1, 1]} and stripe.statistics["betti"] == {"foreground": [1, 0]}
    assert ring.statistics["fg_fraction"] == pytest.approx(0.32)
    whole = found.statistics
    assert (whole["pairs"], whole["splits"], whole["shapes"]) == (
        2,
        {"train": 1, "undecided": 1},
        {"20 x 20": 1, "12 x 16": 1},
    )
    assert whole["pixels"] == {"background": 272 + 96, "foreground": 128 + 96}
    assert whole["fg_fraction"] == pytest.approx(224 / 592)
    assert whole["betti"] == {"foreground": {"mean": [1, 0.5], "min": [1, 0], "max": [1, 1]}}
    assert found.warnings == []
    json.dumps([whole, [item.statistics for item in found.items]], allow_nan=False)


def test_islands_and_holes_below_ten_pixels_get_a_warning(limits):
    mask = np.zeros((40, 40), np.uint8)
    mask[0, :9] = 255  # 9 pixels: tiny
    mask[3, :10] = 255  # 10 pixels: not
    mask[10:30, 10:30] = 255
    mask[12, 12:21] = 0  # a hole of 9
    mask[20, 12:22] = 0  # a hole of 10
    found = examine([pair("a", mask)], limits)
    assert {(warning["code"], warning["detail"].split()[0], warning["item"]) for warning in found.warnings} == {
        ("tiny_islands", "1", "a"),
        ("tiny_holes", "1", "a"),
    }
    assert found.items[0].statistics["betti"] == {"foreground": [3, 2]}


def test_small_cavities_of_a_volume_are_counted_as_holes(limits):
    mask = np.full((7, 7, 7), 1, np.uint8)
    mask[0] = mask[-1] = 0
    mask[3, 3, 3] = 0
    found = examine([pair("v", mask)], limits)
    assert found.items[0].statistics["betti"] == {"foreground": [1, 0, 1]}
    assert found.items[0].picture["spacing_mm"] == [1.0, 1.0, 1.0] and found.dimensions == 3
    assert [warning["code"] for warning in found.warnings] == ["tiny_holes"]


def test_empty_full_constant_and_duplicate_images_get_a_warning(limits):
    flat = np.full((8, 8), 3, np.uint8)
    empty, full = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    found = examine([pair("a", empty, flat), pair("b", full, flat)], limits)
    codes = [(warning["code"], warning["item"]) for warning in found.warnings]
    assert codes == [
        ("empty_mask", "a"),
        ("constant_image", "a"),
        ("full_mask", "b"),
        ("constant_image", "b"),
        ("duplicate_image", "b"),
    ]
    assert "that of a" in found.warnings[-1]["detail"]


def test_label_map_is_inferred_from_all_masks(limits):
    masks = [np.zeros((8, 8), np.uint8), np.full((8, 8), 1, np.uint8), np.full((8, 8), 2, np.uint8)]
    found = examine([pair(str(number), mask) for number, mask in enumerate(masks)], limits)
    assert found.classes == ["background", "class_1", "class_2"]
    assert [item.statistics["pixels"] for item in found.items] == [
        {"background": 64, "class_1": 0, "class_2": 0},
        {"background": 0, "class_1": 64, "class_2": 0},
        {"background": 0, "class_1": 0, "class_2": 64},
    ]


def test_unlisted_values_get_a_warning_or_are_refused_depending_on_the_map(limits):
    mask = np.full((20, 20), 255, np.uint8)
    mask[:, :10] = 0
    mask[0, 12:14] = (254, 3)
    found = examine([pair("a", mask)], limits, LabelMap.parse({"membrane": 0}))
    (stray,) = [warning for warning in found.warnings if warning["code"] == "stray_values"]
    assert (
        "Beside 255, the masks hold 2 values" in stray["detail"]
        and "254 in 1 pixels" in stray["detail"]
        and stray["item"] is None
    )
    clean = examine([pair("a", np.where(mask > 0, 255, 0).astype(np.uint8))], limits, LabelMap.parse({"membrane": 0}))
    assert not clean.warnings
    with pytest.raises(UnknownLabel, match=r"^a: .*value 3 in 1 pixels"):
        examine([pair("a", mask)], limits, LabelMap.parse({"background": 255, "membrane": 0}))


def test_unlabelled_pixels_are_not_counted(limits):
    mask = np.zeros((10, 10), np.uint8)
    mask[:5] = 1
    mask[5:, :5] = 255
    found = examine([pair("a", mask)], limits, LabelMap.parse({"background": 0, "a": 1, "ignore": 255}))
    assert found.items[0].statistics["ignored"] == 25 == found.statistics["ignored"]
    assert found.items[0].statistics["fg_fraction"] == pytest.approx(50 / 75) == found.statistics["fg_fraction"]


def test_a_mask_of_another_size_names_the_pair_and_both_sizes(limits):
    wrong = pair("eye", STRIPE, np.arange(20, dtype=np.uint8).reshape(4, 5))
    with pytest.raises(MaskMismatch, match="eye: The image is 4 x 5 and its mask 3 x 4"):
        examine([wrong], limits)


def test_images_of_different_kinds_are_refused(limits):
    grey = pair("grey", STRIPE)
    color = Pair("color", None, lambda: encode_png(np.stack([STRIPE] * 3)), lambda: encode_png(STRIPE))
    volume = pair("volume", np.stack([STRIPE] * 2))
    for others in ([grey, color], [grey, volume]):
        with pytest.raises(BadDataset, match="such as grey"):
            examine(others, limits)
    with pytest.raises(BadDataset, match="no pairs"):
        examine([], limits)


def test_a_damaged_image_is_named(limits):
    broken = Pair("left eye", None, lambda: encode_png(STRIPE)[:-9], lambda: encode_png(STRIPE))
    with pytest.raises(CorruptImage, match=r"^left eye: "):
        examine([broken], limits)


def test_statistics_of_real_masks_equal_their_manifest(data, limits):
    import csv

    for name, map_ in (("isbi12", {"membrane": 0}), ("chase_db1", {"vessel": 255})):
        rows = {
            row["file"]: row
            for row in csv.DictReader((data(name) / "manifest.csv").read_text().splitlines())
            if row["role"] == "mask"
        }
        masks = sorted((data(name) / "masks").iterdir())[:3]
        images = {path.stem: path for path in (data(name) / "images").iterdir()}
        pairs = [Pair(mask.stem, None, images[mask.stem].read_bytes, mask.read_bytes) for mask in masks]
        for item, mask in zip(examine(pairs, limits, LabelMap.parse(map_)).items, masks, strict=True):
            row = rows[f"masks/{mask.name}"]
            assert "/".join(map(str, *item.statistics["betti"].values())) == row["betti"]
            assert item.statistics["fg_fraction"] == pytest.approx(float(row["fg_fraction"]), abs=1e-4)


def test_uploaded_archive_can_be_examined_directly(limits):
    archive = zip_of({"images/a.png": encode_png(RING), "masks/a.tif": encode_tiff((RING > 0).astype(np.float32))})
    with open_dataset(archive, limits) as dataset:
        found = examine(dataset, limits, dataset.label_map)
    assert found.items[0].statistics["betti"] == {"foreground": [1, 1]}


# Names --------------------------------------------------------------------------------------------------------------

NAMES = {
    "scan.png": "scan.png",
    "../../etc/passwd": "passwd",
    "C:\\temp\\a.png": "a.png",
    ".hidden": "hidden",
    "...": "image",
    "": "image",
    None: "image",
    "a\r\nSet-Cookie: x.png": "aSet-Cookie: x.png",
    "\u202egnp.exe": "gnp.exe",
    "con": "_con",
    "CON.png": "_CON.png",
    "com1.txt": "_com1.txt",
    "console.png": "console.png",
    " a b .png ": "a b .png",
    "a\0b.png": "ab.png",
    "<img onerror=alert(1)>.png": "<img onerror=alert(1)>.png",
    "e\u0301.png": "\u00e9.png",
    "\ud800.png": "png",
    "images/": "image",
}


@pytest.mark.parametrize("sent", NAMES)
def test_a_file_name_becomes_a_plain_label(sent):
    assert plain_name(sent) == NAMES[sent]


@given(
    st.text(st.characters(codec="utf-8"), max_size=600) | st.text(min_size=1, max_size=3).map(lambda text: text * 300)
)
def test_a_label_is_short_visible_and_no_path(sent):
    name = plain_name(sent)
    assert 1 <= len(name.encode()) <= 255 and "/" not in name and "\\" not in name and not name.startswith(".")
    assert not any(ord(letter) < 32 for letter in name)


def test_a_long_name_keeps_its_extension():
    assert plain_name("ä" * 4000 + ".nii.gz").endswith("ä.gz")
    assert len(plain_name("a" * 4000).encode()) == 255


# What masks mean that are not plain numbers --------------------------------------------------------------------------


def test_all_but_zero_is_one_class_of_numbered_objects():
    objects = np.arange(100).reshape(10, 10)
    for posted in ({"background": 0}, {"background": 0, "cell": "others"}, {"cell": "others"}):
        map_ = LabelMap.parse(posted)
        index, names = to_index(objects, map_)
        assert names == ["background", "cell" if "cell" in posted else "foreground"]
        assert index.tolist() == (objects > 0).astype(int).tolist()
        assert LabelMap.parse(map_.as_dict()) == map_


def test_objects_beside_a_value_that_is_not_labelled():
    index, _ = to_index(
        np.array([[0, 7, 300, 255]]), LabelMap.parse({"background": 0, "cell": "others", "ignore": 255})
    )
    assert index.tolist() == [[0, 1, 1, IGNORE]]


def test_colours_are_classes(limits):
    painted = np.zeros((2, 3, 3), np.uint8)
    painted[0, 1], painted[1, 2], painted[0, 0] = (128, 0, 0), (255, 255, 255), (0, 0, 128)
    encoded = encode_png(np.moveaxis(painted, -1, 0))
    map_ = LabelMap.parse({"background": "#000000", "cat": "#800000", "edge": ["#ffffff", "#000080"]})
    assert LabelMap.parse(map_.as_dict()) == map_
    expected = [[2, 1, 0], [0, 0, 2]]
    labels = decode_labels(encoded, limits, colours=True).pixels[0]
    assert to_index(labels, map_)[0].tolist() == expected
    grey = encode_png(np.full((3, 1, 2), 255, np.uint8))  # white alone is read as grey, and means the same
    assert to_index(decode_labels(grey, limits, colours=True).pixels[0], map_)[0].tolist() == [[2, 2]]
    with pytest.raises(UnknownLabel, match="#800000"):
        LabelMap.infer(np.unique(labels).tolist())


def test_a_threshold_reads_blurred_masks(limits):
    blurred = np.array([[0, 3, 120, 130, 255]], np.uint8)
    map_ = LabelMap.thresholded(LabelMap.parse({"vessel": 255}), 127.5)
    assert map_.as_dict() == {"vessel": "> 127.5"} and LabelMap.parse(map_.as_dict()) == map_
    assert class_indexes(Here(limits), encode_png(blurred), map_, decode(encode_png(blurred), limits)).tolist() == [
        [0, 0, 0, 1, 1]
    ]
    nearly = encode_tiff(np.array([[0, 0.9999, 1]], np.float32))
    with pytest.raises(MaskMismatch, match="fractions"):
        decode_labels(nearly, limits)
    assert decode_labels(nearly, limits, above=0.5).pixels[0].tolist() == [[0, 1, 1]]
    with pytest.raises(BadDataset, match="one class"):
        LabelMap.thresholded(LabelMap.parse({"a": 1, "b": 2}), 0.5)


def test_single_bits_are_the_one_that_a_label_map_lists(limits):
    shape = np.zeros((8, 8), bool)
    shape[2:5, 2:5] = True
    for encoded in (encode_tiff(shape), one_bit_tiff(shape)):
        for posted in ({"a": 1}, {"a": 255}, {"background": 0, "a": 1}):
            like = decode(encoded, limits)
            index = class_indexes(Here(limits), encoded, LabelMap.parse(posted), like)
            assert (index == shape).all(), posted


def test_masks_of_two_kinds_are_told_the_map_that_loses_nothing():
    with pytest.raises(UnknownLabel, match=r"\[1, 255\]"):
        LabelMap.infer({0: 100, 1: 10, 255: 10})


def test_lossy_values_are_told_the_threshold():
    values = {0: 900, 1: 30, 2: 11, 7: 5, 120: 2, 250: 20, 254: 40, 255: 300}
    with pytest.raises(UnknownLabel, match=r"lossy.*mask_threshold=127\.5"):
        LabelMap.infer(values)
    with pytest.raises(UnknownLabel, match="Numbers of objects"):
        LabelMap.infer(dict.fromkeys(range(100), 50))


def labelled(*masks: np.ndarray, images: list[np.ndarray] | None = None) -> set[str]:
    """Codes of the warnings about the dataset as a whole."""
    noise = np.random.default_rng(0)
    images = images or [noise.integers(0, 255, mask.shape, dtype=np.uint8) for mask in masks]
    pairs = [pair(f"case {n}", mask, image) for n, (mask, image) in enumerate(zip(masks, images, strict=True))]
    return {each["code"] for each in examine(pairs, Settings()).warnings if each["item"] is None}


def test_what_is_odd_about_a_whole_dataset_is_told():
    square = np.zeros((24, 24), np.uint8)
    square[4:12, 4:12] = 1
    assert labelled(square, square.T.copy(), square[::-1].copy()) == set()
    assert labelled(square * 0, square * 0) == {"no_foreground"}
    assert labelled(square, square * 2, square) == {"rare_class"}
    numbers = (np.arange(24)[:, None] // 6 * 4 + np.arange(24) // 6).astype(np.uint8)
    assert labelled(numbers, numbers) == {"object_numbers"}
    noise = np.random.default_rng(1).integers(0, 255, (24, 24), dtype=np.uint8)
    assert labelled(square, square, images=[noise, noise.astype(np.uint16) * 257]) == {"mixed_depths"}
    found = examine([pair("a", square, noise)], Settings(), channel_names=["a", "b"])
    assert [each["code"] for each in found.warnings] == ["channel_names"]


def test_a_mask_that_exif_did_not_turn_with_its_image_is_told(limits):
    square = np.zeros((24, 24), np.uint8)
    square[4:12, 4:12] = 255
    found = examine([Pair("a", None, lambda: turned_jpeg(square, 3), lambda: encode_png(square))], limits)
    assert [each["code"] for each in found.warnings] == ["exif_turned"]
    wide = np.pad(square, ((0, 0), (0, 8)))
    with pytest.raises(MaskMismatch, match="EXIF turns the image and not the other"):
        examine([Pair("a", None, lambda: turned_jpeg(wide, 6), lambda: encode_png(wide))], limits)


def turned_jpeg(pixels: np.ndarray, orientation: int) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(pixels)
    described = picture.getexif()
    described[0x112] = orientation
    picture.save(buffer, "jpeg", exif=described)
    return buffer.getvalue()


def one_bit_tiff(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, mask, metadata=None)
    return buffer.getvalue()
