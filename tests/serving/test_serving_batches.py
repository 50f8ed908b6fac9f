"""Predictions that are not waited for: a batch of images through a job, one image through `Prefer: respond-async`, and what comes out of them."""

from __future__ import annotations

import csv
import io
import json
import uuid
import zipfile

import numpy as np
import pytest
import tifffile

from app import imaging
from app.serving.pipeline import Predictor
from app.store.tables import Image, Job, Prediction
from tests.serving import networks
from tests.serving.conftest import noise, png
from topology.components import betti_numbers
from workers.worker import Worker


@pytest.fixture(scope="module")
def worker(world):
    worker = Worker(world)
    yield worker
    worker.stop()
    worker.installation.database.dispose()


@pytest.fixture
def upload(gateway):
    def send(content, name="scan.png"):
        return gateway.upload(content, "application/octet-stream", "clinician", params={"name": name}).json()["id"]

    return send


@pytest.fixture
def run(gateway, worker):
    """Submit a predict job, run it, and give it back as the API shows it."""

    def run(who="engineer", **spec):
        answer = gateway.ask("POST", "/v1/jobs", who, json={"kind": "predict"} | spec)
        assert answer.status_code == 202, answer.text
        worker.drain("quick")
        return gateway.ask("GET", answer.headers["location"], "viewer").json()

    return run


def table(gateway, job):
    answer = gateway.ask("GET", job["links"]["table"], "viewer")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/csv; charset=utf-8", answer.text
    return list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))


def archive(gateway, job):
    answer = gateway.ask("GET", job["links"]["masks"], "viewer")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    found = zipfile.ZipFile(io.BytesIO(answer.content))
    assert found.testzip() is None
    return found


def one(gateway, table, row_id):
    with gateway.database.read() as session:
        return session.get_one(table, uuid.UUID(str(row_id)))


def damage(gateway, sha256):
    path = gateway.blobs.local_path(gateway.project_id, sha256, verify=False)
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def bright(*shape, seed=0):
    """A PNG of noise without dark pixels."""
    return imaging.encode_png(np.maximum(noise(*shape, seed=seed), 20))


def five_channels():
    file = io.BytesIO()
    tifffile.imwrite(file, noise(32, 32, 5), photometric="minisblack", planarconfig="contig")
    return file.getvalue()


DARK_IS_NAN = {"scaling": {"kind": "dataset", "mean": [10.0], "std": [255.0]}, "multiple": 8}
"""For the square root of the scaled image: NaN where a pixel is darker than 10."""


# A batch ------------------------------------------------------------------------------------------------------------


def test_no_bad_image_fails_a_batch_and_each_says_what_is_wrong_with_it(gateway, registered, upload, worker, monkeypatch):
    registered("dark", networks.not_a_number(), **DARK_IS_NAN)
    good, other, broken, gone, odd = (upload(bright(32, 40 + 8 * (seed == 5), seed=seed)) for seed in (1, 2, 3, 4, 5))
    tiny, five, dark = upload(bright(4, 4)), upload(five_channels(), "five.tiff"), upload(png(32, 40))
    damage(gateway, one(gateway, Image, broken).sha256)
    real = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda self, picture, **rest: 1 / 0 if picture.shape == (32, 48) else real(self, picture, **rest))
    job = gateway.ask("POST", "/v1/jobs", "engineer", json={"kind": "predict", "model": "dark", "images": [good, tiny, five, dark, broken, gone, odd, other]}).json()
    assert gateway.ask("DELETE", f"/v1/images/{gone}").status_code == 204
    early = [gateway.ask("GET", job["links"][name], "viewer") for name in ("table", "masks")]
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in early] == [(409, "1")] * 2
    worker.drain("quick")
    job = gateway.ask("GET", f"/v1/jobs/{job['id']}", "viewer").json()
    assert (job["state"], job["progress"]["fraction"], job["result"]["items"]) == ("succeeded", 1.0, 2)
    codes = {each["image"]: each["code"] for each in job["result"]["failed"]}
    assert codes == {tiny: "image_too_small", five: "model_input", dark: "model_non_finite", broken: "blob_corrupt", gone: "not_found", odd: "internal"}
    listed = table(gateway, job)
    assert [row["image"] for row in listed] == [good, other, tiny, five, dark, broken, gone, odd]
    assert {row["image"]: row["problem"] for row in listed if row["problem"]} == codes
    assert all(row["detail"].endswith(".") and row["model"] == "dark:1" for row in listed if row["problem"]) and listed[-2]["name"] == ""
    assert sorted(archive(gateway, job).namelist()) == sorted([f"masks/{good}.png", f"masks/{other}.png", "results.csv"])
    assert "ZeroDivisionError" not in gateway.ask("GET", job["links"]["log"], "viewer").text


def test_the_table_has_the_topology_of_every_class_and_the_archive_its_masks(gateway, registered, upload, run):
    registered("bands", networks.bands(3), classes=("background", "wall", "lumen"))
    images = [upload(png(24, 32, seed=seed), f"scan {seed}, left.png") for seed in range(3)]
    job = run(model="bands", images=images)
    listed, found = table(gateway, job), archive(gateway, job)
    assert [(row["image"], row["class"]) for row in listed] == [(image, name) for image in images for name in ("wall", "lumen")]
    assert listed[0]["name"] == "scan 0, left.png" and {row["model"] for row in listed} == {"bands:1"}
    for row in listed:
        labels = imaging.decode_mask(found.read(row["mask"]), gateway.settings)
        beta0, beta1 = betti_numbers(labels == ("wall", "lumen").index(row["class"]) + 1)
        assert (int(row["beta0"]), int(row["beta1"]), int(row["euler"]), row["beta2"]) == (beta0, beta1, beta0 - beta1, "")
        assert float(row["skeleton_length"]) > 0 and row["length_unit"] == "px" and row["problem"] == ""
    assert list(csv.DictReader(io.StringIO(found.read("results.csv").decode(), newline=""))) == listed
    prediction = gateway.ask("GET", f"/v1/predictions/{listed[0]['prediction']}", "viewer").json()
    assert prediction["job"] == job["id"] and prediction["topology"][0]["beta0"] == int(listed[0]["beta0"])


def test_a_volume_comes_as_nifti_and_has_cavities(gateway, registered, upload, run):
    registered("blur3d", networks.blur_3d(), dimensions=3)
    image = upload(imaging.encode_nifti_gz(noise(8, 16, 12), np.diag([0.5, 0.5, 2.0, 1.0])), "ct.nii.gz")
    job = run(model="blur3d", images=[image])
    (row,) = table(gateway, job)
    assert row["mask"] == f"masks/{image}.nii.gz" and row["length_unit"] == "mm" and int(row["beta2"]) >= 0
    mask = imaging.decode_mask(archive(gateway, job).read(row["mask"]), gateway.settings)
    assert mask.shape == (8, 16, 12)


@pytest.mark.parametrize("name", ["=cmd|' calc'!A0", "+1", "-1+1", "@SUM(A1)", "＝1"])
def test_no_cell_is_a_formula(gateway, registered, upload, run, name):
    registered("through", networks.through(), scaling=networks.PLAIN)
    lattice = np.full((24, 32), 255, np.uint8)
    lattice[2::4, 2::4] = 0
    (row,) = table(gateway, run(model="through", images=[upload(imaging.encode_png(lattice), name)]))
    assert row["name"] == "'" + name
    assert row["euler"] == "-47", "a negative number stays a number"


def test_a_mask_that_was_damaged_is_left_out_of_the_archive_and_its_row_says_so(gateway, registered, upload, run):
    registered("blur", networks.blur())
    images = [upload(png(24, 32, seed=seed)) for seed in range(2)]
    job = run(model="blur", images=images)
    damage(gateway, one(gateway, Prediction, table(gateway, job)[0]["prediction"]).artifacts["mask"]["sha256"])
    found = archive(gateway, job)
    assert found.namelist() == [f"masks/{images[1]}.png", "results.csv"]
    first, second = csv.DictReader(io.StringIO(found.read("results.csv").decode(), newline=""))
    assert (first["mask"], first["problem"], second["problem"]) == ("", "blob_corrupt", "")


def test_a_batch_is_held_to_what_was_expected_and_repaired(gateway, registered, upload, run):
    registered("blur", networks.blur())
    image = upload(png(24, 32))
    plain = run(model="blur", images=[image, upload(png(24, 32, seed=1))])
    count = int(table(gateway, plain)[0]["beta0"])
    judged = run(model="blur", images=[image], expect=f"beta0:{count + 1}")
    assert table(gateway, judged)[0]["expectation"] == "violated"
    strict = run(model="blur", images=[image, upload(png(24, 32, seed=1))], expect="beta0:999", strict=True)
    assert strict["state"] == "succeeded" and {each["code"] for each in strict["result"]["failed"]} == {"expectation_violated"}
    (row,) = table(gateway, run(model="blur", images=[image], expect="beta0:1", repair=True))
    assert (row["beta0"], row["expectation"]) == ("1", "satisfied") and int(row["edit_count"]) > 0
    stored = gateway.ask("GET", f"/v1/predictions/{row['prediction']}", "viewer").json()
    assert stored["repair"]["certified"] and stored["timings_ms"]["repair"] > 0
    mask = imaging.decode_mask(gateway.ask("GET", stored["artifacts"]["mask"]["href"], "viewer").content, gateway.settings)
    assert betti_numbers(mask > 0)[0] == 1
    margins = run(model="blur", images=[image], margins=True, topology=False)
    assert gateway.ask("GET", margins["links"]["prediction"], "viewer").json()["topology"][0]["margins"]["features"]


def test_a_job_of_one_image_ends_as_its_image_does(gateway, registered, upload, run):
    registered("dark", networks.not_a_number(), **DARK_IS_NAN)
    image = upload(png(24, 32), "dark.png")
    job = run(model="dark", images=[image])
    assert (job["state"], job["error"]["code"]) == ("failed", "model_non_finite") and "prediction" not in job["links"]
    (row,) = table(gateway, job)
    assert (row["image"], row["name"], row["problem"], row["detail"]) == (image, "dark.png", "model_non_finite", job["error"]["detail"])
    assert archive(gateway, job).namelist() == ["results.csv"]


@pytest.mark.parametrize(
    "spec, pointer, words",
    [
        ({"strict": True}, "", "strict insists"),
        ({"repair_margin": 0.1}, "", "repair_margin decides"),
        ({"expect": "beta0:1", "repair": True, "repair_margin": 0.1}, "", "repair_margin decides"),
        ({"expect": "beta0:one"}, "/expect", "whole number"),
        ({"expect": "beta2:1"}, "/expect", "beta0, beta1, euler"),
        ({"expect": "bone.beta0:1"}, "/expect", "there is wall, lumen"),
        ({"threshold": 0.4}, "/threshold", "3 classes apart"),
    ],
)
def test_what_could_not_be_answered_is_refused_when_it_is_sent(gateway, registered, upload, spec, pointer, words):
    registered("bands", networks.bands(3), classes=("background", "wall", "lumen"))
    answer = gateway.ask("POST", "/v1/jobs", "engineer", json={"kind": "predict", "model": "bands", "images": [upload(png(24, 32))]} | spec)
    problem = answer.json()
    assert (answer.status_code, problem["code"], [each["pointer"] for each in problem["errors"]]) == (422, "invalid", [pointer]), problem
    assert words in problem["errors"][0]["detail"]


def test_only_a_predict_job_of_ones_own_project_has_results(gateway, registered, upload, run):
    registered("blur", networks.blur())
    image = upload(png(24, 32))
    job = run(model="blur", images=[image])
    assert gateway.ask("GET", job["links"]["table"], "stranger").status_code == 404
    analysed = gateway.ask("POST", "/v1/jobs", "engineer", json={"kind": "analyse", "images": [image]}).json()
    answer = gateway.ask("GET", f"/v1/jobs/{analysed['id']}/results.csv", "viewer")
    assert answer.status_code == 404 and "analyse job" in answer.json()["detail"]
    gateway.ask("POST", f"/v1/jobs/{analysed['id']}/cancel", "engineer")
