"""Analyses over HTTP: topology of masks, comparison with references, refusals."""

from __future__ import annotations

import io
import os
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from app import imaging
from app.imaging.foreground import foreground
from tests.gateway import Gateway
from tests.images import drawing, png

LADDER = drawing("""
    ..............
    .############.
    .############.
    .##....##..##.
    .##....##..##.
    .############.
    .############.
    .............. """)
BROKEN = drawing("""
    ..............
    .############.
    .############.
    .##........##.
    .##........##.
    .############.
    .############.
    ............#. """)


def analyse(
    gateway: Gateway,
    content: bytes,
    query: str = "",
    role: str | None = "clinician",
    path: str = "/v1/analyses",
    media: str = "image/png",
) -> Any:
    return gateway.ask("POST", f"{path}?{query}", role, content=content, headers={"Content-Type": media})


def shown(answer: Any) -> np.ndarray:
    return np.asarray(Pillow.open(io.BytesIO(answer.content))) > 0


def tiff(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array)
    return file.getvalue()


def test_analysis_needs_the_predict_scope(gateway: Gateway) -> None:
    for path in ("/v1/analyses", "/v1/analyses/skeleton", "/v1/analyses/simple-points"):
        statuses = {
            role: analyse(gateway, png(LADDER), role=role, path=path).status_code
            for role in (None, "viewer", "operator", "clinician")
        }
        assert statuses == {None: 401, "viewer": 403, "operator": 403, "clinician": 200}, path


def test_a_ladder_has_one_component_two_loops_and_a_skeleton_as_long_as_its_branches(gateway: Gateway) -> None:
    answer = analyse(gateway, png(LADDER))
    report = answer.json()
    topology = report["topology"]
    assert (topology["beta0"], topology["beta1"], topology["euler"], topology["foreground"]) == (
        1,
        2,
        -1,
        int(LADDER.sum()),
    )
    assert topology["components"] == [
        {"size": int(LADDER.sum()), "box": [[1, 1], [7, 13]], "roundness": topology["roundness"]}
    ]
    assert 0 < topology["roundness"] < 0.5
    assert (
        len(report["skeleton"]["branches"]) == topology["branches"]
        and len(report["skeleton"]["nodes"]) == topology["branch_points"] + topology["end_points"]
    )
    assert abs(sum(branch["length"] for branch in report["skeleton"]["branches"]) - topology["skeleton_length"]) < 1e-9
    assert report["persistence"]["counts"] == [1, 2] and report["persistence"]["bars"][0]["death"] is None
    assert (report["shape"], report["image"], report["comparison"], topology["length_unit"]) == (
        [8, 14],
        None,
        None,
        "px",
    )
    assert {"decode", "skeleton", "topology", "persistence"} <= {
        part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")
    }


def test_a_branch_runs_from_node_to_node_with_its_length_and_its_radius(gateway: Gateway) -> None:
    tee = drawing("""
        .........
        .#######.
        ....#....
        ....#....
        ....#....
        ......... """)
    skeleton = analyse(gateway, png(tee)).json()["skeleton"]
    middle = next(node["position"] for node in skeleton["nodes"] if node["degree"] == 3)
    assert sorted(node["position"] for node in skeleton["nodes"] if node["degree"] == 1) == [[1, 1], [1, 7], [4, 4]]
    assert sorted(
        place for branch in skeleton["branches"] for place in (branch["start"], branch["end"]) if place != middle
    ) == [[1, 1], [1, 7], [4, 4]]
    assert all(
        2 <= branch["length"] < 4 and branch["radius"] == pytest.approx(1, abs=0.5) for branch in skeleton["branches"]
    )


def test_layers_preserve_topology_and_mark_removable_points(gateway: Gateway) -> None:
    skeleton, simple = (
        shown(analyse(gateway, png(LADDER), path="/v1/analyses/skeleton")),
        shown(analyse(gateway, png(LADDER), path="/v1/analyses/simple-points")),
    )
    of_skeleton = analyse(gateway, png(skeleton)).json()["topology"]
    assert (
        (of_skeleton["beta0"], of_skeleton["beta1"]) == (1, 2)
        and (skeleton <= LADDER).all()
        and skeleton.sum() < LADDER.sum()
    )
    assert simple.sum() == analyse(gateway, png(LADDER)).json()["simple_points"] > 0
    row, column = np.argwhere(simple)[0]
    without = LADDER.copy()
    without[row, column] = False
    less = analyse(gateway, png(without)).json()["topology"]
    assert (less["beta0"], less["beta1"]) == (1, 2)


def test_reference_adds_all_metrics_and_error_locations(gateway: Gateway) -> None:
    report = gateway.ask(
        "POST", "/v1/analyses", files={"image": ("a.png", png(BROKEN)), "reference": ("b.png", png(LADDER))}
    ).json()
    compared = report["comparison"]
    metrics = compared["metrics"]
    both = int((BROKEN & LADDER).sum())
    assert metrics["dice"] == pytest.approx(2 * both / (BROKEN.sum() + LADDER.sum()))
    assert (metrics["beta0_error"], metrics["beta1_error"], metrics["betti_matching_error"]) == (0, 1, 1)
    assert compared["error_count"] == 1 and compared["errors"][0]["kind"] == "break"
    assert compared["errors"][0]["box"] == [[3, 7], [5, 9]] and compared["errors"][0]["size"] == 4
    assert len(compared["metric_digest"]) == 16 and compared["metric_spec"]["connectivity"] == "closed"
    same = gateway.ask(
        "POST",
        "/v1/analyses",
        files={"image": ("a.png", png(LADDER)), "reference": ("b.tif", tiff(LADDER.astype(np.uint8)))},
    ).json()["comparison"]
    assert (same["metrics"]["dice"], same["metrics"]["beta1_error"], same["errors"]) == (1.0, 0, [])


def test_map_is_thresholded_and_its_persistence_reported(gateway: Gateway) -> None:
    values = np.where(LADDER, 0.9, 0.2).astype(np.float32)
    values[3:5, 7:9] = 0.4
    for content, media in (
        (tiff(values), "image/tiff"),
        (png((values * 255).astype(np.uint8)), "image/png"),
        (tiff((values * 65535).astype(np.uint16)), "image/tiff"),
    ):
        loops = {
            threshold: analyse(gateway, content, f"threshold={threshold}", media=media).json()["topology"]["beta1"]
            for threshold in (0.3, 0.5)
        }
        bars = analyse(gateway, content, media=media).json()["persistence"]["bars"]
        assert loops == {0.3: 2, 0.5: 1}
        assert sorted(
            (bar["dimension"], round(bar["birth"], 1), bar["death"] and round(bar["death"], 1)) for bar in bars
        ) == [(0, 0.9, None), (1, 0.4, 0.2), (1, 0.9, 0.2)]


def test_a_mask_is_foreground_whatever_its_value_and_a_label_picks_one_of_several(gateway: Gateway) -> None:
    classes = np.where(LADDER, 2, 0).astype(np.uint8)
    assert analyse(gateway, png(classes)).json()["topology"]["beta1"] == 2
    classes[0] = 1
    assert analyse(gateway, png(classes)).json()["topology"]["foreground"] == 0
    assert analyse(gateway, png(classes), "label=2").json()["topology"]["beta1"] == 2
    inside = analyse(gateway, png(LADDER), "label=0").json()["topology"]
    assert (inside["beta0"], inside["foreground"]) == (3, int((~LADDER).sum()))


@pytest.mark.parametrize(
    "dtype, value", [(np.uint8, 1), (np.uint8, 255), (np.uint16, 7), (np.int16, 3), (np.float32, 1.0)]
)
def test_binary_masks_of_every_pixel_type_are_read(dtype: Any, value: float) -> None:
    mask = imaging.Picture((LADDER * value).astype(dtype)[None], "tiff")
    assert (foreground(mask, 0.5) == LADDER).all()
    assert not foreground(imaging.Picture(np.zeros((1, 4, 4), dtype), "tiff"), 0.5).any()


def test_stored_images_are_analysed_by_their_ids(gateway: Gateway) -> None:
    ids = [
        gateway.ask("POST", "/v1/images", content=png(mask), headers={"Content-Type": "image/png"}).json()["id"]
        for mask in (BROKEN, LADDER)
    ]
    report = gateway.ask("POST", "/v1/analyses", json={"image": ids[0], "reference": ids[1]}).json()
    assert (report["image"], report["reference"], report["comparison"]["metrics"]["beta1_error"]) == (*ids, 1)
    before = gateway.count_project()
    for body in ({"image": str(uuid.uuid4())}, {"image": ids[0], "reference": str(uuid.uuid4())}):
        assert gateway.ask("POST", "/v1/analyses", json=body).status_code == 404
    assert gateway.ask("POST", "/v1/analyses", "stranger", json={"image": ids[0]}).status_code == 404
    wrong = gateway.ask("POST", "/v1/analyses", json={"image": ids[0], "referense": None})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/referense")
    assert gateway.count_project() == before


def graph_of(gateway: Gateway, content: bytes, accept: str, media: str = "image/png") -> Any:
    headers = {"Content-Type": media, "Accept": accept}
    return gateway.ask("POST", "/v1/analyses/skeleton", "clinician", content=content, headers=headers)


def test_the_graph_of_a_skeleton_comes_as_json_and_as_graphml_with_the_same_figures(gateway: Gateway) -> None:
    tee = np.zeros((40, 61), np.uint8)
    tee[3:8, 2:59] = tee[3:36, 28:33] = 255
    report = analyse(gateway, png(tee)).json()
    graph = graph_of(gateway, png(tee), "application/json").json()
    assert graph["length_unit"] == "px" and graph["length"] == pytest.approx(report["topology"]["skeleton_length"])
    assert sorted(node["degree"] for node in graph["nodes"]) == [1, 1, 1, 3]
    assert len(graph["branches"]) == 3
    for branch in graph["branches"]:
        assert {graph["nodes"][branch[end]]["degree"] for end in ("source", "target")} == {1, 3}
        assert branch["width"] == pytest.approx(5, abs=1) and branch["width"] == pytest.approx(2 * branch["radius"] - 1)
    answer = graph_of(gateway, png(tee), "application/graphml+xml")
    assert answer.headers["content-type"] == "application/graphml+xml"
    names = {"g": "http://graphml.graphdrawing.org/xmlns"}
    root = ET.fromstring(answer.content)
    edges, nodes = root.findall(".//g:edge", names), root.findall(".//g:node", names)
    data = [{each.get("key"): float(each.text or "nan") for each in edge.findall("g:data", names)} for edge in edges]
    keys = ("length", "radius", "width")
    assert data == [{key: branch[key] for key in keys} for branch in graph["branches"]]
    places = {node.get("id"): [int(each.text or -1) for each in node.findall("g:data", names)] for node in nodes}
    assert [[*node["position"], node["degree"]] for node in graph["nodes"]] == list(places.values())
    assert {edge.get(end) for edge in edges for end in ("source", "target")} == set(places)


def test_a_ring_is_a_closed_branch_and_a_form_that_nothing_has_is_refused(gateway: Gateway) -> None:
    ring = np.zeros((9, 9), np.uint8)
    ring[2:7, 2:7] = 255
    ring[4, 4] = 0
    (branch,) = graph_of(gateway, png(ring), "application/json").json()["branches"]
    assert branch["source"] is None and branch["target"] is None and branch["length"] > 4
    root = ET.fromstring(graph_of(gateway, png(ring), "application/graphml+xml").content)
    (edge,) = (each for each in root.iter() if each.tag.endswith("}edge"))
    assert edge.get("source") == edge.get("target") == "curve0"
    assert graph_of(gateway, png(ring), "text/csv").status_code == 406
    empty = graph_of(gateway, png(np.zeros((5, 5), np.uint8)), "application/json").json()
    assert (empty["nodes"], empty["branches"], empty["length"]) == ([], [], 0)


def test_a_volume_has_cavities_and_its_skeleton_is_a_volume_with_its_spacing(gateway: Gateway) -> None:
    volume = np.zeros((7, 8, 9), np.uint8)
    volume[1:6, 1:6, 1:6] = 1
    volume[3, 3, 3] = 0
    content = imaging.encode_nifti_gz(volume, np.diag([0.5, 1.0, 2.0, 1.0]))
    report = analyse(gateway, content, media="application/gzip").json()
    assert (report["topology"]["beta0"], report["topology"]["beta1"], report["topology"]["beta2"]) == (1, 0, 1)
    assert (report["shape"], report["spacing_mm"], report["topology"]["length_unit"]) == (
        [7, 8, 9],
        [2.0, 1.0, 0.5],
        "mm",
    )
    layer = analyse(gateway, content, media="application/gzip", path="/v1/analyses/skeleton")
    again = imaging.decode(layer.content, gateway.settings)
    assert (
        layer.headers["content-type"] == "application/gzip"
        and again.shape == (7, 8, 9)
        and again.spacing_mm == (2.0, 1.0, 0.5)
    )


def test_invalid_analysis_is_refused_with_its_own_message_and_stores_nothing(gateway: Gateway) -> None:
    nan = np.full((8, 8), np.nan, np.float32)
    cases: dict[str, tuple[Any, int, str]] = {
        "nothing": (analyse(gateway, b""), 415, "unsupported_image"),
        "a text": (analyse(gateway, b"hello, I am not an image"), 415, "unsupported_image"),
        "a text by its type": (analyse(gateway, b"hello", media="text/plain"), 415, "unsupported_image"),
        "a truncated image": (analyse(gateway, png(LADDER)[:60]), 422, "corrupt_image"),
        "a photograph": (
            analyse(gateway, png(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))),
            422,
            "unsupported_color",
        ),
        "NaN": (analyse(gateway, tiff(nan), media="image/tiff"), 422, "non_finite"),
        "a threshold of two": (analyse(gateway, png(LADDER), "threshold=2"), 422, "invalid"),
        "a threshold of NaN": (analyse(gateway, png(LADDER), "threshold=nan"), 422, "invalid"),
        "a misspelt option": (analyse(gateway, png(LADDER), "treshold=0.5"), 422, "invalid"),
        "more than is analysed at once": (analyse(gateway, png(np.zeros((4097, 4096), bool))), 413, "too_many_pixels"),
        "a reference alone": (
            gateway.ask("POST", "/v1/analyses", files={"reference": ("a.png", png(LADDER))}),
            422,
            "invalid",
        ),
        "a reference of another size": (
            gateway.ask(
                "POST", "/v1/analyses", files={"image": ("a.png", png(LADDER)), "reference": ("b.png", png(LADDER[1:]))}
            ),
            422,
            "mask_mismatch",
        ),
        "not JSON": (
            gateway.ask("POST", "/v1/analyses", content=b"{", headers={"Content-Type": "application/json"}),
            400,
            "invalid_json",
        ),
    }
    assert {case: (answer.status_code, answer.json()["code"]) for case, (answer, _, _) in cases.items()} == {
        case: (status, code) for case, (_, status, code) in cases.items()
    }
    assert (
        "8 x 14" in cases["a reference of another size"][0].json()["detail"]
        and "7 x 14" in cases["a reference of another size"][0].json()["detail"]
    )
    assert {name: count for name, count in gateway.count_project().items() if count} == {}


def test_lists_are_truncated_but_totals_are_complete(gateway: Gateway) -> None:
    dots = np.zeros((128, 128), bool)
    dots[::3, ::3] = True
    report = analyse(gateway, png(dots)).json()
    assert report["topology"]["beta0"] == dots.sum() == 43 * 43
    assert (
        len(report["topology"]["components"]),
        len(report["persistence"]["bars"]),
        report["persistence"]["counts"],
    ) == (1000, 1000, [43 * 43, 0])


def test_a_real_fundus_mask_has_the_betti_numbers_of_its_manifest(gateway: Gateway) -> None:
    folder = Path(os.environ.get("TOPOSERVE_DATA_SHARED", Path(__file__).parents[2] / "../shared/data")) / "chase_db1"
    if not folder.exists():
        pytest.skip(f"{folder} holds the real images; set TOPOSERVE_DATA_SHARED to the folder that has chase_db1/")
    rows = [line.split(",") for line in (folder / "manifest.csv").read_text().splitlines()]
    row = dict(zip(rows[0], next(row for row in rows if row[5] == "mask"), strict=False))
    topology = analyse(gateway, (folder / row["file"]).read_bytes()).json()["topology"]
    assert f"{topology['beta0']}/{topology['beta1']}" == row["betti"]


@pytest.mark.parametrize("path", ["/v1/analyses/skeleton", "/v1/analyses/simple-points"])
def test_a_reference_is_refused_where_nothing_is_compared(gateway: Gateway, path: str) -> None:
    stored = gateway.upload(png(LADDER)).json()["id"]
    by_name = gateway.ask("POST", path, "clinician", json={"image": stored, "reference": stored})
    assert by_name.status_code == 422 and "reference" in by_name.text
    form = {"image": ("mask.png", png(LADDER)), "reference": ("reference.png", b"[")}
    as_files = gateway.ask("POST", path, "clinician", files=form)
    assert as_files.status_code == 422 and "one of another name" in as_files.json()["detail"]
    assert gateway.ask("POST", path, "clinician", json={"image": stored}).status_code == 200
