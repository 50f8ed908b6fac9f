"""Volumes over HTTP, from upload through training to prediction and pages."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel import orientations
from typer.testing import CliRunner

from app import cli
from app.settings import Settings
from tests.api.test_datasets import upload
from tests.conftest import QUICK
from tests.gateway import Gateway, started
from tests.images import archive
from tests.services import wait_for
from topology.components import betti_numbers
from workers.worker import Worker

SIDES = (24, 32, 28)
"""Planes, rows, columns."""
SPACING = (2.0, 0.5, 0.7)
"""mm between planes, rows and columns."""
NETWORK = {"name": "unet", "dimensions": 3, "channels": [4, 8]}
TRAIN: dict[str, Any] = {
    "kind": "train",
    "dataset": "tubes@1",
    "model": "tubes",
    "network": NETWORK,
    "patch": [16, 24, 20],
    "batch": 2,
    "optimizer": {"lr": 0.05},
    "loss": {
        "terms": [{"name": "cross_entropy"}, {"name": "dice"}, {"name": "betti_matching", "weight": 0.1, "every": 4}],
        "neighbour_penalty": {"window": 3},
    },
    "steps": 50,
    "validate_every": 25,
    "checkpoint_every": 20,
    "best_metric": "dice",
}


def nifti(voxels: np.ndarray) -> bytes:
    """A compressed NIfTI file of (planes, rows, columns)."""
    affine = np.diag([*SPACING[::-1], 1.0])
    return gzip.compress(nibabel.Nifti1Image(np.ascontiguousarray(voxels.T), affine).to_bytes(), 1, mtime=0)


def turned(voxels: np.ndarray) -> bytes:
    """The same volume at the same place, stored from right to left, back to front and from above."""
    move = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt("LPI"))
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti(voxels))).as_reoriented(move)
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def tube(seed: int, sides: tuple[int, ...] = SIDES) -> tuple[np.ndarray, np.ndarray]:
    """(volume, labels) uint8: a ring of tube and a hollow ball, bright on noise. Betti numbers 2, 1, 1."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(sides) - np.array([7, 12, 10 + seed % 3]).reshape(3, 1, 1, 1)
    ring = np.hypot(np.hypot(y, x) - 6, z) < 2
    ball = abs(np.sqrt((z - 10) ** 2 + (y - 10) ** 2 + (x - 7) ** 2) - 4) < 1.1
    labels = (ring | ball).astype(np.uint8)
    return (40 + 160 * labels + rng.integers(0, 40, sides)).astype(np.uint8), labels


def entries(count: int = 6) -> dict[str, bytes]:
    """Files of an archive, paired by name."""
    pairs = [tube(seed) for seed in range(count)]
    return {
        f"{kind}/{number}.nii.gz": nifti(each)
        for number, pair in enumerate(pairs)
        for kind, each in zip(("images", "masks"), pair, strict=True)
    }


def like_nnunet(count: int = 2) -> dict[str, bytes]:
    """The same volumes as nnU-Net lays them out."""
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "tube": 1},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    names = {"images": "imagesTr/{}_0000.nii.gz", "masks": "labelsTr/{}.nii.gz"}
    files = {
        names[kind].format(number.split(".")[0]): content
        for (kind, number), content in ((name.split("/"), each) for name, each in entries(count).items())
    }
    return {"dataset.json": json.dumps(described).encode()} | files


def test_volumes_become_a_dataset_version_with_3d_statistics(gateway: Gateway) -> None:
    version = upload(gateway, archive(entries(2)), "tubes").json()
    assert (version["dimensions"], version["channels"], version["statistics"]["shapes"]) == (3, 1, {"24 x 32 x 28": 2})
    assert version["statistics"]["betti"]["foreground"]["max"] == [2, 1, 1]
    item = gateway.ask("GET", version["links"]["items"]).json()["items"][0]
    assert (item["shape"], item["statistics"]["betti"]) == ([24, 32, 28], {"foreground": [2, 1, 1]})
    stored = gateway.ask("GET", item["links"]["image"]).json()
    assert (stored["format"], stored["dimensions"], stored["spacing_mm"]) == ("nifti_gz", 3, pytest.approx(SPACING))


def test_volumes_in_nnunet_layout_are_accepted(gateway: Gateway) -> None:
    version = upload(gateway, archive(like_nnunet()), "tubes").json()
    assert (version["dimensions"], version["pairs"], version["classes"]) == (3, 2, ["background", "tube"])
    assert version["statistics"]["betti"]["tube"]["min"] == [2, 1, 1]


WRONG = {
    "two sides for a volume": ({"patch": [16, 16]}, "", "patch has 2 sides and the network 3 dimensions"),
    "three sides for a plane": (
        {"network": {"dimensions": 2, "channels": [4]}},
        "",
        "patch has 3 sides and the network 2 dimensions",
    ),
    "a network of planes": (
        {"network": {"dimensions": 2, "channels": [4]}, "patch": [16, 16]},
        "/network/dimensions",
        "tubes@1 holds 3D images and the network is 2D. Set network.dimensions to 3",
    ),
    "four dimensions": ({"network": NETWORK | {"dimensions": 4}}, "/network/dimensions", "2 or 3"),
    "a patch deeper than a volume": (
        {"patch": [32, 24, 20]},
        "/patch",
        "patch is 32 x 24 x 20 and the images of tubes@1 have up to 24 x 32 x 28",
    ),
    "a default patch that is too large": ({"patch": None}, "/patch", "patch is 64 x 64 x 64"),
    "an odd patch": (
        {"patch": [16, 15, 20]},
        "",
        "patch is 16 x 15 x 20; with 2 levels all sides must be multiples of 2",
    ),
    "an odd patch for TCSP": (
        {"patch": [16, 15, 20], "network": {"name": "unet_tcsp", "dimensions": 3, "channels": [4], "iterations": 1}},
        "",
        "multiples of 2",
    ),
    "a batch that fits no device": (
        {"patch": [256, 256, 256], "batch": 5},
        "",
        "has 83886080 voxels; at most 67108864 are accepted",
    ),
    "sweeps that nobody waits for": (
        {"network": NETWORK | {"name": "unet_tcsp"}},
        "/network",
        "in volumes it must be 1",
    ),
    "the published rule of TCSP": (
        {"network": NETWORK | {"name": "unet_tcsp", "iterations": 1, "rule": "published"}},
        "/network",
        "rule is published, which is for images",
    ),
    "the published rule of the CSP loss": (
        {"loss": {"terms": [{"name": "csp_skeleton_loss", "rule": "published"}]}},
        "",
        "csp_skeleton_loss has rule published, which is for images",
    ),
    "two Betti numbers": (
        {"loss": {"terms": [{"name": "betti_prior", "priors": [{"classes": [1], "betti": [2, 1]}]}]}},
        "",
        "in 3 dimensions give 3: components, loops, cavities",
    ),
    "a class that is not there": (
        {"network": NETWORK | {"name": "unet_dictionary", "priors": [{"classes": [2], "betti": [2, 1, 1]}]}},
        "/network/priors",
        "A prior names the class 2; tubes@1 has 1 to 1: foreground",
    ),
    "a class that no term can find": (
        {
            "loss": {
                "terms": [{"name": "dice"}, {"name": "betti_prior", "priors": [{"classes": [7], "betti": [2, 1, 1]}]}]
            }
        },
        "/loss/terms/1/priors",
        "class 7",
    ),
    "a rule between classes where there is one": (
        {"loss": {"terms": [{"name": "dice"}, {"name": "inside", "pairs": [{"subject": 1, "others": [0]}]}]}},
        "/loss/terms/1",
        "tubes@1 has foreground only",
    ),
}


def test_impossible_3d_training_is_refused_with_a_message(gateway: Gateway) -> None:
    upload(gateway, archive(entries(2)), "tubes")
    before, wrong = gateway.count_project(), {}
    for case, (change, pointer, words) in WRONG.items():
        spec = {name: value for name, value in (TRAIN | change).items() if value is not None}
        problem = gateway.ask("POST", "/v1/jobs", json=spec).json()
        if [error["pointer"] for error in problem.get("errors", [])] != [pointer] or words not in problem["errors"][0][
            "detail"
        ]:
            wrong[case] = problem.get("errors", problem)
    assert not wrong and gateway.count_project() == before


def test_cavity_terms_are_refused_for_2d_datasets(gateway: Gateway, bars: Any) -> None:
    cavities = {
        "kind": "train",
        "dataset": "bars@1",
        "model": "bars",
        "patch": [32, 32],
        "loss": {"terms": [{"name": "topology_layer", "dimension": 2}]},
    }
    assert (
        "looks at cavities (2), which only volumes have"
        in gateway.ask("POST", "/v1/jobs", json=cavities).json()["detail"]
    )


def test_volumes_can_be_trained_evaluated_and_predicted_over_http(tmp_path: Path) -> None:
    """The whole way with the real trainer, stopped once and resumed."""
    with started(Settings(_env_file=None, **{**QUICK, "data_dir": tmp_path})) as gateway:
        worker = Worker(gateway.settings)
        try:
            upload(gateway, archive(entries() | {"images/1.nii.gz": turned(tube(1)[0])}), "tubes")
            job = _trained(gateway, worker)
            version = gateway.ask("GET", "/v1/models/tubes/versions/1").json()
            assert version["metrics"] == job["result"]["metrics"] and {
                "beta0_error",
                "beta1_error",
                "beta2_error",
            } <= set(version["metrics"])
            manifest = version["manifest"]
            assert (manifest["dimensions"], manifest["tile"], manifest["verification"]["items"]) == (3, [96, 96, 96], 1)
            assert manifest["verification"]["max_difference"] < 1e-4
            assert (manifest["orientation"], manifest["spacing_mm"]) == ("RAS", pytest.approx(SPACING))
            predicted = _answered(gateway)
            _measured(gateway, worker, predicted)
            _shown(gateway, job, predicted)
            _segmented_by_command(gateway, tmp_path)
        finally:
            worker.stop()
            worker.installation.database.dispose()


def _trained(gateway: Gateway, worker: Worker) -> dict[str, Any]:
    """The job after it was stopped, resumed and ended."""
    link = gateway.ask("POST", "/v1/jobs", json=TRAIN).json()["links"]["self"]
    thread = threading.Thread(target=worker.drain, args=("train",))
    thread.start()
    try:
        wait_for(
            lambda: (gateway.ask("GET", link).json()["progress"]["step"] or 0) >= 1,
            seconds=60,
            what=lambda: gateway.ask("GET", f"{link}/log").text,
        )
        assert gateway.ask("POST", f"{link}/cancel", json={"keep": True}).status_code == 202
    finally:
        thread.join(120)
    stopped = gateway.ask("GET", link).json()
    assert stopped["state"] == "interrupted" and 0 < stopped["progress"]["step"] < TRAIN["steps"], stopped
    assert gateway.ask("POST", f"{link}/resume").status_code == 202
    worker.drain("train")
    job = gateway.ask("GET", link).json()
    assert job["state"] == "succeeded", job["error"]
    log = gateway.ask("GET", f"{link}/log").text
    assert "parameters on 5 images (1 for validation)" in log and "resumed from step" in log
    return job


def _answered(gateway: Gateway) -> dict[str, Any]:
    """The stored prediction of a volume that was not trained on,
    after its mask came as NIfTI and its report as JSON.
    """
    voxels, labels = tube(17, (30, 32, 28))
    ask = {"content": nifti(voxels), "params": {"store": "true", "topology": "true"}}
    kinds = {
        kind: {"Content-Type": "application/gzip", "Accept": kind} for kind in ("application/gzip", "application/json")
    }
    mask = gateway.ask("POST", "/v1/models/tubes/predict", headers=kinds["application/gzip"], content=nifti(voxels))
    assert (mask.status_code, mask.headers["content-type"]) == (200, "application/gzip")
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(mask.content))
    found = np.asarray(image.dataobj).T > 0
    assert found.shape == labels.shape and np.allclose(image.affine, np.diag([*SPACING[::-1], 1.0]))
    assert 2 * (found & (labels > 0)).sum() / (found.sum() + labels.sum()) > 0.6, "it has learnt to see the tube"
    report = gateway.ask("POST", "/v1/models/tubes/predict", headers=kinds["application/json"], **ask).json()
    topology = report["topology"][0]
    assert [topology[f"beta{k}"] for k in range(3)] == list(betti_numbers(found))
    assert (topology["length_unit"], topology["foreground"]) == ("mm", found.sum())
    found[14:17, 1:3, 1:3] = found[1:3, 28:31, 24:27] = (
        True  # a reference with two components more, one of them across the middle plane
    )
    reference = gateway.ask(
        "PUT",
        f"/v1/predictions/{report['id']}/reference",
        content=nifti(found.astype(np.uint8)),
        headers={"Content-Type": "application/gzip"},
    )
    assert reference.status_code == 200
    measured = reference.json()["measurements"][0]
    assert [measured[f"beta{k}_error"] for k in range(3)] == [2, 0, 0]
    return report


def _measured(gateway: Gateway, worker: Worker, predicted: dict[str, Any]) -> None:
    """Evaluation, prediction and analysis by jobs."""
    ids = [
        item["links"]["image"].rsplit("/", 1)[1]
        for item in gateway.ask("GET", "/v1/datasets/tubes/versions/1/items").json()["items"]
    ]
    mask = gateway.ask(
        "POST", "/v1/images", content=nifti(tube(0)[1] * 255), headers={"Content-Type": "application/gzip"}
    ).json()["id"]
    specs = [
        {"kind": "evaluate", "model": "tubes:1", "dataset": "tubes@1"},
        {"kind": "predict", "model": "tubes:1", "images": ids[:2], "expect": "beta0:2,beta1:1,beta2:1"},
        {"kind": "analyse", "images": [mask], "references": [mask]},
    ]
    links = [gateway.ask("POST", "/v1/jobs", json=spec).json()["links"]["self"] for spec in specs]
    worker.drain("quick")
    evaluated, many, analysed = (gateway.ask("GET", link).json() for link in links)
    assert [job["state"] for job in (evaluated, many, analysed)] == ["succeeded"] * 3, (
        evaluated["error"],
        many["error"],
        analysed["error"],
    )
    assert evaluated["result"]["items"] == 6 and {"dice", "beta2_error", "betti_matching_error"} <= set(
        evaluated["result"]["means"]
    )
    assert (many["result"]["items"], many["result"]["failed"]) == (2, [])
    report = analysed["result"]["reports"][0]
    assert [report["topology"][f"beta{k}"] for k in range(3)] == [2, 1, 1] and (
        report["metrics"]["dice"],
        report["metrics"]["beta2_error"],
    ) == (1.0, 0)


def _shown(gateway: Gateway, job: dict[str, Any], predicted: dict[str, Any]) -> None:
    """Every page that speaks of them opens."""
    prediction = f"/predictions/{predicted['id']}"
    pages = [
        f"/jobs/{job['id']}",
        "/models/tubes/versions/1",
        "/datasets/tubes/versions/1",
        prediction,
        "/jobs",
        "/predictions",
        "/images",
        f"/images/{predicted['image']}",
    ]
    for path in pages:
        page = gateway.ask("GET", path, headers={"Accept": "text/html"})
        assert page.status_code == 200, path
    assert "Plane 16 of 30" in gateway.ask("GET", prediction, headers={"Accept": "text/html"}).text
    missing = gateway.ask("GET", f"{prediction}/layers/located.json").json()["errors"]
    assert [(error["kind"], error["size"], len(error["position"])) for error in missing] == [
        ("missing", 18, 3),
        ("missing", 12, 3),
    ]
    assert gateway.ask("GET", f"{prediction}/layers/located.svg").text.count("translate(") == 2, (
        "one place, drawn twice, is in the plane that is shown"
    )
    for name in (
        "mask.png",
        "skeleton.png",
        "reference.png",
        "difference.png",
        "located.svg",
        "located.json",
    ):
        assert gateway.ask("GET", f"{prediction}/layers/{name}").status_code == 200, name
    assert gateway.ask("GET", f"{prediction}/thumbnail.webp").headers["content-type"] == "image/webp"


def _segmented_by_command(gateway: Gateway, folder: Path) -> None:
    """The command writes a mask on the grid of the volume."""
    (folder / "scan.nii.gz").write_bytes(nifti(tube(0)[0]))
    words = [
        "predict",
        "tubes",
        str(folder / "scan.nii.gz"),
        "--out",
        str(folder / "masks"),
        "--url",
        str(gateway.http.base_url),
        "--key",
        gateway.keys["engineer"],
    ]
    told = CliRunner().invoke(cli.app, words)
    assert told.exit_code == 0 and "cavities" in told.output, told.output
    assert nibabel.load(folder / "masks" / "scan.mask.nii.gz").shape == SIDES[::-1]
