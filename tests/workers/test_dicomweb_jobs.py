"""DICOMweb jobs: series of a PACS are segmented and the segmentations stored there, once, whatever the PACS does."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests

from app.settings import Settings
from app.store.tables import Job
from tests.gateway import started, told
from tests.imaging.dicom_files import dataset, slices, uid
from tests.records import job_now, register, submit
from tests.services import free_port
from tests.serving import networks
from tests.workers.orthanc import running_orthanc
from tests.workers.pacs import FakePacs, fake_pacs
from workers.worker import Worker

pytest.importorskip("highdicom", reason="highdicom needs pyjpegls, which has no wheel for this Python")

VOLUME = np.zeros((4, 16, 16), np.int16)
VOLUME[1:3, 4:9, 3:12] = 100
PLANTED = "Zyxwvut^Jane"


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with fake_pacs() as pacs:
        pacs.add(*slices(VOLUME, PatientID=PLANTED, PatientName=PLANTED))
        yield pacs


class Site:
    """A database with models, and a worker that knows one PACS."""

    def __init__(self, settings: Settings, database: Any, blobs: Any, project_id: uuid.UUID):
        self.settings, self.database, self.project_id = settings, database, project_id
        self.worker = Worker(settings)
        self.models = {
            "smooth": register(database, blobs, project_id, "smooth", networks.blur_3d(), dimensions=3),
            "blur": register(database, blobs, project_id, "blur", networks.blur()),
        }

    def segment(self, model: str = "smooth", **changes: Any) -> Job:
        """The job, once a worker has ended it."""
        spec = {
            "kind": "dicomweb",
            "model": f"{model}:1",
            "model_version_id": str(self.models[model].id),
            "pacs": "main",
            "study": uid("study"),
            "series": None,
            "segmentation": "binary",
            "threshold": None,
        }
        job = submit(self.database, self.project_id, spec | changes)
        self.worker.drain("quick")
        return job_now(self.database, job)


@pytest.fixture
def at(settings: Settings, database: Any, blobs: Any, project_id: uuid.UUID) -> Iterator[Callable[..., Site]]:
    """A site whose PACS is at an address: `at(url, username="robot", password="...")`."""
    sites = []

    def make(url: str, **options: Any) -> Site:
        changed = {name: options.pop(name) for name in ("pacs_patience_s", "pacs_timeout_s") if name in options}
        known = settings.model_dump() | {"pacs": {"main": {"url": url} | options}, "pacs_patience_s": 20} | changed
        sites.append(Site(Settings(_env_file=None, **known), database, blobs, project_id))
        return sites[-1]

    yield make
    for site in sites:
        site.worker.stop()
        site.worker.installation.database.dispose()


def test_a_study_is_segmented_and_the_segmentation_stored_under_its_patient(at, pacs: FakePacs, settings: Settings):
    site = at(pacs.url)
    job = site.segment()
    assert job.state == "succeeded", job.error
    (made,) = pacs.of("SEG")
    assert (made.PatientID, made.PatientName, made.StudyInstanceUID) == (PLANTED, PLANTED, uid("study"))
    assert job.result["stored"] == [
        {
            "series": uid("series"),
            "segmentation": made.SOPInstanceUID,
            "segmentation_series": made.SeriesInstanceUID,
            "was_there": False,
        }
    ]
    kept = b"".join(path.read_bytes() for path in settings.data_dir.rglob("*") if path.is_file())
    assert PLANTED.encode() not in kept and not list(settings.scratch.rglob("series.zip"))


def test_a_report_is_stored_beside_the_segmentation_once(at, pacs: FakePacs):
    site = at(pacs.url)
    first = site.segment(report=True)
    assert first.state == "succeeded", first.error
    (segmentation,), (report,) = pacs.of("SEG"), pacs.of("SR")
    assert (report.PatientID, report.StudyInstanceUID) == (PLANTED, uid("study"))
    stored = first.result["stored"][0]
    assert (stored["report"], stored["segmentation"]) == (report.SOPInstanceUID, segmentation.SOPInstanceUID)
    again = site.segment(report=True)
    assert again.result["stored"][0]["was_there"] and len(pacs.of("SR")) == len(pacs.of("SEG")) == 1


def test_a_report_that_is_missing_is_made_for_a_segmentation_that_is_there(at, pacs: FakePacs):
    site = at(pacs.url)
    assert site.segment().state == "succeeded" and not pacs.of("SR")
    assert site.segment(report=True).result["stored"][0]["was_there"] is False
    assert len(pacs.of("SR")) == len(pacs.of("SEG")) == 1


def test_the_same_job_twice_stores_once_and_predicts_once(at, pacs: FakePacs):
    site = at(pacs.url)
    first, again = site.segment(), site.segment()
    assert first.state == again.state == "succeeded" and len(pacs.of("SEG")) == 1
    assert again.result["stored"][0]["was_there"] and sum(each.startswith("POST") for each in pacs.asked) == 1
    assert site.segment(threshold=0.9).state == "succeeded" and len(pacs.of("SEG")) == 2


def test_a_network_of_images_segments_a_series_plane_by_plane(at, pacs: FakePacs):
    job = at(pacs.url).segment("blur", segmentation="fractional")
    assert job.state == "succeeded", job.error
    (made,) = pacs.of("SEG")
    assert made.SegmentationType == "FRACTIONAL" and made.Rows == 16


def test_a_pacs_that_is_away_slow_and_forgetful_gets_one_segmentation(at, pacs: FakePacs):
    pacs.statuses.extend([500, 503, 200, 502])
    pacs.forgets, pacs.slow, pacs.slow_s = 1, 1, 1.5
    site = at(pacs.url, pacs_timeout_s=1)
    job = site.segment()
    assert job.state == "succeeded", job.error
    assert len(pacs.of("SEG")) == 1 and sum(each.startswith("POST") for each in pacs.asked) == 2


@pytest.mark.parametrize(
    ("statuses", "code"),
    [([401], "pacs_denied"), ([403], "pacs_denied"), ([404], "pacs_not_found"), ([302], "pacs_refused")],
)
def test_what_does_not_mend_itself_fails_the_job_at_once(at, pacs: FakePacs, statuses, code):
    pacs.statuses.extend(statuses)
    job = at(pacs.url).segment()
    assert (job.state, job.error["code"]) == ("failed", code)
    assert len(pacs.asked) == 1 and not pacs.of("SEG")


def test_a_pacs_that_stays_away_is_given_up_after_the_patience_of_the_settings(at):
    job = at(f"http://127.0.0.1:{free_port()}/dicom-web", pacs_patience_s=1).segment()
    assert (job.state, job.error["code"]) == ("failed", "pacs_unavailable") and "1 s" in job.error["detail"]


def test_credentials_are_sent_to_the_pacs_only(at, pacs: FakePacs):
    pacs.authorization = "Basic " + base64.b64encode(b"robot:secret").decode()
    assert at(pacs.url, username="robot", password="secret").segment().state == "succeeded"
    assert at(pacs.url, username="robot", password="wrong").segment(threshold=0.7).error["code"] == "pacs_denied"


def test_a_series_that_cannot_be_segmented_is_noted_beside_the_others(at, pacs: FakePacs):
    odd = slices(VOLUME, series="gap")
    pacs.add(odd[0], odd[1], odd[3], dataset(VOLUME[0], Modality="SR", SeriesInstanceUID=uid("report")))
    job = at(pacs.url).segment()
    assert job.state == "succeeded" and len(job.result["stored"]) == 1
    (noted,) = job.result["failed"]
    assert (noted["series"], noted["code"]) == (uid("gap"), "bad_series")


def test_a_job_names_only_a_pacs_that_the_operator_configured(tmp_path: Path):
    settings = Settings(
        _env_file=None, data_dir=tmp_path, min_free_bytes=0, pacs={"main": {"url": "http://pacs/dicom"}}
    )
    with started(settings) as gateway:
        gateway.register("smooth", networks.blur_3d(), dimensions=3)
        spec = {"kind": "dicomweb", "model": "smooth", "pacs": "main", "study": uid("study")}
        assert gateway.ask("POST", "/v1/jobs", json=spec).status_code == 202
        for wrong in ({"pacs": "other"}, {"pacs": "http://169.254.169.254"}, {"study": "1.2/../../secret"}):
            assert told(gateway.ask("POST", "/v1/jobs", json=spec | wrong)) == (422, "invalid")


# A real PACS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Orthanc that holds one series."""
    with running_orthanc(
        tmp_path_factory.mktemp("orthanc"), slices(VOLUME, PatientID="4711", PatientName="Doe^Jane")
    ) as url:
        yield url


def test_orthanc_holds_one_segmentation_and_one_report_of_its_series(at, orthanc: str):
    site = at(f"{orthanc}/dicom-web", username="robot", password="secret")
    first, again = site.segment(report=True), site.segment(report=True)
    assert first.state == again.state == "succeeded", first.error
    assert [job.result["stored"][0]["was_there"] for job in (first, again)] == [False, True]
    kwargs: dict[str, Any] = {"auth": ("robot", "secret"), "timeout": 10}
    (study,) = requests.get(f"{orthanc}/studies?expand", **kwargs).json()
    series = [requests.get(f"{orthanc}/series/{each}", **kwargs).json() for each in study["Series"]]
    assert sorted(each["MainDicomTags"]["Modality"] for each in series) == ["CT", "SEG", "SR"]

    def held(modality: str) -> pydicom.Dataset:
        (made,) = (each for each in series if each["MainDicomTags"]["Modality"] == modality)
        (instance,) = made["Instances"]
        return pydicom.dcmread(io.BytesIO(requests.get(f"{orthanc}/instances/{instance}/file", **kwargs).content))

    stored, segmentation, report = first.result["stored"][0], held("SEG"), held("SR")
    assert segmentation.PatientID == report.PatientID == "4711" and segmentation.pixel_array.any()
    assert (segmentation.SOPInstanceUID, report.SOPInstanceUID) == (stored["segmentation"], stored["report"])


def test_orthanc_refuses_a_wrong_password(at, orthanc: str):
    job = at(f"{orthanc}/dicom-web", username="robot", password="wrong").segment()
    assert (job.state, job.error["code"]) == ("failed", "pacs_denied")
