"""Masks are answered as DICOM segmentations: each voxel on its voxel, references, codes, and readable by others."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest

from app.imaging import decode
from tests.gateway import Gateway, told
from tests.imaging.dicom_files import AXIAL, dataset, slices, uid, written, zipped
from tests.imaging.samples import pillow
from tests.serving import networks

highdicom = pytest.importorskip("highdicom", reason="highdicom needs pyjpegls, which has no wheel for this Python")
DICOM = "application/dicom"
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
VOLUME = np.zeros((7, 20, 16), np.int16)
VOLUME[2:5, 4:9, 3:12] = 100
VOLUME[4, 15, 2] = 300


def told_by(answer) -> pydicom.Dataset:  # type: ignore[no-untyped-def]
    assert answer.status_code == 200 and answer.headers["content-type"] == DICOM, answer.text
    assert 'filename="mask.dcm"' in answer.headers["content-disposition"]
    return pydicom.dcmread(io.BytesIO(answer.content))


@pytest.fixture
def smooth(gateway: Gateway) -> Gateway:
    codes = {
        "vessel": {
            "category": {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical Structure"},
            "type": {"value": "51114001", "scheme": "SCT", "meaning": "Artery"},
        }
    }
    gateway.register("smooth", networks.blur_3d(), dimensions=3, codes=codes)
    gateway.register("blur", networks.blur())
    return gateway


@pytest.mark.parametrize("directions", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("kind", ["binary", "labelmap", "fractional"])
def test_each_voxel_of_the_segmentation_lies_on_its_voxel(smooth: Gateway, directions, kind, tmp_path, dcmtk):
    files = slices(VOLUME, directions=directions)
    sent = zipped(files[::-1])
    answer = smooth.predict("smooth", sent, accept=DICOM, media="application/zip", segmentation=kind)
    made = told_by(answer)
    expected = decode(smooth.predict("smooth", sent, accept="application/gzip").content, smooth.settings)
    mask = expected.pixels[0] > 0
    assert 0 < mask.sum() < mask.size

    read = highdicom.seg.segread(io.BytesIO(answer.content))
    volume = read.get_volume(combine_segments=kind != "fractional", rescale_fractional=kind == "fractional")
    places = {}
    for index in np.ndindex(volume.array.shape[:3]):
        if float(volume.array[index].max()) > 0.5:
            places[tuple(np.round(volume.map_indices_to_reference(np.array([index]))[0], 3))] = True
    along, down = np.array(directions).reshape(2, 3)
    due = {
        tuple(np.round(np.array(files[plane].ImagePositionPatient) + 0.6 * column * along + 0.8 * row * down, 3) + 0.0)
        for plane, row, column in np.argwhere(mask)
    }
    found = {tuple(np.array(place) + 0.0) for place in places}
    assert found == due

    assert made.FrameOfReferenceUID == files[0].FrameOfReferenceUID
    assert made.StudyInstanceUID == uid("study") and made.SeriesInstanceUID != uid("series") and made.Modality == "SEG"
    referred = {item.ReferencedSOPInstanceUID for item in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {file.SOPInstanceUID for file in files}
    segment = made.SegmentSequence[-1]
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("vessel", "AUTOMATIC")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "51114001"
    (tmp_path / "mask.dcm").write_bytes(answer.content)
    assert "vessel" in dcmtk("dcmdump", str(tmp_path / "mask.dcm"))


@pytest.mark.parametrize("kind", ["binary", "fractional"])  # dciodvfy does not know label maps
@pytest.mark.parametrize("source", ["volume", "oblique", "empty", "slice", "US", "XC"])
def test_a_segmentation_obeys_its_information_object_definition(smooth: Gateway, source, kind, tmp_path, dciodvfy):
    pixels = VOLUME[4].astype(np.uint8)
    model, sent = {
        "volume": ("smooth", zipped(slices(VOLUME))),
        "oblique": ("smooth", zipped(slices(VOLUME, directions=OBLIQUE))),
        "empty": ("smooth", zipped(slices(0 * VOLUME))),
        "slice": ("blur", written(slices(VOLUME)[4])),
        "US": ("blur", written(dataset(pixels, Modality="US"))),
        "XC": ("blur", written(dataset(np.stack([pixels] * 3, -1), Modality="XC"))),
    }[source]
    answer = smooth.predict(model, sent, accept=DICOM, segmentation=kind)
    (tmp_path / "mask.dcm").write_bytes(answer.content)
    assert dciodvfy(tmp_path / "mask.dcm") == []


def test_a_structured_report_obeys_its_information_object_definition(smooth: Gateway, tmp_path, dciodvfy):
    answer = smooth.predict("smooth", zipped(slices(VOLUME)), accept=DICOM, artifact="report")
    (tmp_path / "report.dcm").write_bytes(answer.content)
    assert dciodvfy(tmp_path / "report.dcm") == []


def test_the_same_question_gives_the_same_instance(smooth: Gateway):
    sent = zipped(slices(VOLUME))
    first, again, other = (
        told_by(smooth.predict("smooth", sent, accept=DICOM, **options)) for options in ({}, {}, {"threshold": 0.9})
    )
    assert first.SOPInstanceUID == again.SOPInstanceUID != other.SOPInstanceUID


def test_an_empty_mask_is_a_valid_segmentation(smooth: Gateway):
    answer = smooth.predict("smooth", zipped(slices(0 * VOLUME)), accept=DICOM, threshold=0.9)
    read = highdicom.seg.segread(io.BytesIO(answer.content))
    assert read.number_of_segments == 1 and not read.get_volume(combine_segments=True).array.any()


@pytest.mark.parametrize("modality", ["US", "OP", "XC", "CR"])
def test_an_image_without_a_place_gets_a_segmentation_of_its_pixels(smooth: Gateway, modality):
    pixels = VOLUME[4].astype(np.uint8)
    sent = written(dataset(np.stack([pixels] * 3, -1) if modality == "XC" else pixels, Modality=modality))
    made = told_by(smooth.predict("blur", sent, accept=DICOM))
    mask = decode(smooth.predict("blur", sent, accept="image/png").content, smooth.settings).pixels[0] > 0
    np.testing.assert_array_equal(made.pixel_array.reshape(mask.shape).astype(bool), mask)
    (referred,) = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert referred.ReferencedSOPInstanceUID == pydicom.dcmread(io.BytesIO(sent)).SOPInstanceUID


def test_a_stored_mask_is_had_as_dicom_later(smooth: Gateway):
    sent = written(slices(VOLUME)[4])
    stored = smooth.predict("blur", sent, accept="application/json", who="engineer", store="true").json()
    address = f"{stored['links']['self']}/mask.dcm"
    made = told_by(smooth.ask("GET", address))
    assert (
        made.pixel_array.any() and made.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "59820001"
    )
    assert told_by(smooth.ask("GET", address, params={"segmentation": "labelmap"})).SegmentationType == "LABELMAP"
    plain = pillow("png", VOLUME[4:5].astype(np.uint8))
    other = smooth.predict("blur", plain, accept="application/json", who="engineer", store="true").json()
    assert told(smooth.ask("GET", f"{other['links']['self']}/mask.dcm")) == (422, "invalid")


def measurements(report: pydicom.Dataset) -> dict[str, dict[str, tuple[float, str]]]:
    """{class: {meaning: (value, unit)}} of a structured report, as highdicom reads it."""
    read = highdicom.sr.srread(io.BytesIO(written(report)))
    groups = read.content.get_image_measurement_groups()
    return {
        group.tracking_identifier: {
            each.name.meaning: (float(each.value), each.unit.value) for each in group.get_measurements()
        }
        for group in groups
    }


def reported(answer) -> pydicom.Dataset:  # type: ignore[no-untyped-def]
    assert answer.status_code == 200 and answer.headers["content-type"] == DICOM, answer.text
    assert 'filename="report.dcm"' in answer.headers["content-disposition"]
    return pydicom.dcmread(io.BytesIO(answer.content))


def test_what_was_counted_in_a_volume_is_had_as_a_structured_report(smooth: Gateway, tmp_path, dcmtk):
    files = slices(VOLUME, directions=OBLIQUE)
    sent = zipped(files)
    answer = smooth.predict("smooth", sent, accept=DICOM, media="application/zip", artifact="report")
    made = reported(answer)
    assert (made.Modality, made.StudyInstanceUID) == ("SR", uid("study"))
    assert made.SOPClassUID.name == "Comprehensive SR Storage" and made.SeriesInstanceUID != uid("series")
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert {each.ReferencedSOPInstanceUID for each in series.ReferencedSOPSequence} == {f.SOPInstanceUID for f in files}

    counted = smooth.predict("smooth", sent, accept="application/json", media="application/zip").json()
    (facts,) = counted["topology"]
    told_of = measurements(made)["vessel"]
    assert told_of["Number of components (Betti-0)"] == (facts["beta0"], "1")
    assert told_of["Number of loops (Betti-1)"] == (facts["beta1"], "1")
    assert told_of["Number of cavities (Betti-2)"] == (facts["beta2"], "1")
    assert told_of["Length"] == (pytest.approx(facts["skeleton_length"]), "mm")
    voxel = 0.6 * 0.8 * float(np.linalg.norm(np.subtract(files[1].ImagePositionPatient, files[0].ImagePositionPatient)))
    assert told_of["Volume"] == (pytest.approx(facts["foreground"] * voxel), "mm3") and facts["foreground"] > 0
    (tmp_path / "report.dcm").write_bytes(answer.content)
    shown = dcmtk("dsrdump", str(tmp_path / "report.dcm"))
    assert "Imaging Measurement Report" in shown and "Number of components (Betti-0)" in shown


def test_report_of_an_image_without_pixel_size_has_counts_only(smooth: Gateway):
    sent = written(dataset(VOLUME[4].astype(np.uint8), Modality="US"))
    told_of = measurements(reported(smooth.predict("blur", sent, accept=DICOM, artifact="report")))["vessel"]
    assert "Number of components (Betti-0)" in told_of and not {"Length", "Area"} & set(told_of)


def test_the_report_of_a_stored_prediction_is_had_later(smooth: Gateway):
    sent = written(slices(VOLUME)[4])
    stored = smooth.predict("blur", sent, accept="application/json", who="engineer", store="true").json()
    made = reported(smooth.ask("GET", f"{stored['links']['self']}/report.dcm"))
    beta0 = stored["topology"][0]["beta0"]
    assert measurements(made)["vessel"]["Number of components (Betti-0)"] == (beta0, "1")
    again = reported(smooth.ask("GET", f"{stored['links']['self']}/report.dcm"))
    assert again.SOPInstanceUID == made.SOPInstanceUID


def test_an_image_that_is_not_dicom_has_its_report_as_json_only(smooth: Gateway):
    plain = pillow("png", VOLUME[4:5].astype(np.uint8))
    assert smooth.predict("blur", plain, accept=DICOM, artifact="report").status_code == 406
    assert smooth.predict("blur", plain, accept="application/json", artifact="report").json()["topology"]


def test_only_a_dicom_image_is_answered_as_dicom(smooth: Gateway):
    plain = pillow("png", VOLUME[4:5].astype(np.uint8))
    assert told(smooth.predict("blur", plain, accept=DICOM)) == (406, "not_acceptable")
    film = written(dataset(VOLUME.astype(np.uint8)))  # frames of which nobody knows where they lie
    assert told(smooth.predict("smooth", film, accept=DICOM)) == (422, "bad_series")
