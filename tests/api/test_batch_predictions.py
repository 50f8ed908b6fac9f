"""Batch predictions by jobs, and single predictions with `Prefer: respond-async`."""

from __future__ import annotations

import csv
import io
import uuid
import zipfile

import numpy as np
import pytest
import tifffile

from app import imaging
from app.representations import results
from app.serving.pipeline import Predictor
from app.store.tables import Image, Job, Prediction
from tests.images import noise, noise_png
from tests.serving import networks
from topology.components import betti_numbers
from workers.worker import Worker


@pytest.fixture(scope="module")
def worker(module_settings):
    worker = Worker(module_settings)
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


def test_bad_images_do_not_fail_a_batch_and_each_gets_its_error(gateway, registered, upload, worker, monkeypatch):
    monkeypatch.setattr(results, "ROWS", 4)
    registered("dark", networks.not_a_number(), **DARK_IS_NAN)
    good, other, broken, gone, odd = (upload(bright(32, 40 + 8 * (seed == 5), seed=seed)) for seed in (1, 2, 3, 4, 5))
    tiny, five, dark = upload(bright(4, 4)), upload(five_channels(), "five.tiff"), upload(noise_png(32, 40))
    damage(gateway, one(gateway, Image, broken).sha256)
    real = Predictor.predict
    monkeypatch.setattr(
        Predictor,
        "predict",
        lambda self, picture, **rest: 1 / 0 if picture.shape == (32, 48) else real(self, picture, **rest),
    )
    job = gateway.ask(
        "POST",
        "/v1/jobs",
        "engineer",
        json={"kind": "predict", "model": "dark", "images": [good, tiny, five, dark, broken, gone, odd, other]},
    ).json()
    assert gateway.ask("DELETE", f"/v1/images/{gone}").status_code == 409, "a queued job needs it"
    with gateway.database.write() as session:  # what a restored backup may lack
        session.delete(session.get_one(Image, uuid.UUID(gone)))
    early = [gateway.ask("GET", job["links"][name], "viewer") for name in ("table", "masks")]
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in early] == [(409, "1")] * 2
    worker.drain("quick")
    job = gateway.ask("GET", f"/v1/jobs/{job['id']}", "viewer").json()
    assert (job["state"], job["progress"]["fraction"], job["result"]["items"]) == ("succeeded", 1.0, 2)
    codes = {each["image"]: each["code"] for each in job["result"]["failed"]}
    assert codes == {
        tiny: "image_too_small",
        five: "model_input",
        dark: "model_non_finite",
        broken: "blob_corrupt",
        gone: "not_found",
        odd: "internal",
    }
    listed = table(gateway, job)
    assert [row["image"] for row in listed] == [good, other, tiny, five, dark, broken, gone, odd]
    assert {row["image"]: row["problem"] for row in listed if row["problem"]} == codes
    assert (
        all(row["detail"].endswith(".") and row["model"] == "dark:1" for row in listed if row["problem"])
        and listed[-2]["name"] == ""
    )
    assert sorted(archive(gateway, job).namelist()) == sorted(
        [f"masks/{good}.png", f"masks/{other}.png", "results.csv"]
    )
    assert "ZeroDivisionError" not in gateway.ask("GET", job["links"]["log"], "viewer").text


def test_table_has_topology_per_class_and_archive_has_masks(gateway, registered, upload, run, monkeypatch):
    monkeypatch.setattr(results, "ROWS", 2)  # three images are two pages
    registered("bands", networks.bands(3), classes=("background", "wall", "lumen"))
    images = [upload(noise_png(24, 32, seed=seed), f"scan {seed}, left.png") for seed in range(3)]
    job = run(model="bands", images=images)
    listed, found = table(gateway, job), archive(gateway, job)
    assert [(row["image"], row["class"]) for row in listed] == [
        (image, name) for image in images for name in ("wall", "lumen")
    ]
    assert listed[0]["name"] == "scan 0, left.png" and {row["model"] for row in listed} == {"bands:1"}
    for row in listed:
        labels = imaging.decode_mask(found.read(row["mask"]), gateway.settings)
        beta0, beta1 = betti_numbers(labels == ("wall", "lumen").index(row["class"]) + 1)
        assert (int(row["beta0"]), int(row["beta1"]), int(row["euler"]), row["beta2"]) == (
            beta0,
            beta1,
            beta0 - beta1,
            "",
        )
        assert float(row["skeleton_length"]) > 0 and row["length_unit"] == "px" and row["problem"] == ""
    assert list(csv.DictReader(io.StringIO(found.read("results.csv").decode(), newline=""))) == listed
    page = gateway.ask("GET", f"/jobs/{job['id']}", "viewer").text
    assert all(f'href="{job["links"][name]}"' in page for name in ("table", "masks"))
    prediction = gateway.ask("GET", f"/v1/predictions/{listed[0]['prediction']}", "viewer").json()
    assert prediction["job"] == job["id"] and prediction["topology"][0]["beta0"] == int(listed[0]["beta0"])


def test_volume_result_is_nifti_and_counts_cavities(gateway, registered, upload, run):
    registered("blur3d", networks.blur_3d(), dimensions=3)
    image = upload(imaging.encode_nifti_gz(noise(8, 16, 12), np.diag([0.5, 0.5, 2.0, 1.0])), "ct.nii.gz")
    job = run(model="blur3d", images=[image])
    (row,) = table(gateway, job)
    assert row["mask"] == f"masks/{image}.nii.gz" and row["length_unit"] == "mm" and int(row["beta2"]) >= 0
    mask = imaging.decode_mask(archive(gateway, job).read(row["mask"]), gateway.settings)
    assert mask.shape == (8, 16, 12)


@pytest.mark.parametrize("name", ["=cmd|' calc'!A0", "+1", "-1+1", "@SUM(A1)", "\uff1d1"])
def test_csv_cells_are_never_formulas(gateway, registered, upload, run, name):
    registered("through", networks.through(), scaling=networks.PLAIN)
    lattice = np.full((24, 32), 255, np.uint8)
    lattice[2::4, 2::4] = 0
    (row,) = table(gateway, run(model="through", images=[upload(imaging.encode_png(lattice), name)]))
    assert row["name"] == "'" + name
    assert row["euler"] == "-47", "a negative number stays a number"


def test_damaged_mask_is_left_out_of_the_archive_and_noted_in_its_row(gateway, registered, upload, run):
    registered("blur", networks.blur())
    images = [upload(noise_png(24, 32, seed=seed)) for seed in range(2)]
    job = run(model="blur", images=images)
    damage(gateway, one(gateway, Prediction, table(gateway, job)[0]["prediction"]).artifacts["mask"]["sha256"])
    found = archive(gateway, job)
    assert found.namelist() == [f"masks/{images[1]}.png", "results.csv"]
    first, second = csv.DictReader(io.StringIO(found.read("results.csv").decode(), newline=""))
    assert (first["mask"], first["problem"], second["problem"]) == ("", "blob_corrupt", "")


def test_archive_is_streamed_whatever_the_size_of_its_masks(gateway, registered, upload, run):
    registered("blur", networks.blur())
    image = upload(noise_png(24, 32))
    job = run(model="blur", images=[image])
    large = np.random.default_rng(0).bytes(6 << 20)
    sha256, size = gateway.blobs.put(gateway.project_id, large)
    with gateway.database.write() as session:
        row = session.get_one(Prediction, uuid.UUID(job["result"]["prediction"]))
        row.artifacts = {"mask": {"sha256": sha256, "bytes": size, "media_type": "image/png"}}
    pieces = list(results.archive(gateway.services, one(gateway, Job, job["id"])))
    assert max(map(len, pieces)) < (1 << 20) + 4096 and len(pieces) >= 8
    assert zipfile.ZipFile(io.BytesIO(b"".join(pieces))).read(f"masks/{image}.png") == large


def test_batch_checks_expectations_and_repairs(gateway, registered, upload, run):
    registered("blur", networks.blur())
    image = upload(noise_png(24, 32))
    plain = run(model="blur", images=[image, upload(noise_png(24, 32, seed=1))])
    count = int(table(gateway, plain)[0]["beta0"])
    judged = run(model="blur", images=[image], expect=f"beta0:{count + 1}")
    assert table(gateway, judged)[0]["expectation"] == "violated"
    strict = run(model="blur", images=[image, upload(noise_png(24, 32, seed=1))], expect="beta0:999", strict=True)
    assert strict["state"] == "succeeded" and {each["code"] for each in strict["result"]["failed"]} == {
        "expectation_violated"
    }
    (row,) = table(gateway, run(model="blur", images=[image], expect="beta0:1", repair=True))
    assert (row["beta0"], row["expectation"]) == ("1", "satisfied") and int(row["edit_count"]) > 0
    stored = gateway.ask("GET", f"/v1/predictions/{row['prediction']}", "viewer").json()
    assert stored["repair"]["certified"] and stored["timings_ms"]["repair"] > 0
    mask = imaging.decode_mask(
        gateway.ask("GET", stored["artifacts"]["mask"]["href"], "viewer").content, gateway.settings
    )
    assert betti_numbers(mask > 0)[0] == 1
    margins = run(model="blur", images=[image], margins=True, topology=False)
    assert gateway.ask("GET", margins["links"]["prediction"], "viewer").json()["topology"][0]["margins"]["features"]


def test_job_of_one_image_has_the_outcome_of_that_image(gateway, registered, upload, run):
    registered("dark", networks.not_a_number(), **DARK_IS_NAN)
    image = upload(noise_png(24, 32), "dark.png")
    job = run(model="dark", images=[image])
    assert (job["state"], job["error"]["code"]) == ("failed", "model_non_finite") and "prediction" not in job["links"]
    (row,) = table(gateway, job)
    assert (row["image"], row["name"], row["problem"], row["detail"]) == (
        image,
        "dark.png",
        "model_non_finite",
        job["error"]["detail"],
    )
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
def test_unanswerable_batch_is_refused_at_submission(gateway, registered, upload, spec, pointer, words):
    registered("bands", networks.bands(3), classes=("background", "wall", "lumen"))
    answer = gateway.ask(
        "POST",
        "/v1/jobs",
        "engineer",
        json={"kind": "predict", "model": "bands", "images": [upload(noise_png(24, 32))]} | spec,
    )
    problem = answer.json()
    assert (answer.status_code, problem["code"], [each["pointer"] for each in problem["errors"]]) == (
        422,
        "invalid",
        [pointer],
    ), problem
    assert words in problem["errors"][0]["detail"]


def test_results_exist_only_for_predict_jobs_of_the_own_project(gateway, registered, upload, run):
    registered("blur", networks.blur())
    image = upload(noise_png(24, 32))
    job = run(model="blur", images=[image])
    assert gateway.ask("GET", job["links"]["table"], "stranger").status_code == 404
    analysed = gateway.ask("POST", "/v1/jobs", "engineer", json={"kind": "analyse", "images": [image]}).json()
    answer = gateway.ask("GET", f"/v1/jobs/{analysed['id']}/results.csv", "viewer")
    assert answer.status_code == 404 and "analyse job" in answer.json()["detail"]
    gateway.ask("POST", f"/v1/jobs/{analysed['id']}/cancel", "engineer")


# One image, later ---------------------------------------------------------------------------------------------------


@pytest.fixture
def later(predict):
    def ask(model, content, *, prefer="respond-async", headers=None, **options):
        return predict(model, content, headers={"Prefer": prefer} | (headers or {}), **options)

    return ask


def test_async_prediction_returns_the_location_of_its_result(gateway, registered, later, predict, worker):
    registered("blur", networks.blur())
    content = noise_png(24, 32)
    answer = later(
        "blur", content, threshold=0.6, expect="beta0:1", repair=True, margins=True, headers={"Accept": "image/png"}
    )
    job = answer.json()
    assert (
        answer.status_code,
        answer.headers["location"],
        answer.headers["retry-after"],
        answer.headers["preference-applied"],
    ) == (202, f"/v1/jobs/{job['id']}", "1", "respond-async")
    assert (
        job["kind"],
        job["state"],
        job["spec"]["model"],
        job["spec"]["threshold"],
        "prediction" in job["links"],
    ) == ("predict", "queued", "blur:1", 0.6, False)
    worker.drain("quick")
    job = gateway.ask("GET", answer.headers["location"], "clinician").json()
    assert job["state"] == "succeeded"
    stored = gateway.ask("GET", job["links"]["prediction"], "clinician").json()
    at_once = predict(
        "blur", content, accept="application/json", threshold=0.6, expect="beta0:1", repair=True, margins=True
    ).json()
    for same in ("model", "shape", "threshold", "topology", "expectation", "repair"):
        assert stored[same] == at_once[same], same
    assert (stored["job"], stored["image"]) == (job["id"], job["spec"]["images"][0])
    mask = predict("blur", content, threshold=0.6, expect="beta0:1", repair=True).content
    kept = gateway.ask("GET", stored["artifacts"]["mask"]["href"], "clinician").content
    np.testing.assert_array_equal(*(imaging.decode_mask(each, gateway.settings) for each in (mask, kept)))


@pytest.mark.parametrize(
    "prefer, status",
    [
        ("respond-async", 202),
        ("Respond-Async, wait=10", 202),
        ("wait=10,respond-async;x", 202),
        ("return=minimal", 200),
        ("respond-asynchronously", 200),
        ('foo="a, respond-async, b"', 200),
    ],
)
def test_only_the_exact_respond_async_preference_counts(registered, later, worker, prefer, status):
    registered("blur", networks.blur())
    assert later("blur", noise_png(24, 32), prefer=prefer).status_code == status
    worker.drain("quick")


def test_repeated_async_request_is_one_job(gateway, registered, later, worker):
    registered("blur", networks.blur())
    first, second = (later("blur", noise_png(24, 32), headers={"Idempotency-Key": "scan-7"}) for _ in range(2))
    other = later("blur", noise_png(24, 32, seed=1), headers={"Idempotency-Key": "scan-7"})
    assert first.json() == second.json() and second.headers["idempotency-replayed"] == "true"
    assert [second.headers[name] for name in ("location", "retry-after", "preference-applied")] == [
        first.headers["location"],
        "1",
        "respond-async",
    ]
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    with gateway.database.read() as session:
        assert session.query(Job).filter_by(project_id=gateway.project_id).count() == 1
    worker.drain("quick")


@pytest.mark.parametrize(
    "options, content, status, code",
    [
        ({"artifact": "probability"}, noise_png(24, 32), 422, "invalid"),
        ({"skeleton": True}, noise_png(24, 32), 422, "invalid"),
        ({"variant": "int8"}, noise_png(24, 32), 422, "invalid"),
        ({"strict": True}, noise_png(24, 32), 422, "invalid"),
        ({"expect": "beta2:0"}, noise_png(24, 32), 422, "invalid"),
        ({}, noise_png(4, 4), 422, "image_too_small"),
        ({}, b"no image", 415, "unsupported_image"),
        ({}, noise_png(24, 32)[:-20], 422, "corrupt_image"),
    ],
)
def test_invalid_async_request_is_refused_at_once_and_stores_nothing(
    gateway, registered, later, options, content, status, code
):
    registered("blur", networks.blur(), multiple=8)
    answer = later("blur", content, **options)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    with gateway.database.read() as session:
        assert [session.query(table).filter_by(project_id=gateway.project_id).count() for table in (Job, Image)] == [
            0,
            0,
        ]


def test_async_prediction_needs_the_right_to_store_images(gateway, registered, later):
    registered("blur", networks.blur())
    gateway.keys["only predict"] = only_predict(gateway)
    answer = later("blur", noise_png(24, 32), who="only predict")
    assert answer.status_code == 403 and "Prefer: respond-async" in answer.json()["detail"]
    assert later("nothing", noise_png(24, 32)).status_code == 404


def only_predict(gateway):
    from app.store import keys, projects
    from app.store.tables import Project

    with gateway.database.write() as session:
        name = session.get_one(Project, gateway.project_id).name
        assert projects.ensure(session, name).id == gateway.project_id
        return keys.create(session, project=name, name="device", role="clinician", scopes=["predict"])
