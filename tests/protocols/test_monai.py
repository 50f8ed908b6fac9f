"""MONAI Label's wire: its own client, unmodified, and what that client cannot see."""

from __future__ import annotations

import io
import json
import zipfile

import nibabel
import numpy as np
import pytest

from app import imaging
from app.protocols.monai import next_sample
from tests.gateway import form
from tests.images import noise
from tests.imaging.dicom_files import slices, zipped
from tests.protocols import viewers
from tests.serving import networks
from topology.components import betti_numbers

AFFINE = np.array([[0.0, -0.5, 0, 10], [0.6, 0, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1]])
"""Anisotropic, and turned by a quarter."""
SLICER = {"label_info": [{"name": "vessel", "idx": 1}]}


def volume(seed: int, shape: tuple[int, ...] = (3, 20, 24)) -> bytes:
    return imaging.encode_nifti_gz(noise(seed, 1, *shape)[0, 0], AFFINE)


@pytest.fixture
def blur(registered):
    return registered("blur", networks.blur())


def multipart(**parts: object) -> dict[str, object]:
    """Options of a request as MONAI Label's client sends its forms: the file's whole path as its name."""
    named = [
        (f'form-data; name="{name}"', json.dumps(value).encode())
        if isinstance(value, dict)
        else (f'form-data; name="{name}"; filename="/home/ann/{name}.nii.gz"', value)
        for name, value in parts.items()
    ]
    headers, body = form(named, b"----------lImIt_of_THE_fIle_eW_$")
    return {"headers": headers, "content": body}


def detail(answer, status):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"detail"} and answer.headers["content-type"] == "application/json"
    return answer.json()["detail"]


def read_nrrd(content: bytes) -> tuple[dict[str, str], np.ndarray]:
    import gzip

    head, _, body = content.partition(b"\n\n")
    lines = [line.replace(":=", ": ").split(": ", 1) for line in head.decode().splitlines()[1:]]
    facts = dict(lines)
    raw = gzip.decompress(body) if facts["encoding"] == "gzip" else body
    sides = tuple(map(int, facts["sizes"].split()))[::-1]
    return facts, np.frombuffer(raw, facts["type"]).reshape(sides)


@pytest.mark.parametrize("is_open", [False, True], ids=["keys", "open"])
def test_monai_label_client_runs_unmodified(make_settings, serve, tmp_path, is_open):
    """Sessions, inference, datastore, labels, next sample and training: see monai_client.py."""
    gateway = serve(make_settings(open=is_open))
    if is_open:
        gateway.enter_project("default", "elsewhere")
    gateway.register("blur", networks.blur())
    folder = tmp_path / "viewer"
    folder.mkdir()
    (folder / "scan.nii.gz").write_bytes(volume(1))
    (folder / "other.nii.gz").write_bytes(volume(2, (2, 12, 16)))
    mask = (noise(3, 1, 3, 20, 24)[0, 0] > 128).astype(np.uint8)
    (folder / "mask.nii.gz").write_bytes(imaging.encode_nifti_gz(mask, AFFINE))
    key = "" if is_open else gateway.keys["engineer"]
    said = viewers.told_by("monai_client.py", gateway.url, key, folder)
    assert said["auth"] is not is_open
    if not is_open:
        assert "401" in said["no key"] and "401" in said["wrong key"] and said["token"] is True
    the_masks_are_ours(said, gateway, folder)
    assert "404" in said["session is gone"] and said["forgotten"] == {}
    assert said["session"]["image"] == "scan.nii.gz" and said["session"]["expiry"] == 3600
    assert said["next"]["checksum"].startswith("SHA256:") and said["next"]["weight"] >= 0
    assert said["saved"]["image"] == said["uploaded"]["image"]
    kept = nibabel.load(folder / said["label"])
    np.testing.assert_array_equal(np.asarray(kept.dataobj).T, mask)
    np.testing.assert_allclose(kept.affine, AFFINE)
    assert said["next after a label"]["name"] == "other.nii.gz"
    entry = said["datastore"]["objects"][said["uploaded"]["image"]]
    assert entry["labels"]["final"]["info"] == SLICER | {"client_id": "slicer"}
    assert said["info"]["datastore"] == {"total": 2, "completed": 1, "label_tags": {"final": 1}}
    assert said["info"]["models"]["blur"]["labels"] == ["vessel"] == said["info"]["labels"]
    assert said["running"] is False and said["stopped"] is None and "404" in said["train status"]
    assert "was imported" in said["train"] and "400" in said["train"]
    assert "No model is named nothing" in said["unknown model"]
    assert "404" in said["unknown image"] and "undefined" in said["unknown image"]
    assert "Status: 422" in said["wrong mask"]


def the_masks_are_ours(said, gateway, folder):
    """What the client saved is what our own API answers, on the grid of the image, with the same topology."""
    planes = nibabel.load(folder / "scan.nii.gz").get_fdata().T.astype(np.uint8)
    ours = np.stack(
        [gateway.services.decoders.decode_mask(gateway.predict("blur", imaging.encode_png(p)).content) for p in planes]
    )
    for case in ("of a session", "by name", "of a file"):
        name, params = said[case]
        if name.endswith(".nrrd"):
            facts, mask = read_nrrd((folder / name).read_bytes())
            assert facts["space"] == "left-posterior-superior" and facts["space origin"] == "(-10,20,5)"
            steps = np.array([json.loads(f"[{step[1:-1]}]") for step in facts["space directions"].split()])
            np.testing.assert_allclose(steps, [[0, -0.6, 0], [0.5, 0, 0], [0, 0, 2]], atol=1e-6)
        else:
            image = nibabel.load(folder / name)
            mask = np.asarray(image.dataobj).T
            np.testing.assert_allclose(image.affine, nibabel.load(folder / "scan.nii.gz").affine)
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
        if case != "of a file":
            np.testing.assert_array_equal(mask, ours > 0)
        assert params["label_names"] == {"vessel": 1} and params["model"] == "blur:1"
        told = params["topology"]["vessel"]
        assert (told["beta0"], told["beta1"], told["beta2"]) == betti_numbers(mask)
        assert told["length_unit"] == "mm" and told["skeleton_length"] > 0
    assert said["of a file"][1]["violations"][0]["class_name"] == "vessel"


def test_answer_takes_the_form_that_is_asked_for(blur, gateway):
    sent = multipart(params={"result_extension": ".nrrd", "result_compress": False}, file=volume(1))
    image = gateway.ask("POST", "/monai/infer/blur?output=image", "clinician", **sent)
    facts, mask = read_nrrd(image.content)
    assert facts["encoding"] == "raw" and len(image.content.partition(b"\n\n")[2]) == mask.size == 3 * 20 * 24
    assert '-file.nrrd"' in image.headers["content-disposition"]
    told = gateway.ask("POST", "/monai/infer/blur?output=json", "clinician", **sent)
    assert told.headers["content-type"] == "application/json"
    assert told.json()["topology"]["vessel"]["beta0"] == betti_numbers(mask)[0]
    slicer = multipart(params={"result_extension": ".seg.nrrd"}, file=volume(1))
    facts, again = read_nrrd(gateway.ask("POST", "/monai/infer/blur?output=image", "clinician", **slicer).content)
    assert facts["Segment0_Name"] == "vessel" and facts["Segment0_LabelValue"] == "1"
    np.testing.assert_array_equal(again, mask)
    flat = multipart(params={"result_extension": ".png"}, file=imaging.encode_png(noise(1, 1, 20, 24)[0]))
    png = gateway.ask("POST", "/monai/infer/blur?output=image", "clinician", **flat)
    assert gateway.services.decoders.decode(png.content).pixels.max() <= 1
    assert (
        "dicom" in detail(gateway.ask("POST", "/monai/infer/blur?output=dicom_seg", "clinician", **sent), 406).lower()
    )


def test_series_is_answered_as_dicom_segmentation(registered, gateway):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom", reason="highdicom needs pyjpegls, which has no wheel for this Python")
    registered("space", networks.blur_3d(), dimensions=3)
    pixels = np.zeros((4, 20, 16), np.int16)
    pixels[1:3, 4:9, 3:12] = 100
    sent = multipart(params={}, file=zipped(slices(pixels)))
    answer = gateway.ask("POST", "/monai/infer/space?output=dicom_seg", "clinician", **sent)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/dicom", answer.text
    made = pydicom.dcmread(io.BytesIO(answer.content))
    assert made.Modality == "SEG" and made.SegmentSequence[0].SegmentLabel == "vessel"
    told = gateway.ask("POST", "/monai/infer/space", "clinician", **sent)
    assert b"label_names" in told.content


def test_label_is_refused_where_it_does_not_fit_its_image(blur, gateway):
    put = gateway.ask("PUT", "/monai/datastore/?image=scan", **multipart(params={}, file=volume(1)))
    image = put.json()["image"]
    other = imaging.encode_nifti_gz(np.zeros((3, 20, 25), np.uint8), AFFINE)
    path = f"/monai/datastore/label?image={image}"
    assert "grid" in detail(gateway.ask("PUT", path, **multipart(params=SLICER, label=other)), 422)
    wrong = imaging.encode_nifti_gz(np.full((3, 20, 24), 7, np.uint8), AFFINE)
    assert "7" in detail(gateway.ask("PUT", path, **multipart(params=SLICER, label=wrong)), 422)
    assert "no file" in detail(gateway.ask("PUT", path, **multipart(params=SLICER)), 422)
    assert "tag" in detail(gateway.ask("PUT", f"{path}&tag=../x", **multipart(params=SLICER, label=wrong)), 422)
    twice = {"label_info": [{"name": "a", "idx": 1}, {"name": "a", "idx": 2}]}
    assert "twice" in detail(gateway.ask("PUT", path, **multipart(params=twice, label=volume(1))), 422)
    assert gateway.ask("GET", "/monai/datastore/").json()["completed"] == 0


def test_label_of_another_project_is_not_found(blur, gateway):
    image = gateway.ask("PUT", "/monai/datastore/?image=scan", **multipart(params={}, file=volume(1))).json()["image"]
    mask = imaging.encode_nifti_gz(np.zeros((3, 20, 24), np.uint8), AFFINE)
    gateway.ask("PUT", f"/monai/datastore/label?image={image}", **multipart(params=SLICER, label=mask))
    session = gateway.ask("PUT", "/monai/session/", **multipart(files=volume(1))).json()["session_id"]
    for method, path in (
        ("GET", f"/monai/datastore/image?image={image}"),
        ("GET", f"/monai/datastore/label?label={image}"),
        ("DELETE", f"/monai/datastore/label?id={image}"),
        ("GET", f"/monai/session/{session}?image=true"),
        ("DELETE", f"/monai/session/{session}"),
    ):
        assert gateway.ask(method, path, "stranger").status_code == 404
        assert gateway.ask(method, path, None).status_code == 401
    assert gateway.ask("GET", f"/monai/datastore/label?label={image}").content == mask
    assert gateway.ask("GET", "/monai/datastore/?output=all", "stranger").json()["objects"] == {}


def test_image_is_found_by_name_and_its_checksum_is_compared(gateway):
    content = volume(1)
    image = gateway.ask("PUT", "/monai/datastore/?image=im+one", **multipart(params={}, file=content)).json()["image"]
    got = gateway.ask("GET", "/monai/datastore/image?image=im+one")
    assert got.content == content and 'filename="im one.nii.gz"' in got.headers["content-disposition"]
    info = gateway.ask("GET", f"/monai/datastore/image/info?image={image}").json()
    assert info["name"] == "im one.nii.gz" and info["shape"] == [3, 20, 24]
    path = f"/monai/datastore/image?image={image}&check_sum="
    assert gateway.ask("HEAD", path + info["checksum"]).status_code == 200
    assert gateway.ask("HEAD", path + "SHA256:00").status_code == 404
    assert (
        gateway.ask("PUT", "/monai/datastore/?image=two", **multipart(params={}, file=content)).json()["image"] == image
    )
    assert gateway.ask("GET", "/monai/datastore/image?image=two").status_code == 200
    assert gateway.ask("DELETE", f"/monai/datastore/image?id={image}").json() == {}
    assert gateway.ask("GET", "/monai/datastore/image?image=two").status_code == 404


def test_session_ends_when_its_time_is_over(gateway):
    from datetime import timedelta

    from app.store.tables import ImageSession, now

    session = gateway.ask("PUT", "/monai/session/?expiry=5", **multipart(files=volume(1))).json()["session_id"]
    assert gateway.ask("GET", f"/monai/session/{session}?image=true&update_ts=true").content == volume(1)
    with gateway.database.write() as rows:
        rows.query(ImageSession).filter_by(project_id=gateway.project_id).update(
            {"expires_at": now() - timedelta(0, 1)}
        )
    assert "ended" in detail(gateway.ask("GET", f"/monai/session/{session}"), 404)
    asked = multipart(params={})
    assert gateway.ask("POST", f"/monai/infer/blur?session_id={session}", **asked).status_code == 404
    assert detail(gateway.ask("PUT", "/monai/session/", **multipart(files=b"not an image")), 415)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"threshold": 2}, "threshold"),
        ({"expect": "beta9:1"}, "beta9"),
        ({"result_extension": ".exe"}, "result_extension"),
        ({"result_dtype": "object"}, "result_dtype"),
    ],
)
def test_wrong_parameters_are_named(blur, gateway, params, words):
    answer = gateway.ask("POST", "/monai/infer/blur", "clinician", **multipart(params=params, file=volume(1)))
    assert words in detail(answer, 422)


def test_bad_bytes_are_refused(blur, gateway):
    ask = gateway.ask
    cut = volume(1)[:-40]
    assert detail(ask("POST", "/monai/infer/blur", "clinician", **multipart(params={}, file=cut)), 422)
    assert detail(ask("POST", "/monai/infer/blur", "clinician", content=b"{}"), 415)
    assert "Name an image" in detail(ask("POST", "/monai/infer/blur", "clinician", **multipart(params={})), 400)
    assert "scribbles" in detail(
        ask("POST", "/monai/infer/blur", "clinician", **multipart(params={}, file=volume(1), label=volume(1))), 400
    )
    assert detail(ask("POST", "/monai/activelearning/newest", "clinician", content=b"[1]"), 400)
    assert detail(ask("POST", "/monai/activelearning/guess", "clinician", content=b"{}"), 404)
    assert gateway.count_project()["images"] == 0


def test_least_certain_image_is_chosen(registered, gateway, monkeypatch):
    """One map has three specks that a threshold higher by 0.1 erases, the other two are certain."""
    monkeypatch.setattr(next_sample, "SECONDS", 600)  # the first image may wait for kernels to be compiled
    registered("plain", networks.through(), scaling=networks.PLAIN)
    certain, unsure = np.zeros((8, 12), np.uint8), np.zeros((8, 12), np.uint8)
    certain[2:5, 2:5] = 255
    unsure[1, 1] = unsure[1, 5] = unsure[5, 5] = 140
    ids = {}
    for name, pixels in (("certain", certain), ("unsure", unsure), ("sure", certain.T.copy())):
        sent = multipart(params={}, file=imaging.encode_png(pixels))
        ids[name] = gateway.ask("PUT", f"/monai/datastore/?image={name}", **sent).json()["image"]
    chosen = gateway.ask("POST", "/monai/activelearning/topological_uncertainty", "clinician", json={"client_id": "x"})
    assert chosen.json()["id"] == ids["unsure"] and chosen.json()["weight"] == 3


def test_labels_become_a_dataset_and_a_training(gateway):
    """A model is trained again on what was drawn; it is watched and stopped as MONAI Label's client does it."""
    from tests.records import add_dataset, add_model, ring_and_line, submit, train_spec

    version = add_model(
        gateway.database, gateway.blobs, gateway.project_id, name="rings", classes=("background", "line")
    )
    data = add_dataset(gateway.database, gateway.blobs, gateway.project_id, name="rings", count=2)
    job = submit(gateway.database, gateway.project_id, train_spec(data))
    with gateway.database.write() as session:
        row = session.get(type(version), version.id)
        row.job_id, row.spec, row.dataset_version_id = job.id, train_spec(data), data.id
        row.weights_sha256, row.weights_bytes = row.onnx_sha256, 1
        session.get(type(job), job.id).state = "succeeded"
    for number in range(4):
        picture, mask = (imaging.encode_png(pixels) for pixels in ring_and_line(number + 10))
        sent = multipart(params={}, file=picture)
        image = gateway.ask("PUT", f"/monai/datastore/?image=case{number}", **sent).json()["image"]
        drawn = multipart(params={"label_info": [{"name": "line", "idx": 255}]}, label=mask)
        assert gateway.ask("PUT", f"/monai/datastore/label?image={image}", **drawn).status_code == 200
    archive = zipfile.ZipFile(io.BytesIO(gateway.ask("GET", "/monai/datastore/dataset").content))
    assert sorted(name.split("/")[0] for name in archive.namelist()) == ["images"] * 4 + ["masks"] * 4
    info = gateway.ask("GET", "/monai/info/").json()
    assert info["trainers"]["rings"]["config"]["steps"] == 20
    begun = gateway.ask(
        "POST", "/monai/train/rings", json={"client_id": "slicer", "max_epochs": 3, "pretrained": False}
    )
    assert begun.status_code == 200, begun.text
    task = begun.json()
    assert task["status"] == "SUBMITTED"
    spec = gateway.ask("GET", f"/v1/jobs/{task['id']}").json()["spec"]
    assert spec["dataset"] == "rings-labels@1" and spec["steps"] == 3 * 2 and spec["start_from"] is None
    assert gateway.ask("GET", "/v1/datasets/rings-labels/versions/1").json()["pairs"] == 4
    assert gateway.ask("GET", "/monai/train/?check_if_running=true").status_code == 200
    assert "being trained" in detail(gateway.ask("POST", "/monai/train/rings", json={}), 409)
    assert gateway.ask("GET", "/monai/info/").json()["train_stats"]["rings"]["best_metric"] == 0
    assert gateway.ask("DELETE", "/monai/train/").json()["status"] == "STOPPED"
    assert gateway.ask("GET", "/monai/train/").json()["status"] == "STOPPED"
    assert gateway.ask("GET", "/monai/train/?check_if_running=true").status_code == 404
    assert "jobs:write" in detail(gateway.ask("POST", "/monai/train/rings", "clinician", json={}), 403)
    batch = gateway.ask("POST", "/monai/batch/infer/rings?images=all", json={})
    assert batch.status_code == 200 and batch.json()["status"] == "SUBMITTED"
    assert "state" in gateway.ask("GET", "/monai/logs/?html=false").text
