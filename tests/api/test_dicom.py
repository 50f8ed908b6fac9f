"""DICOM over HTTP: nothing of a patient stays, series are volumes, and what was left out is told."""

from __future__ import annotations

import gzip
import io
import logging
import uuid
from pathlib import Path

import numpy as np
import pydicom
import pytest

from app.imaging import decode, encode_nifti_gz
from app.settings import Settings
from app.store.tables import Prediction
from tests.gateway import Gateway, started, told
from tests.imaging.dicom_files import dataset, segmentation, slices, structure_set, uid, written, zipped
from tests.imaging.samples import nifti
from tests.imaging.test_structure_sets import circle, corners
from tests.serving import networks

PLANTED = "Zyxwvut"
VOLUME = np.random.default_rng(5).integers(0, 200, (6, 16, 16)).astype(np.int16)
DICOM = "application/dicom"


def patient(**elements: object) -> dict[str, object]:
    """Elements that name a patient, everywhere a careless exporter puts it."""
    names = ("PatientName", "PatientID", "InstitutionName", "StudyDescription", "PatientComments", "AccessionNumber")
    return dict.fromkeys(names, PLANTED) | elements


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory):
    """A gateway in folders of its own, so that every byte that it keeps can be searched."""
    settings = Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("traced"), min_free_bytes=0, log_level="debug")
    with started(settings) as gateway:
        gateway.register("blur", networks.blur())
        gateway.register("smooth", networks.blur_3d(), dimensions=3)
        yield gateway


def everything_kept(gateway: Gateway) -> bytes:
    files = [path for path in gateway.settings.data_dir.rglob("*") if path.is_file()]
    assert len(files) > 3
    return b"".join(path.read_bytes() for path in files)


def test_no_trace_of_a_patient_stays(traced: Gateway, capfd, caplog):
    """B25: database, blobs, logs and answers, for files and series, as images, predictions, references and analyses."""
    caplog.set_level(logging.DEBUG)
    name = f"{PLANTED}^Jane.dcm"
    one = written(dataset(VOLUME[0].astype(np.uint8), **patient()))
    series = zipped({f"{PLANTED}/{n}": file for n, file in enumerate(slices(VOLUME, **patient()))})
    answers = [
        traced.ask("POST", "/v1/images", files={"file": (name, one, DICOM)}),
        traced.ask("POST", "/v1/images", files={"file": (name, series)}),
        traced.ask("POST", "/v1/images", content=series),
        traced.predict("blur", one, accept="application/json", who="engineer", store="true"),
        traced.predict("smooth", series, accept="application/json", who="engineer"),
        traced.ask("POST", "/v1/analyses", content=one),
        traced.ask("POST", "/v1/images", content=zipped(slices(VOLUME, **patient())[::2] + slices(VOLUME)[:1])),
        traced.ask("POST", "/v1/images", content=one[:-9]),
    ]
    stored = answers[3].json()
    answers.append(traced.ask("PUT", stored["links"]["reference"], content=one))
    answers += [traced.ask("GET", answer.json()["links"]["content"]) for answer in answers[:3]]
    answers.append(traced.ask("GET", "/v1/images"))
    assert [answer.status_code // 100 for answer in answers[:6]] == [2] * 6, [a.text for a in answers[:6]]
    for answer in answers:
        assert PLANTED.encode() not in answer.content and PLANTED not in str(answer.headers)
    out, err = capfd.readouterr()
    assert PLANTED not in out + err + caplog.text
    assert PLANTED.encode() not in everything_kept(traced)
    content = pydicom.dcmread(io.BytesIO(answers[9].content))
    assert content.PatientIdentityRemoved == "YES" and content.StudyInstanceUID == uid("study")


def test_identifiers_are_kept_where_the_operator_says_so(tmp_path: Path):
    settings = Settings(_env_file=None, data_dir=tmp_path, min_free_bytes=0, dicom_identifiers="keep")
    with started(settings) as gateway:
        sent = written(dataset(VOLUME[0], **patient()))
        image = gateway.ask("POST", "/v1/images", files={"file": ("a.dcm", sent, DICOM)}).json()
        kept = pydicom.dcmread(io.BytesIO(gateway.ask("GET", image["links"]["content"]).content))
    assert image["name"] == "a.dcm" and kept.PatientName == PLANTED and "InstitutionName" not in kept


def test_a_series_is_one_volume_whatever_carries_it(gateway: Gateway):
    files = slices(VOLUME)
    parts = [b"--edge\r\nContent-Type: application/dicom\r\n\r\n" + written(file) + b"\r\n" for file in files]
    media = 'multipart/related; type="application/dicom"; boundary=edge'
    related = gateway.ask(
        "POST", "/v1/images", content=b"".join(parts) + b"--edge--\r\n", headers={"Content-Type": media}
    )
    assert related.status_code == 201, related.text
    image = related.json()
    assert (
        image["shape"] == [6, 16, 16] and image["spacing_mm"] == [2.5, 0.8, 0.6] and image["format"] == "dicom_series"
    )
    again = gateway.upload(zipped(files), "application/zip")
    assert again.status_code == 200 and again.json()["id"] == image["id"]
    cut = gateway.ask("POST", "/v1/images", content=b"".join(parts), headers={"Content-Type": media})
    assert cut.status_code == 400 and cut.json()["code"] == "invalid_request"


def test_what_was_left_aside_is_told(gateway: Gateway):
    sent = gateway.upload(zipped({"a": slices(VOLUME)[0], "notes.txt": b"hello"}), "application/zip")
    assert sent.status_code == 201 and "1 files of the archive are no DICOM" in sent.headers["toposerve-warning"]


def test_a_volume_of_dicom_is_predicted_as_the_same_volume_of_nifti(gateway: Gateway):
    gateway.register("smooth", networks.blur_3d(), dimensions=3)
    asked = {"accept": "application/gzip", "media": "application/octet-stream"}
    series, plain = (gateway.predict("smooth", sent, **asked) for sent in (zipped(slices(VOLUME)), nifti(VOLUME[None])))
    assert series.status_code == plain.status_code == 200, series.text
    first, second = (decode(answer.content, gateway.settings) for answer in (series, plain))
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.spacing_mm == pytest.approx((2.5, 0.8, 0.6)) and first.affine[:3, 3].tolist() == [10, 20, 30]


def test_a_segmentation_is_a_reference(gateway: Gateway):
    gateway.register("smooth", networks.blur_3d(), dimensions=3)
    files = slices(VOLUME)
    stored = gateway.predict("smooth", zipped(files), accept="application/json", who="engineer", store="true").json()
    labels = np.zeros(VOLUME.shape, np.uint8)
    labels[2, 4:9, 4:9] = 1
    measured = gateway.ask("PUT", stored["links"]["reference"], content=segmentation(files, labels, "BINARY"))
    assert measured.status_code == 200, measured.text
    assert measured.json()["measurements"][0]["beta0_error"] is not None
    analysed = gateway.ask("POST", "/v1/analyses", content=segmentation(files, labels, "BINARY"))
    assert analysed.status_code == 200 and analysed.json()["topology"]["beta0"] == 1, analysed.text


def test_a_structure_set_is_a_reference_by_the_names_of_its_regions(traced: Gateway):
    files = slices(VOLUME)
    stored = traced.predict("smooth", zipped(files), accept="application/json", who="engineer", store="true").json()
    round_ = circle(8.2, 7.6, 4.3)
    content = structure_set({"BODY": [corners(files, 1, round_)], "Vessel": [corners(files, 2, round_)]})
    measured = traced.ask("PUT", stored["links"]["reference"], content=content)
    assert measured.status_code == 200, measured.text
    with traced.database.read() as session:
        kept = session.get_one(Prediction, uuid.UUID(stored["id"])).reference_sha256
    drawn = decode(traced.blobs.read(traced.project_id, kept), traced.settings).pixels[0] > 0
    assert drawn[2].sum() == drawn.sum() == pytest.approx(np.pi * 4.3**2, rel=0.05)
    refused = traced.ask(
        "PUT", stored["links"]["reference"], content=structure_set({"BODY": [corners(files, 1, round_)]})
    )
    assert told(refused) == (422, "invalid") and "Its regions: BODY" in refused.json()["detail"]
    assert told(traced.upload(content, media=DICOM)) == (422, "no_pixel_data")
    assert b"Doe^Jane" not in everything_kept(traced)


def test_an_image_keeps_the_name_that_its_sender_chose(gateway: Gateway):
    made = written(dataset(VOLUME[0], SOPInstanceUID=uid(str(uuid.uuid4()))))
    assert gateway.upload(made, DICOM, params={"name": "phantom"}).json()["name"] == "phantom"


def test_a_dataset_of_series_and_segmentations_keeps_no_patient(traced: Gateway):
    """A folder for each series, masks as NIfTI or as segmentations; the series is stored as any other image."""
    labels = np.zeros(VOLUME.shape, np.uint8)
    labels[2, 4:9, 4:9] = 1
    cases = [("one", slices(VOLUME, **patient())), ("two", slices(VOLUME, **patient()))]
    files = {f"images/{case}/{number}": file for case, series in cases for number, file in enumerate(series)}
    placed = decode(zipped(slices(VOLUME)), traced.settings)
    files["masks/one.dcm"] = segmentation(slices(VOLUME), labels, "BINARY")
    files["masks/two.nii"] = gzip.decompress(encode_nifti_gz(labels, placed.affine))
    files["images/three.dcm"] = written(dataset(VOLUME, **patient()))
    files["masks/three.nii"] = nifti(labels[None])
    made = traced.ask("POST", "/v1/datasets", files={"file": ("d.zip", zipped(files))}, data={"name": "series"})
    assert made.status_code == 201, made.text
    assert made.json()["statistics"]["pairs"] == 3 and made.json()["dimensions"] == 3
    assert PLANTED.encode() not in everything_kept(traced)
