"""Exports of annotation tools: COCO, YOLO, CVAT, Label Studio."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import re
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from skimage.measure import points_in_poly

from app.errors import BadDataset, Problem
from app.imaging import decode_mask, encode_png, examine, open_dataset
from app.imaging.annotations import coco, label_studio
from app.imaging.annotations.shapes import Drawn, Labelled, Polygons, Runs, filled, mask_of
from app.protocols.label_studio import run_lengths
from tests.imaging.crafted_files import zip_of

ROWS, COLUMNS = 12, 20
IMAGE = encode_png(np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS))
RECTANGLE = [2, 1, 10, 1, 10, 7, 2, 7]
INNER = [4, 3, 6, 3, 6, 5, 4, 5]
MASK = np.zeros((ROWS, COLUMNS), np.uint8)
MASK[1:7, 2:10], MASK[3:5, 4:6] = 1, 2
"""Tissue with a cell in it: what every export below draws on `a.png`; nothing is drawn on `b.png`."""
RUNS = "052MOO1081I0O0OO10O001100O61I", (7, 9), "110000000110011100100010110110100000100101001000010101010011100"
"""A mask as pycocotools 2.0 packs it, its rows and columns, and its pixels."""


def packed(pixels: np.ndarray) -> list[int]:
    """Runs of 0 and 1 by turns along columns, the first of 0, as COCO counts them."""
    flat = pixels.T.ravel() > 0
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    return [*([0] if flat[0] else []), *np.diff(ends, prepend=0).tolist()]


def coco_of(**changes: Any) -> dict[str, Any]:
    size = {"width": COLUMNS, "height": ROWS}
    return {
        "images": [{"id": 7, "file_name": "a.png", **size}, {"id": 9, "file_name": "b.png", **size}],
        "categories": [{"id": 3, "name": "cell"}, {"id": 1, "name": "tissue"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [INNER], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "segmentation": [RECTANGLE], "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 1, "segmentation": [], "bbox": [0, 0, 3, 3]},
        ],
        **changes,
    }


def yolo_line(kind: int, corners: list[int]) -> str:
    parts = np.array(corners).reshape(-1, 2) / (COLUMNS, ROWS)
    return f"{kind} " + " ".join(f"{value:.6f}" for value in parts.ravel())


def cvat_of(marks: str, *, size: str = f'width="{COLUMNS}" height="{ROWS}"') -> bytes:
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("tissue", "cell"))
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        f"<meta><job><labels>{labels}</labels></job></meta>\n"
        f'<image id="0" name="a.png" {size}>{marks}</image>\n<image id="1" name="b.png" {size}></image>\n</annotations>'
    ).encode()


def cvat_points(corners: list[int]) -> str:
    return ";".join(f"{x}.00,{y}.00" for x, y in zip(corners[::2], corners[1::2], strict=True))


CVAT = (
    f'<polygon label="cell" occluded="0" points="{cvat_points(INNER)}" z_order="1"></polygon>'
    f'<mask label="tissue" rle="0,48" left="2" top="1" width="8" height="6" z_order="0"></mask>'
    '<box label="cell" xtl="0" ytl="0" xbr="3" ybr="3" z_order="0"></box>'
)


def studio_of(*results: dict[str, Any], **task: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
        "annotations": [{"result": list(results)}],
        **task,
    }


def studio_result(kind: str, name: str, **value: Any) -> dict[str, Any]:
    size = {"original_width": COLUMNS, "original_height": ROWS, "image_rotation": 0}
    return {"type": kind, **size, "value": value | {kind: [name]}}


def percent(corners: list[int]) -> list[list[float]]:
    return (np.array(corners).reshape(-1, 2) * 100 / (COLUMNS, ROWS)).tolist()


def brush(pixels: np.ndarray) -> dict[str, Any]:
    return {"format": "rle", "rle": run_lengths(pixels)}


STUDIO = [
    studio_of(
        studio_result("polygonlabels", "cell", points=percent(INNER)),
        studio_result("brushlabels", "tissue", **brush(MASK > 0)),
        studio_result("rectanglelabels", "cell", x=0, y=0, width=10, height=10),
    ),
    {"id": 2, "data": {"image": "/data/upload/1/ffffffff-b.png"}, "annotations": [{"result": []}]},
    {"id": 3, "data": {"image": "/data/upload/1/0a1b2c3e-c.png"}, "annotations": [{"was_cancelled": True}]},
]
YOLO = {
    "labels/a.txt": f"{yolo_line(0, RECTANGLE)}\n{yolo_line(1, INNER)}\n0 0.1 0.1 0.1 0.1\n".encode(),
    "data.yaml": b"path: ../x\nnames:\n  0: tissue\n  1: cell\n",
}
EXPORTS: dict[str, dict[str, bytes]] = {
    "COCO": {"annotations/instances.json": json.dumps(coco_of()).encode()},
    "YOLO": YOLO,
    "CVAT": {"annotations.xml": cvat_of(CVAT)},
    "Label Studio": {"project-1.json": json.dumps(STUDIO).encode(), "images/c.png": IMAGE},
}


def archive_of(files: dict[str, Any]) -> bytes:
    """A zip of files; what is no bytes becomes JSON."""
    return zip_of(
        {
            name: content if isinstance(content, bytes) else json.dumps(content).encode()
            for name, content in files.items()
        }
    )


def exported(files: dict[str, Any]) -> bytes:
    """The same with two images."""
    return archive_of({"images/a.png": IMAGE, "images/b.png": IMAGE} | files)


def masks_of(content: bytes, limits: Any) -> dict[str, np.ndarray | None]:
    with open_dataset(content, limits) as dataset:
        return {pair.name: None if pair.mask is None else decode_mask(pair.mask, limits) for pair in dataset}


@pytest.mark.parametrize("tool", EXPORTS)
def test_every_tool_gives_the_same_mask_of_the_same_drawing(tool: str, limits: Any) -> None:
    with open_dataset(exported(EXPORTS[tool]), limits) as dataset:
        examination = examine(dataset.pairs, limits, dataset.label_map)
        masks = {pair.name: None if pair.mask is None else decode_mask(pair.mask, limits) for pair in dataset}
        assert (dataset.export, dataset.passed, dataset.ignored) == (tool, {"boxes": 1}, [])
    names = examination.classes
    assert sorted(names) == ["background", "cell", "tissue"]
    for number, name in ((1, "tissue"), (2, "cell")):
        np.testing.assert_array_equal(masks["a"] == names.index(name), number == MASK)
    assert masks["b"] is not None and not masks["b"].any()
    assert ("c" in masks, masks.get("c")) == (tool == "Label Studio", None)


def test_a_polygon_holds_the_pixels_whose_centres_it_holds() -> None:
    rng = np.random.default_rng(3)
    for count in (3, 4, 7, 25, 60):
        corners = rng.uniform(-6, 36, (count, 2))  # crossing itself, and beyond the image
        top, left, part = filled([corners], 30, 24)
        found = np.zeros((30, 24), bool)
        found[top : top + part.shape[0], left : left + part.shape[1]] = part
        rows, columns = np.mgrid[:30, :24]
        centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], 1)
        np.testing.assert_array_equal(found.ravel(), points_in_poly(centres, corners))


def test_parts_of_one_annotation_are_joined_and_polygons_without_area_hold_nothing() -> None:
    two = Polygons([np.array([[0, 0], [2, 0], [2, 2], [0, 2.0]]), np.array([[1, 1], [3, 1], [3, 3], [1, 3.0]])])
    top, left, part = two.covered(5, 5)
    assert (top, left, int(part.sum())) == (0, 0, 7)
    for corners in ([], [[1, 1]], [[1, 1], [4, 4]], [[0, 2], [4, 2], [2, 2]], [[9, 9], [12, 9], [9, 12]]):
        assert not Polygons([np.array(corners, float).reshape(-1, 2)]).covered(5, 5)[2].any()


def test_packed_runs_are_what_pycocotools_packs(limits: Any) -> None:
    text, (rows, columns), pixels = RUNS
    expected = np.array(list(pixels), np.uint8).reshape(rows, columns)
    assert coco.unpacked(text) == packed(expected)
    for counts in (text, packed(expected)):
        segmentation = {"counts": counts, "size": [rows, columns]}
        document = coco_of(
            images=[{"id": 1, "file_name": "c.png", "width": columns, "height": rows}],
            annotations=[{"image_id": 1, "category_id": 1, "segmentation": segmentation, "iscrowd": 1}],
        )
        files = {"train.json": document, "images/c.png": encode_png(expected * 9)}
        np.testing.assert_array_equal(masks_of(archive_of(files), limits)["c"], expected)


def test_ellipse_of_cvat_is_turned_clockwise(limits: Any) -> None:
    rows, columns = np.mgrid[:ROWS, :COLUMNS] + 0.5
    for rotation in (0, 90, 30):
        mark = f'<ellipse label="cell" cx="10" cy="6" rx="8" ry="3" rotation="{rotation}" z_order="0"/>'
        mask = masks_of(exported({"annotations.xml": cvat_of(mark)}), limits)["a"]
        angle = np.deg2rad(rotation)
        along = (columns - 10) * np.cos(angle) + (rows - 6) * np.sin(angle)
        beside = (rows - 6) * np.cos(angle) - (columns - 10) * np.sin(angle)
        due = (along / 8) ** 2 + (beside / 3) ** 2 < 1
        assert mask is not None and (mask != due).sum() <= 2, rotation


def test_brushes_of_label_studio_are_unpacked() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (9, 13), (70, 90)):
        for part in (0.0, 0.03, 0.5, 1.0):
            mask = rng.random(shape) < part
            alpha = label_studio.unpacked(bytes(run_lengths(mask)), 4 * mask.size)[3::4]
            np.testing.assert_array_equal(alpha.reshape(shape) > 127, mask)


@pytest.mark.parametrize(
    "yaml", [b"names: [tissue, cell]", b"names: {0: tissue, 1: cell}", b"names:\n- tissue\n- cell\n"]
)
def test_names_of_yolo_are_read_however_they_are_written(yaml: bytes, limits: Any) -> None:
    with open_dataset(exported(YOLO | {"data.yaml": yaml}), limits) as dataset:
        assert dataset.label_map is not None and dataset.label_map.names == ["background", "tissue", "cell"]
    del (without := dict(YOLO))["data.yaml"]
    with open_dataset(exported(without), limits) as dataset:
        assert dataset.label_map is not None and dataset.label_map.names == ["background", "class 0", "class 1"]


def test_splits_come_from_folders_and_file_names(limits: Any) -> None:
    one = coco_of(images=coco_of()["images"][:1])
    files = {
        "train/_annotations.coco.json": one, "valid/_annotations.coco.json": one,
        "train/a.png": IMAGE, "valid/a.png": IMAGE,
    }  # fmt: skip
    with open_dataset(archive_of(files), limits) as dataset:
        assert [(pair.name, pair.split) for pair in dataset] == [("train/a", "train"), ("valid/a", "val")]
    moved = {f"train/{name}": content for name, content in YOLO.items() if name.startswith("labels")}
    with open_dataset(zip_of(moved | {"train/images/a.png": IMAGE, "data.yaml": YOLO["data.yaml"]}), limits) as dataset:
        assert [(pair.name, pair.split) for pair in dataset] == [("train/a", "train")]


def test_masks_beside_an_export_win(limits: Any) -> None:
    files = EXPORTS["COCO"] | {f"masks/{name}.png": encode_png(MASK) for name in "ab"}
    with open_dataset(exported(files), limits) as dataset:
        assert (dataset.export, dataset.ignored) == (None, ["annotations/instances.json"])


def turned(limits: Any) -> bytes:
    size = {"width": ROWS, "height": COLUMNS}
    return exported({"i.json": coco_of(images=[{"id": 7, "file_name": "a.png", **size}])})


def annotation(segmentation: Any, **changes: Any) -> Callable[[Any], bytes]:
    one = {"image_id": 7, "category_id": 1, "segmentation": segmentation} | changes
    return lambda limits: exported({"i.json": coco_of(annotations=[one])})


def yolo(text: str) -> Callable[[Any], bytes]:
    return lambda limits: exported({"labels/a.txt": text.encode()})


def cvat(marks: str = "", **changed: str) -> Callable[[Any], bytes]:
    document = cvat_of(marks).decode()
    for before, after in changed.items():
        document = document.replace({"root": "<annotations>", "version": "1.1", "meta": "</meta>"}[before], after)
    return lambda limits: exported({"annotations.xml": document.encode()})


def studio(*results: dict[str, Any], **task: Any) -> Callable[[Any], bytes]:
    return lambda limits: exported({"p.json": [studio_of(*results, **task)]})


BAD: dict[str, tuple[Callable[[Any], bytes], str]] = {
    "coco other size": (turned, r"says that images/a\.png has 12 x 20 pixels.*the file has 20 x 12"),
    "coco missing image": (
        lambda limits: exported({"i.json": coco_of(images=[{"id": 7, "file_name": "z.png", "width": 1, "height": 1}])}),
        r"names 1 images that are not in the archive.*z\.png",
    ),
    "coco unknown image": (annotation([RECTANGLE], image_id=1000), "Annotation 0 of the COCO export names an image"),
    "coco odd polygon": (annotation([[1, 2, 3]]), "is no list of x, y"),
    "coco infinite polygon": (annotation([[1, 2, 3, 1e300, 4, 5]]), "no pixels"),
    "coco text": (annotation("POLYGON"), "neither polygons nor runs"),
    "coco short runs": (annotation({"counts": [3, 4], "size": [ROWS, COLUMNS]}), "runs of 7 pixels for 20 x 12"),
    "coco negative runs": (annotation({"counts": [300, -60], "size": [ROWS, COLUMNS]}), "runs of 240 pixels"),
    "coco larger runs": (annotation({"counts": [10**9], "size": [31623, 31623]}), "in an image of 20 x 12"),
    "coco packed junk": (annotation({"counts": "~~~", "size": [ROWS, COLUMNS]}), "a character that is none"),
    "coco packed cut": (annotation({"counts": "0P", "size": [ROWS, COLUMNS]}), "cut short"),
    "coco boxes only": (annotation(None, bbox=[0, 0, 1, 1]), "no polygon and no mask, but 1 boxes"),
    "coco without a name": (lambda limits: exported({"i.json": coco_of(categories=[{"id": 1}])}), "without 'name'"),
    "coco twice": (
        lambda limits: exported({"i.json": coco_of(), "j.json": coco_of()}),
        r"images/a\.png stands more than once",
    ),
    "coco list as image": (annotation([RECTANGLE], image_id=[7]), "names an image or a category that is not in it"),
    "coco infinite id": (
        lambda limits: exported({"i.json": json.dumps(coco_of()).replace('"id": 9', '"id": 1e400').encode()}),
        "or with a wrong one",
    ),
    "coco infinite runs": (
        lambda limits: exported(
            {
                "i.json": json.dumps(
                    coco_of(
                        annotations=[
                            {"image_id": 7, "category_id": 1, "segmentation": {"counts": [0.5], "size": [12, 20]}}
                        ]
                    )
                )
                .replace("0.5", "1e400")
                .encode()
            }
        ),
        "neither polygons nor runs",
    ),
    "coco outside": (annotation([[500, 1, 600, 1, 600, 9]]), r"from \(500, 1\) to \(600, 9\) lies outside the 20 x 12"),
    "yolo odd names": (lambda limits: exported(YOLO | {"data.yaml": b"names: {a: tissue}"}), "not numbered 0, 1, 2"),
    "two tools": (lambda limits: exported(EXPORTS["COCO"] | EXPORTS["CVAT"]), "exports of COCO and CVAT"),
    "yolo boxes": (yolo("0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.2"), "2 boxes and no polygon"),
    "yolo pixels": (yolo("0 12 14 100 14 100 50"), r"Line 1 of labels/a\.txt holds 100.*from 0 to 1"),
    "yolo odd": (yolo("\n0 0.1 0.1 0.2 0.2 0.3 0.3 0.4"), r"Line 2 of labels/a\.txt holds 7 numbers"),
    "yolo words": (yolo("vessel 0.1 0.1 0.2 0.2 0.3 0.3"), "is not CLASS x y"),
    "yolo nan": (yolo("0 0.1 0.1 nan 0.2 0.3 0.3"), "from 0 to 1"),
    "yolo class": (yolo("-1 0.1 0.1 0.2 0.2 0.3 0.3"), "names the class -1"),
    "yolo names": (lambda limits: exported(YOLO | {"data.yaml": b"names: [a"}), "not valid YAML"),
    "cvat entity": (cvat(root='<!DOCTYPE a [<!ENTITY b "c">]><annotations>'), "document type"),
    "cvat version": (cvat(version="2.0"), "version '2.0'"),
    "cvat cut": (lambda limits: exported({"a.xml": cvat_of(CVAT)[:-30]}), "not valid XML"),
    "cvat video": (cvat(meta='</meta><track id="0" label="cell"></track>'), "of a video"),
    "cvat mask": (
        cvat('<mask label="cell" rle="1,2" left="0" top="0" width="3" height="3"/>'),
        "runs of 3 pixels for 3 x 3",
    ),
    "cvat outside": (
        cvat('<mask label="cell" rle="0,9" left="19" top="0" width="3" height="3"/>'),
        r"3 x 3 at \(19, 0\) in an image of 20 x 12",
    ),
    "cvat words": (cvat('<polygon label="cell" points="a,b;c,d;e,f"/>'), "no list of x, y"),
    "cvat not a number": (
        lambda limits: exported({"a.xml": cvat_of("", size='width="nan" height="12"')}),
        "does not say `width`",
    ),
    "cvat infinite mask": (
        cvat('<mask label="cell" rle="1,8" left="inf" top="0" width="3" height="3"/>'),
        "does not say `left`",
    ),
    "cvat ellipse": (cvat('<ellipse label="cell" cx="nan" cy="6" rx="8" ry="3"/>'), "does not say `cx`"),
    "cvat no label": (cvat('<polygon points="1,1;2,1;2,2"/>'), "has no label"),
    "studio list": (studio([1, 2]), "not as Label Studio writes it"),  # type: ignore[arg-type]
    "studio brush": (studio(studio_result("brushlabels", "cell", format="rle", rle=[1, 2, 3])), "a brush is cut short"),
    "studio brush of another size": (
        studio(studio_result("brushlabels", "cell", **brush(MASK[:5] > 0))),
        "a brush of 400 values",
    ),
    "studio turned": (
        studio(studio_result("polygonlabels", "cell", points=percent(INNER)) | {"image_rotation": 90}),
        "turned",
    ),
    "studio odd": (studio({"type": "polygonlabels"}), "not as Label Studio writes it"),
    "studio no image": (studio(data={"text": "hello"}), "names 0 images"),
    "studio other size": (
        studio(studio_result("polygonlabels", "cell", points=percent(INNER)) | {"original_width": 99}),
        "has 99 x 12 pixels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_an_export_that_cannot_be_read_is_refused_with_the_reason(case: str, limits: Any) -> None:
    make, words = BAD[case]
    with pytest.raises(BadDataset, match=words):
        masks_of(make(limits), limits)


def test_shapes_as_large_as_the_image_are_drawn_one_at_a_time() -> None:
    """Sixty of them would be 60 MB at once; too many are refused before any is drawn."""
    side = 1000
    whole = Runs([0, side * side], (0, 0, side, side), by_rows=False)
    image = Labelled("a.png", None, [Drawn("cell", whole)] * 60)
    tracemalloc.start()
    assert mask_of(image, ["cell"], side, side).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15_000_000
    image.drawn = image.drawn and image.drawn * 100
    with pytest.raises(BadDataset, match="6000 shapes fill 6000000000 pixels"):
        mask_of(image, ["cell"], side, side)


ODD: tuple[Any, ...] = (None, True, -1, 0, 1e400, float("nan"), 10**30, "", "1e9", [], {}, [[]], [1], {"a": 1}, "\0")


def places(document: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a document."""
    yield place
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield from places(value, (*place, key))


def put(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at a place."""
    if not place:
        return value
    changed = copy.copy(document)
    changed[place[0]] = put(document[place[0]], place[1:], value)
    return changed


@pytest.mark.parametrize("tool", ["COCO", "Label Studio", "CVAT"])
def test_any_value_in_any_place_is_read_or_refused(tool: str, limits: Any) -> None:
    rng = random.Random(7)
    if tool == "CVAT":
        text = cvat_of(CVAT).decode()
        spans = [match.span() for match in re.finditer('"[^"]*"', text)]
        words = ("", "nan", "inf", "-1", "1e30", "x", "9" * 40, "1,2,3", ";")
        made = [text[:start] + f'"{word}"' + text[end:] for start, end in spans for word in words]
        files = [{"annotations.xml": each.encode()} for each in made]
    else:
        document = coco_of() if tool == "COCO" else STUDIO
        files = [{"i.json": put(document, place, value)} for place in places(document) for value in ODD]
    for each in rng.sample(files, min(len(files), 500)):
        with contextlib.suppress(Problem):
            masks_of(exported(each), limits)


def test_other_documents_are_no_exports(limits: Any) -> None:
    others = {"a.json": b"[1, 2", "b.json": b'{"images": 3}', "c.xml": b"<a/>", "labels/x.txt": b"hi"}
    for name, content in others.items():
        with pytest.raises(BadDataset, match="have no mask"):
            masks_of(exported({name: content}), limits)


def test_a_png_of_the_mask_opens_elsewhere(limits: Any) -> None:
    with open_dataset(exported(EXPORTS["COCO"]), limits) as dataset:
        (first, *_) = dataset.pairs
        assert np.array_equal(np.asarray(Pillow.open(io.BytesIO(first.mask or b""))) > 0, MASK > 0)
