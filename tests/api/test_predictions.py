"""Predictions over HTTP: answer formats, storage, references, refusals."""

import email
import io
import json

import nibabel
import numpy as np
import pytest
import tifffile

from app import imaging
from app.imaging import encode_nifti_gz, encode_png, encode_tiff
from tests.gateway import UNKNOWN, form, told
from tests.images import hollow_png, noise, noise_png
from tests.records import set_alias
from tests.serving import networks
from topology.components import betti_numbers
from topology.metrics import measure

RING = np.zeros((40, 40), np.uint8)
RING[8:32, 8:32] = 200
RING[14:26, 14:26] = 0


def decoded(content, settings):
    return imaging.decode_mask(content, settings)


@pytest.fixture
def blur(registered):
    return registered("blur", networks.blur(), threshold=0.5)


def test_the_mask_is_what_the_network_says_above_its_threshold(blur, predict, gateway):
    answer = predict("blur", encode_png(RING))
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    shown = decoded(answer.content, gateway.settings)
    assert set(np.unique(shown)) == {0, 255} and shown.shape == RING.shape
    assert betti_numbers(shown > 0) == (1, 1)
    assert answer.headers["toposerve-model"] == "blur:1"
    assert "toposerve-conversion" not in answer.headers


def test_the_probability_comes_as_float_tiff(blur, predict, gateway):
    answer = predict("blur", encode_png(RING), accept="image/tiff")
    assert answer.headers["content-type"] == "image/tiff"
    probability = tifffile.imread(io.BytesIO(answer.content))
    assert (
        probability.dtype == np.float32
        and probability.shape == RING.shape
        and 0 < probability.min() < probability.max() < 1
    )
    mask = decoded(predict("blur", encode_png(RING)).content, gateway.settings)
    np.testing.assert_array_equal(mask > 0, probability > 0.5)


def test_json_answer_reports_the_topology_of_the_mask(blur, predict):
    answer = predict("blur", encode_png(RING), accept="application/json")
    body = answer.json()
    assert answer.status_code == 200 and body["id"] is None and body["model"] == "blur:1" and body["shape"] == [40, 40]
    (vessel,) = body["topology"]
    assert (vessel["class_name"], vessel["beta0"], vessel["beta1"], vessel["euler"]) == ("vessel", 1, 1, 0)
    assert vessel["length_unit"] == "px" and vessel["skeleton_length"] == vessel["skeleton_length_px"] > 40
    assert vessel["components"][0]["size"] == vessel["foreground"] > 0
    assert 0 < vessel["roundness"] == vessel["components"][0]["roundness"] < 1
    assert set(body["timings_ms"]) >= {"decode", "normalise", "infer", "stitch", "topology"}


def test_every_phase_is_timed_in_the_server_timing_header(blur, predict):
    timing = predict("blur", encode_png(RING), topology="true").headers["server-timing"]
    phases = dict(part.split(";dur=") for part in timing.split(", "))
    assert set(phases) == {"decode", "normalise", "infer", "stitch", "topology", "encode", "total"}
    assert sum(float(ms) for phase, ms in phases.items() if phase != "total") <= float(phases["total"])


def test_betti_numbers_are_sent_with_a_mask_on_request(blur, predict):
    told_ = json.loads(predict("blur", encode_png(RING), topology="true").headers["toposerve-topology"])
    assert told_ == {"vessel": {"beta0": 1, "beta1": 1, "euler": 0}}
    assert "toposerve-topology" not in predict("blur", encode_png(RING)).headers
    assert predict("blur", encode_png(RING), accept="application/json", topology="false").json()["topology"] is None


def test_the_skeleton_has_the_topology_of_the_mask(blur, predict, gateway):
    mask, skeleton = (
        decoded(predict("blur", encode_png(RING), skeleton=flag).content, gateway.settings) > 0
        for flag in ("false", "true")
    )
    assert (
        betti_numbers(skeleton) == betti_numbers(mask)
        and skeleton.sum() < mask.sum() / 4
        and not (skeleton & ~mask).any()
    )


def test_a_volume_with_one_plane_or_an_affine_comes_back_on_its_own_grid(registered, predict):
    registered("cube", networks.blur_3d(), dimensions=3)
    affine = np.array([[0.5, 0, 0, -3], [0, 0.7, 0, 2], [0, 0, 2.5, 1], [0, 0, 0, 1.0]])
    answer = predict("cube", encode_nifti_gz(noise(8, 20, 30), affine), media="application/gzip")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/gzip", answer.text
    image = nibabel.Nifti1Image.from_bytes(imaging_gunzip(answer.content))
    np.testing.assert_allclose(image.affine, affine)
    assert image.shape == (30, 20, 8) and set(np.unique(image.get_fdata())) == {0, 255}
    body = predict(
        "cube", encode_nifti_gz(noise(8, 20, 30), affine), media="application/gzip", accept="application/json"
    ).json()
    assert body["spacing_mm"] == pytest.approx([2.5, 0.7, 0.5]) and body["topology"][0]["length_unit"] == "mm"
    assert body["topology"][0]["beta2"] >= 0
    assert told(
        predict("cube", encode_nifti_gz(noise(8, 20, 30), affine), media="application/gzip", accept="image/png")
    ) == (406, "not_acceptable")


def imaging_gunzip(content):
    import gzip

    return gzip.decompress(content)


def test_multiclass_mask_has_class_indices_and_a_report_per_class(registered, predict, gateway):
    registered("bands", networks.bands(3), classes=("background", "wall", "lumen"))
    shown = decoded(predict("bands", noise_png(30, 30)).content, gateway.settings)
    assert set(np.unique(shown)) == {0, 1, 2}
    body = predict("bands", noise_png(30, 30), accept="application/json").json()
    assert [each["class_name"] for each in body["topology"]] == ["wall", "lumen"] and body["threshold"] is None
    assert [each["foreground"] for each in body["topology"]] == [int((shown == k).sum()) for k in (1, 2)]
    stack = tifffile.imread(io.BytesIO(predict("bands", noise_png(30, 30), accept="image/tiff").content))
    assert stack.shape == (3, 30, 30)


def parts_of(answer):
    """Name -> media type and bytes of the parts of a multipart answer, as Python's mail parser reads it."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.content)
    return {
        part.get_param("name", header="content-disposition"): (part.get_content_type(), part.get_payload(decode=True))
        for part in message.get_payload()
    }


def test_one_answer_can_hold_the_report_and_the_mask(blur, predict, gateway):
    answer = predict("blur", encode_png(RING), accept="multipart/mixed", store="true")
    assert answer.status_code == 201
    parts = parts_of(answer)
    report = json.loads(parts["report"][1])
    assert report["topology"][0]["beta1"] == 1 and answer.headers["location"].endswith(report["id"])
    assert parts["mask"] == ("image/png", predict("blur", encode_png(RING)).content)
    without = parts_of(predict("blur", encode_png(RING), accept="multipart/mixed", topology="false"))
    assert json.loads(without["report"][1])["topology"] is None


def test_artifact_beside_the_report_keeps_its_float_and_its_grid(blur, registered, predict, gateway):
    parts = parts_of(predict("blur", encode_png(RING), accept="multipart/mixed", artifact="probability"))
    probability = nibabel.Nifti1Image.from_bytes(imaging_gunzip(parts["probability"][1])).get_fdata().T
    tiff = tifffile.imread(io.BytesIO(predict("blur", encode_png(RING), accept="image/tiff").content))
    np.testing.assert_array_equal(probability, tiff)
    affine = np.diag([0.5, 0.7, 2.5, 1.0])
    registered("cube", networks.blur_3d(), dimensions=3)
    for model, pixels in (("blur", noise(20, 30)), ("cube", noise(8, 20, 30))):
        parts = parts_of(predict(model, encode_nifti_gz(pixels, affine), accept="multipart/mixed"))
        mask = nibabel.Nifti1Image.from_bytes(imaging_gunzip(parts["mask"][1]))
        np.testing.assert_allclose(mask.affine, affine)
        assert mask.shape[::-1] == pixels.shape


@pytest.mark.parametrize(
    "accept, media",
    [
        ("*/*", "image/png"),
        ("application/json, image/png", "image/png"),
        ("image/png;q=0.2, image/tiff", "image/tiff"),
        ("image/png;q=0, image/*", "image/tiff"),
        ("application/json;q=0.9, */*;q=0.1", "application/json"),
    ],
)
def test_accept_header_quality_values_are_honoured(blur, predict, accept, media):
    assert predict("blur", encode_png(RING), accept=accept).headers["content-type"] == media


def test_unavailable_answer_format_is_refused_with_the_available_ones(blur, predict):
    answer = predict("blur", encode_png(RING), accept="application/gzip")
    assert told(answer) == (406, "not_acceptable")
    assert "image/png, image/tiff, application/json" in answer.json()["detail"]


def test_the_image_may_come_as_a_form(blur, predict, gateway):
    headers, body = form([('form-data; name="file"; filename="/home/ann/im.png"', encode_png(RING))])
    answer = gateway.ask("POST", "/v1/models/blur/predict", "clinician", content=body, headers=headers)
    assert answer.content == predict("blur", encode_png(RING)).content


def test_prediction_accepts_model_name_alias_or_number(registered, predict, gateway):
    first = registered("tones", networks.constant(0.2))
    registered("tones", networks.constant(0.8))
    set_alias(gateway.database, first, "champion")
    used = {
        ref: predict(ref, noise_png(20, 20)).headers["toposerve-model"]
        for ref in ("tones", "tones@champion", "tones:1", "tones:2")
    }
    assert used == {"tones": "tones:2", "tones@champion": "tones:1", "tones:1": "tones:1", "tones:2": "tones:2"}


def test_a_colour_image_for_a_grey_model_is_converted_and_the_answer_says_so(blur, predict):
    answer = predict("blur", noise_png(30, 30, 3))
    assert answer.status_code == 200 and answer.headers["toposerve-conversion"] == "luminance"
    assert predict("blur", noise_png(30, 30, 3), accept="application/json").json()["conversion"] == "luminance"


def test_sixteen_bit_depth_is_kept(blur, predict):
    """Eight bits would make one grey level of all of these."""
    deep = (noise(30, 30).astype(np.uint16) + 1000).astype(np.uint16)
    probability = tifffile.imread(
        io.BytesIO(predict("blur", encode_tiff(deep), media="image/tiff", accept="image/tiff").content)
    )
    assert probability.std() > 0.05


# Kept ---------------------------------------------------------------------------------------------------------------


def test_a_stored_prediction_keeps_the_image_and_everything_made_of_it(blur, predict, gateway):
    answer = predict("blur", encode_png(RING), accept="application/json", store="true")
    body = answer.json()
    assert (
        answer.status_code == 201
        and answer.headers["location"] == f"/v1/predictions/{body['id']}" == body["links"]["self"]
    )
    again = gateway.ask("GET", answer.headers["location"]).json()
    assert again == body
    assert set(body["artifacts"]) == {"mask", "skeleton", "simple_points", "probability", "uncertainty"}
    for name, media in (
        ("mask.png", "image/png"),
        ("probability.tiff", "image/tiff"),
        ("skeleton.png", "image/png"),
        ("simple_points.png", "image/png"),
        ("uncertainty.png", "image/png"),
    ):
        file = gateway.ask("GET", f"{answer.headers['location']}/{name}")
        assert (
            file.status_code == 200
            and file.headers["content-type"] == media
            and file.headers["x-content-type-options"] == "nosniff"
        )
    assert (
        gateway.ask("GET", f"{answer.headers['location']}/mask.png").content
        == predict("blur", encode_png(RING)).content
    )
    assert gateway.ask("GET", body["links"]["image"] + "/content").content == encode_png(RING)
    assert gateway.ask("GET", "/v1/predictions").json()["items"] == [body]


def test_a_stored_mask_gives_the_graph_of_its_skeleton(blur, predict, gateway):
    stored = predict("blur", encode_png(RING), accept="application/json", store="true").json()
    address = stored["links"]["self"]
    graph = gateway.ask("GET", f"{address}/skeleton.json").json()
    of_class = gateway.ask("GET", f"{address}/skeleton.json", params={"class_name": "vessel"}).json()
    assert graph == of_class and graph["length_unit"] == "px"
    assert graph["length"] == pytest.approx(stored["topology"][0]["skeleton_length"])
    text = gateway.ask("GET", f"{address}/skeleton.graphml")
    assert text.headers["content-type"] == "application/graphml+xml"
    assert text.text.count("<edge ") == len(graph["branches"])
    refused = gateway.ask("GET", f"{address}/skeleton.json", params={"class_name": "bone"})
    assert refused.status_code == 422 and "Classes: vessel" in refused.json()["detail"]
    assert "skeleton.graphml" in gateway.ask("GET", f"{address}/nothing.png").json()["detail"]


def test_a_stored_mask_says_where_it_was_kept(blur, predict):
    answer = predict("blur", encode_png(RING), store="true")
    assert (
        answer.status_code == 201
        and answer.headers["content-type"] == "image/png"
        and answer.headers["location"].startswith("/v1/predictions/")
    )


def test_prediction_is_stored_only_on_request(blur, predict, gateway):
    before = gateway.count_everything()
    predict("blur", encode_png(RING))
    predict("blur", encode_png(RING), accept="application/json")
    assert gateway.count_everything() == before


def test_the_same_idempotency_key_stores_once_and_gets_the_first_answer(blur, predict, gateway):
    key = {"Idempotency-Key": "scan-1"}
    first, second = (predict("blur", encode_png(RING), store="true", headers=key) for _ in range(2))
    assert (first.status_code, first.content, first.headers["location"]) == (
        second.status_code,
        second.content,
        second.headers["location"],
    )
    assert second.headers["idempotency-replayed"] == "true"
    assert len(gateway.ask("GET", "/v1/predictions").json()["items"]) == 1
    assert told(predict("blur", noise_png(20, 20), store="true", headers=key)) == (422, "idempotency_key_reused")


def test_predictions_are_listed_by_model_and_by_image(blur, registered, predict, gateway):
    registered("other", networks.blur(gain=9.0))
    mine = predict("blur", encode_png(RING), accept="application/json", store="true").json()
    theirs = predict("other", noise_png(20, 20), accept="application/json", store="true").json()

    def listed(**filters):
        return [each["id"] for each in gateway.ask("GET", "/v1/predictions", params=filters).json()["items"]]

    assert listed() == [theirs["id"], mine["id"]]
    assert listed(model="blur") == listed(image=mine["image"]) == [mine["id"]]
    assert listed(job=UNKNOWN) == []
    assert told(gateway.ask("GET", "/v1/predictions", params={"model": "unknown"})) == (404, "not_found")


def test_a_reference_gives_every_metric_and_a_picture_of_the_difference(blur, predict, gateway):
    stored = predict("blur", encode_png(RING), accept="application/json", store="true").json()
    reference = np.zeros_like(RING)
    reference[8:32, 8:32] = 1  # the ring without its hole
    answer = gateway.ask(
        "PUT",
        stored["links"]["reference"],
        "clinician",
        content=encode_png(reference),
        headers={"Content-Type": "image/png"},
    )
    assert answer.status_code == 200, answer.text
    (figures,) = answer.json()["measurements"]
    mask = decoded(gateway.ask("GET", stored["artifacts"]["mask"]["href"]).content, gateway.settings) > 0
    expected = measure(mask, reference > 0)
    assert figures["class_name"] == "vessel" and figures["beta1_error"] == 1
    assert {name: figures[name] for name in ("dice", "cldice", "voi", "hd95", "euler_error")} == pytest.approx(
        {name: expected[name] for name in ("dice", "cldice", "voi", "hd95", "euler_error")}
    )
    assert figures["adapted_rand_error"] == pytest.approx(expected["adapted_rand_error"])
    picture = imaging.decode(
        gateway.ask("GET", f"/v1/predictions/{stored['id']}/difference.png").content, gateway.settings
    ).pixels
    assert tuple(picture[:, 20, 20]) == (86, 180, 233)  # the hole: only the reference has it
    assert tuple(picture[:, 10, 20]) == (255, 255, 255) and tuple(picture[:, 0, 0]) == (0, 0, 0)


def test_a_reference_is_replaced_by_a_later_one(blur, predict, gateway):
    stored = predict("blur", encode_png(RING), accept="application/json", store="true").json()
    mask = gateway.ask("GET", stored["artifacts"]["mask"]["href"]).content
    uploaded = gateway.upload(mask).json()["id"]
    for body in (encode_png(np.zeros_like(RING)), None):
        options = {"content": body, "headers": {"Content-Type": "image/png"}} if body else {"json": {"image": uploaded}}
        answer = gateway.ask("PUT", stored["links"]["reference"], **options)
        assert answer.status_code == 200, answer.text
    (figures,) = answer.json()["measurements"]
    assert figures["dice"] == 1 and figures["beta0_error"] == figures["beta1_error"] == 0
    assert gateway.ask("GET", stored["links"]["self"]).json()["measurements"] == answer.json()["measurements"]


def test_unlabelled_pixels_are_ignored_by_the_metrics(blur, predict, gateway):
    stored = predict("blur", encode_png(RING), accept="application/json", store="true").json()
    mask = decoded(gateway.ask("GET", stored["artifacts"]["mask"]["href"]).content, gateway.settings) > 0
    reference = mask.astype(np.uint8)
    reference[:12] = np.where(mask[:12], 0, 1)  # wrong above, and nobody may look there
    reference[:12] = 255
    answer = gateway.ask(
        "PUT", stored["links"]["reference"], content=encode_png(reference), headers={"Content-Type": "image/png"}
    ).json()
    assert answer["measurements"][0]["dice"] == 1


@pytest.mark.parametrize(
    "body, expected",
    [
        (
            {"content": encode_png(np.zeros((40, 41), np.uint8)), "headers": {"Content-Type": "image/png"}},
            (422, "mask_mismatch"),
        ),
        (
            {"content": encode_png(np.full((40, 40), 7, np.uint8)), "headers": {"Content-Type": "image/png"}},
            (422, "unknown_label"),
        ),
        ({"content": b"no image", "headers": {"Content-Type": "image/png"}}, (415, "unsupported_image")),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, (415, "unsupported_image")),
        ({"json": {"image": UNKNOWN}}, (404, "not_found")),
        ({"json": {"image": "seven"}}, (422, "invalid")),
        ({"json": {"picture": UNKNOWN}}, (422, "invalid")),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, (400, "invalid_json")),
    ],
)
def test_a_reference_that_does_not_fit_is_refused_and_changes_nothing(blur, predict, gateway, body, expected):
    stored = predict("blur", encode_png(RING), accept="application/json", store="true").json()
    assert told(gateway.ask("PUT", stored["links"]["reference"], **body)) == expected
    assert gateway.ask("GET", stored["links"]["self"]).json() == stored


def test_unknown_artifact_is_refused_with_the_existing_ones(blur, predict, gateway):
    stored = predict("blur", encode_png(RING), accept="application/json", store="true").json()
    answer = gateway.ask("GET", stored["links"]["self"] + "/difference.png")
    assert told(answer) == (404, "not_found")
    assert all(
        name in answer.json()["detail"]
        for name in ("mask.png", "skeleton.png", "simple_points.png", "probability.tiff", "uncertainty.png")
    )


def test_a_stored_volume_keeps_its_grid(registered, predict, gateway):
    registered("cube", networks.blur_3d(), dimensions=3)
    affine = np.diag([0.5, 0.7, 2.5, 1.0])
    volume = encode_nifti_gz(noise(8, 20, 30), affine)
    body = predict("cube", volume, media="application/gzip", accept="application/json", store="true").json()
    assert body["shape"] == [8, 20, 30] and body["spacing_mm"] == pytest.approx([2.5, 0.7, 0.5])
    mask = gateway.ask("GET", f"/v1/predictions/{body['id']}/mask.nii.gz")
    np.testing.assert_allclose(nibabel.Nifti1Image.from_bytes(imaging_gunzip(mask.content)).affine, affine)
    answer = gateway.ask(
        "PUT", body["links"]["reference"], content=mask.content, headers={"Content-Type": "application/gzip"}
    ).json()
    assert answer["measurements"][0]["dice"] == 1 and answer["measurements"][0]["beta2_error"] == 0


# Refused ------------------------------------------------------------------------------------------------------------


def test_another_project_sees_neither_the_model_nor_the_prediction(blur, predict, gateway):
    stored = predict("blur", encode_png(RING), accept="application/json", store="true").json()
    assert told(predict("blur", encode_png(RING), who="stranger")) == (404, "not_found")
    for path in (stored["links"]["self"], stored["artifacts"]["mask"]["href"]):
        assert told(gateway.ask("GET", path, "stranger")) == (404, "not_found")
    assert told(
        gateway.ask(
            "PUT",
            stored["links"]["reference"],
            "stranger",
            content=noise_png(40, 40),
            headers={"Content-Type": "image/png"},
        )
    ) == (404, "not_found")
    seen = gateway.ask("GET", "/v1/predictions", "stranger").json()["items"]
    assert stored["id"] not in [each["id"] for each in seen]


def test_prediction_without_scope_is_refused_naming_the_scope(blur, predict):
    assert told(predict("blur", encode_png(RING), who="viewer")) == (403, "forbidden")
    assert told(predict("blur", encode_png(RING), who=None)) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "ref, expected",
    [
        ("unknown", (404, "not_found")),
        ("blur@nobody", (404, "not_found")),
        ("blur:9", (404, "not_found")),
        ("blur:0", (422, "invalid")),
        ("a b", (422, "invalid")),
    ],
)
def test_unknown_model_is_refused(blur, predict, ref, expected):
    assert told(predict(ref, encode_png(RING))) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": "nan"},
        {"threshold": "2"},
        {"threshold": "0"},
        {"threshold": "inf"},
        {"threshold": "half"},
        {"tresholt": "0.5"},
        {"store": "perhaps"},
    ],
)
def test_an_option_that_is_wrong_or_misspelt_is_refused(blur, predict, options):
    answer = predict("blur", encode_png(RING), **options)
    assert told(answer) == (422, "invalid") and answer.json()["errors"][0]["pointer"] == f"/query/{next(iter(options))}"


def test_a_threshold_for_a_model_of_several_classes_is_refused(registered, predict):
    registered("bands", networks.bands(3), classes=("background", "wall", "lumen"))
    assert told(predict("bands", noise_png(30, 30), threshold="0.4")) == (422, "invalid")


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", (415, "unsupported_image")),
        (b"hello", (415, "unsupported_image")),
        (encode_png(RING)[:60], (422, "corrupt_image")),
        (hollow_png(0, 5), (422, "empty_image")),
        (hollow_png(50_000, 50_000), (413, "too_many_pixels")),
    ],
)
def test_bytes_that_are_not_an_image_are_refused(blur, predict, content, expected):
    assert told(predict("blur", content)) == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (64, 7)])
def test_an_image_below_the_models_minimum_is_refused_with_the_minimum(registered, predict, shape):
    registered("coarse", networks.blur(), multiple=8)
    answer = predict("coarse", noise_png(*shape))
    assert told(answer) == (422, "image_too_small") and "8 x 8" in answer.json()["detail"]


def test_a_grey_image_for_a_colour_model_is_converted_and_the_answer_says_so(registered, predict):
    registered("colour", networks.blur(channels=3), channels=3)
    answer = predict("colour", noise_png(30, 30))
    assert answer.status_code == 200 and answer.headers["toposerve-conversion"] == "grey_to_rgb"


def test_a_grey_image_for_a_model_of_two_channels_is_refused_with_what_to_do(registered, predict):
    registered("pair", networks.blur(channels=2), channels=2)
    answer = predict("pair", noise_png(30, 30))
    assert told(answer) == (422, "model_input") and "an image of 2 channels" in answer.json()["detail"]


def test_a_volume_for_a_model_of_images_is_refused(blur, predict):
    assert told(predict("blur", encode_nifti_gz(noise(4, 20, 30)), media="application/gzip")) == (422, "model_input")


def test_nan_prediction_is_never_sent(registered, predict):
    registered("broken", networks.not_a_number())
    for accept in ("image/png", "image/tiff", "application/json"):
        assert told(predict("broken", noise_png(30, 30), accept=accept)) == (422, "model_non_finite")


def test_nan_pixels_are_refused(blur, predict):
    pixels = np.zeros((20, 20), np.float32)
    pixels[3, 3] = np.nan
    assert told(predict("blur", encode_tiff(pixels), media="image/tiff")) == (422, "non_finite")


def test_damaged_network_file_is_detected_and_not_used(registered, predict, gateway):
    version = registered("flipped", networks.blur(gain=7.0))
    path = gateway.blobs.local_path(gateway.project_id, version.onnx_sha256)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert told(predict("flipped", noise_png(30, 30))) == (500, "blob_corrupt")
    path.write_bytes(networks.blur(gain=7.0))
    assert predict("flipped", noise_png(30, 30)).status_code == 200


def test_a_network_that_is_not_what_its_manifest_says_is_refused(registered, predict):
    for name, content, facts in (
        ("output", networks.blur(), {"output": "mask"}),
        ("channels", networks.blur(channels=2), {}),
        ("classes", networks.blur(), {"classes": ("background", "a", "b")}),
        ("garbage", b"no network", {}),
        ("manifest", networks.blur(), {"unknown_fact": 1}),
        ("extra", networks.blur(), {"extra_outputs": ["persistence_threshold"]}),
        ("unknown-extra", networks.with_threshold(), {"extra_outputs": ["temperature"]}),
    ):
        registered(name, content, **facts)
        assert told(predict(name, noise_png(30, 30))) == (422, "model_signature"), name


def test_storing_needs_the_right_to_write_images(blur, predict, gateway):
    from app.store import keys

    with gateway.database.write() as session:
        gateway.keys["only predict"] = keys.add(
            session, project_id=gateway.project_id, name="p", role="clinician", scopes=["predict"]
        )[1]
    assert predict("blur", encode_png(RING), who="only predict").status_code == 200
    assert told(predict("blur", encode_png(RING), who="only predict", store="true")) == (403, "forbidden")
