"""Edits by hand over HTTP: made, counted, listed, shown and undone, of stored predictions and of maps sent along."""

import io
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from app import imaging
from app.imaging import encode_nifti_gz, encode_png
from app.serving import edits
from tests.gateway import told
from tests.images import drawn
from tests.serving import networks

JSON = "application/json"


BROKEN = drawn("""
    ..............
    .999999999999.
    .9..........9.
    .9..........9.
    .99999499999..
    ..............
    .....9....4...
    ..............""")
"""A ring that gapes at (4, 6), a speck at (6, 5)."""


def recount(mask):
    """Components and enclosed background of a mask, by SciPy."""
    components = ndimage.label(mask, np.ones((3,) * mask.ndim))[1]
    return components, ndimage.label(np.pad(~mask, 1, constant_values=True))[1] - 1


@pytest.fixture
def stored(registered, predict):
    """The address of a stored prediction of BROKEN."""
    registered("plain", networks.through(), scaling=networks.PLAIN)
    return predict("plain", encode_png(BROKEN), accept=JSON, store="true").json()["links"]["self"]


@pytest.fixture
def edit(gateway, stored):
    """Ask for an edit of the stored prediction: `edit("connect", [4, 6])`."""

    def ask(kind, at, to=None, who="clinician", headers=None, **more):
        body = {"kind": kind, "at": at, "to": to} | more
        return gateway.ask("POST", f"{stored}/edits", who, json=body, headers=headers or {})

    return ask


def mask_of(gateway, address):
    return imaging.decode_mask(gateway.ask("GET", f"{address}/edits/mask").content, gateway.settings) > 0


# Making -------------------------------------------------------------------------------------------------------------


def test_gap_is_connected_counted_shown_and_undone(gateway, stored, edit):
    before = mask_of(gateway, stored)
    answer = edit("connect", [4, 6])
    made = answer.json()
    assert answer.status_code == 201 and answer.headers["location"] == made["links"]["self"]
    assert (made["kind"], made["class_name"], made["number"], made["adds"]) == ("connect", "vessel", 1, True)
    assert made["runs"] == [[4, 6, 7, 1]] and made["box"] == [[4, 6], [5, 7]] and made["pixels"] == 1
    assert made["cost"] == pytest.approx(0.5 - 112 / 255, abs=1e-5)
    assert made["before"] == {"vessel": {"beta0": 2, "beta1": 0, "beta2": None}}
    assert made["after"] == {"vessel": {"beta0": 2, "beta1": 1, "beta2": None}}
    after = mask_of(gateway, stored)
    assert (recount(before), recount(after)) == ((2, 0), (2, 1)) and np.argwhere(before != after).tolist() == [[4, 6]]
    kept = imaging.decode_mask(gateway.ask("GET", f"{stored}/mask.png").content, gateway.settings) > 0
    assert (kept == before).all(), "the mask of the network stays"
    assert gateway.ask("GET", made["links"]["self"]).json() == made
    assert gateway.ask("DELETE", made["links"]["self"], "clinician").status_code == 204
    assert told(gateway.ask("GET", made["links"]["self"])) == (404, "not_found")
    assert (mask_of(gateway, stored) == before).all()


def test_edits_build_on_each_other_and_are_undone_last_first(gateway, stored, edit):
    first, second, third = (edit(*wish).json() for wish in (("connect", [4, 6]), ("remove", [6, 5]), ("cut", [1, 5])))
    assert [made["number"] for made in (first, second, third)] == [1, 2, 3]
    assert second["before"] == first["after"] and third["before"] == second["after"]
    assert third["after"]["vessel"] == {"beta0": 1, "beta1": 0, "beta2": None}
    assert recount(mask_of(gateway, stored)) == (1, 0)
    items = gateway.ask("GET", f"{stored}/edits").json()["items"]
    assert [item["id"] for item in items] == [third["id"], second["id"], first["id"]]
    refused = gateway.ask("DELETE", first["links"]["self"], "clinician")
    assert told(refused) == (409, "conflict") and "2 later edits" in refused.json()["detail"]
    for made in (third, second, first):
        assert gateway.ask("DELETE", made["links"]["self"], "clinician").status_code == 204
    assert gateway.ask("GET", f"{stored}/edits").json()["items"] == [] and recount(mask_of(gateway, stored)) == (2, 0)


def test_edits_between_two_pixels_and_of_holes(gateway, stored, edit):
    assert edit("connect", [4, 5], [4, 7]).json()["after"]["vessel"]["beta1"] == 1
    joined = edit("connect", [6, 5], [4, 5]).json()
    assert joined["after"]["vessel"] == {"beta0": 1, "beta1": 1, "beta2": None}
    filled = edit("fill", [2, 5]).json()
    assert filled["after"]["vessel"]["beta1"] == 0 and filled["pixels"] == 2 * 10
    parted = edit("cut", [6, 5], [1, 5]).json()
    assert parted["after"]["vessel"]["beta0"] == 2 and not parted["adds"]
    assert recount(mask_of(gateway, stored)) == (2, 0)


def test_edits_of_a_volume(gateway, registered, predict):
    registered("cube", networks.through(dimensions=3), dimensions=3, scaling=networks.PLAIN)
    volume = np.zeros((9, 10, 30), np.uint8)
    volume[2:7, 2:7, 2:14] = volume[2:7, 2:7, 16:28] = 240
    volume[4, 4, 5] = 20
    volume[4, 4, 14:16] = 110
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    content = encode_nifti_gz(volume, affine)
    answer = predict("cube", content, accept=JSON, media="application/gzip", store="true").json()
    address = answer["links"]["self"]

    def made(**wish):
        return gateway.ask("POST", f"{address}/edits", "clinician", json=wish).json()

    joined = made(kind="connect", at=[4, 4, 14])
    assert joined["runs"] == [[4, 4, 14, 16, 1]]
    assert joined["before"]["vessel"] == {"beta0": 2, "beta1": 0, "beta2": 1}
    assert joined["after"]["vessel"] == {"beta0": 1, "beta1": 0, "beta2": 1}
    assert made(kind="fill", at=[4, 4, 5])["after"]["vessel"]["beta2"] == 0
    assert made(kind="cut", at=[4, 4, 20])["after"]["vessel"]["beta0"] == 2
    shown = nibabel.Nifti1Image.from_bytes(_unzipped(gateway.ask("GET", f"{address}/edits/mask")))
    assert np.allclose(shown.affine, affine) and set(np.unique(np.asarray(shown.dataobj))) == {0, 255}
    assert recount(np.asarray(shown.dataobj).T > 0) == (2, 0)


def _unzipped(answer):
    import gzip

    assert answer.headers["content-type"] == "application/gzip"
    return gzip.GzipFile(fileobj=io.BytesIO(answer.content)).read()


def test_edits_of_one_class_move_pixels_between_classes_and_count_all(gateway, registered, predict):
    scaling = {"kind": "dataset", "mean": [0.0] * 3, "std": [1.0] * 3}
    registered(
        "three", networks.through(channels=3), channels=3, classes=("background", "wall", "lumen"), scaling=scaling
    )
    pixels = np.zeros((3, 12, 20), np.uint8)
    pixels[0] = 100
    pixels[1, 4:8, 2:8] = pixels[1, 4:8, 10:16] = 200
    pixels[1, 5, 8:10], pixels[2, 5, 8:10] = 104, 110
    pixels[2, 4:8, 4] = 150
    address = predict("three", encode_png(pixels), accept=JSON, store="true").json()["links"]["self"]

    def ask(**wish):
        return gateway.ask("POST", f"{address}/edits", "clinician", json=wish)

    unnamed = ask(kind="connect", at=[5, 8])
    assert told(unnamed) == (422, "invalid") and "wall, lumen" in unnamed.json()["detail"]
    made = ask(kind="connect", at=[5, 8], class_name="wall").json()
    assert made["before"]["wall"]["beta0"] == 2 and made["after"]["wall"]["beta0"] == 1
    assert made["before"]["lumen"]["beta0"] == 1 and made["after"]["lumen"]["beta0"] == 0
    assert made["runs"] == [[5, 8, 10, 1]]
    cut = ask(kind="cut", at=[5, 4], class_name="wall").json()
    assert {run[-1] for run in cut["runs"]} == {2}, "lost pixels go to the next probable class"
    assert cut["after"]["wall"]["beta0"] == 2


def test_what_an_edit_costs_is_what_the_map_says():
    probability = np.full((1, 9, 20), 0.3, np.float32)
    probability[0, 2:7, 2:8] = probability[0, 2:7, 11:18] = 0.9
    labels = (probability[0] > 0.5).astype(np.uint8)
    mask = edits.ClassMask(labels, labels, ("background", "vessel"), 0.5)
    facts = {"mask": mask, "probability": probability, "class_name": None, "check": lambda: None}
    made = edits.made("connect", [4, 9], None, **facts)
    assert made.cost == pytest.approx(0.6, rel=1e-5) and made.runs == [[4 * 20 + 8, 4 * 20 + 11, 1]]
    assert (edits.applied(labels, [made.runs]) == made.labels).all() and made.labels.sum() == labels.sum() + 3


# Refusing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wish, code, sentence",
    [
        (("fill", [0, 0]), "nothing_to_edit", "not enclosed"),
        (("remove", [0, 0]), "nothing_to_edit", "background"),
        (("cut", [0, 0]), "nothing_to_edit", "background already"),
        (("connect", [99, 0]), "invalid", "is no pixel of an array of shape (8, 14)"),
        (("connect", [1, 2, 3]), "invalid", "is no pixel"),
        (("fill", [2, 5], [3, 5]), "invalid", "fill works at one pixel"),
    ],
)
def test_edit_that_cannot_be_made_is_refused_and_nothing_is_kept(gateway, stored, edit, wish, code, sentence):
    answer = edit(*wish)
    assert told(answer) == (422, code) and sentence in answer.json()["detail"]
    assert gateway.ask("GET", f"{stored}/edits").json()["items"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "paint", "at": [1, 1]},
        {"kind": "cut", "at": [1]},
        {"kind": "cut", "at": [1, 1, 1, 1]},
        {"kind": "cut", "at": [-1, 1]},
        {"kind": "cut", "at": [1.5, 1]},
        {"kind": "cut", "at": ["1", 1]},
        {"kind": "cut", "at": [True, 1]},
        {"kind": "cut", "at": [1, 1], "radius": 3},
        {"kind": "cut"},
    ],
)
def test_malformed_edit_is_refused(gateway, stored, body):
    assert told(gateway.ask("POST", f"{stored}/edits", "clinician", json=body)) == (422, "invalid")


def test_unknown_class_is_refused_by_name(edit):
    answer = edit("connect", [4, 6], class_name="wall")
    assert told(answer) == (422, "invalid") and "vessel" in answer.json()["detail"]


def test_edits_of_other_projects_are_not_found_and_viewers_may_only_look(gateway, stored, edit):
    made = edit("connect", [4, 6]).json()
    assert told(edit("remove", [6, 5], who="viewer")) == (403, "forbidden")
    assert told(gateway.ask("DELETE", made["links"]["self"], "viewer")) == (403, "forbidden")
    assert gateway.ask("GET", f"{stored}/edits", "viewer").json()["items"] == [made]
    for method, address in (
        ("POST", f"{stored}/edits"),
        ("GET", f"{stored}/edits"),
        ("GET", f"{stored}/edits/mask"),
        ("GET", made["links"]["self"]),
        ("DELETE", made["links"]["self"]),
    ):
        body = {"json": {"kind": "fill", "at": [2, 5]}} if method == "POST" else {}
        assert told(gateway.ask(method, address, "stranger", **body)) == (404, "not_found")
    assert told(gateway.ask("GET", f"{stored}/edits/{uuid.uuid4()}")) == (404, "not_found")


# Twice, and at once -------------------------------------------------------------------------------------------------


def test_repeated_request_with_its_key_makes_one_edit(gateway, stored, edit):
    key = {"Idempotency-Key": "an-edit"}
    first, again = (edit("connect", [4, 6], headers=key) for _ in range(2))
    assert again.status_code == 201 and again.json() == first.json() and again.headers["idempotency-replayed"] == "true"
    assert told(edit("remove", [6, 5], headers=key)) == (422, "idempotency_key_reused")
    assert len(gateway.ask("GET", f"{stored}/edits").json()["items"]) == 1


def test_of_edits_at_the_same_time_each_is_kept_whole_or_refused(gateway, stored, edit):
    wishes = [("connect", [4, 6]), ("remove", [6, 5]), ("cut", [1, 5]), ("cut", [2, 1])]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda wish: edit(*wish), wishes))
    kept = [answer.json() for answer in answers if answer.status_code == 201]
    assert kept and all(told(answer) == (409, "conflict") for answer in answers if answer.status_code != 201)
    kept.sort(key=lambda made: made["number"])
    assert [made["number"] for made in kept] == list(range(1, len(kept) + 1))
    for earlier, later in pairwise(kept):
        assert later["before"] == earlier["after"]
    numbers = recount(mask_of(gateway, stored))
    assert numbers == tuple(kept[-1]["after"]["vessel"][name] for name in ("beta0", "beta1"))


# Sent along ---------------------------------------------------------------------------------------------------------


def analysed(gateway, content, *, accept=None, mask=None, media="image/png", **options):
    headers = {"Accept": accept} if accept else {}
    if mask is None:
        sent = {"content": content, "headers": {"Content-Type": media} | headers}
    else:
        sent = {"files": {"image": content, "mask": mask}, "headers": headers}
    return gateway.ask("POST", "/v1/analyses/edits", "clinician", params=options, **sent)


def test_map_sent_along_is_edited_and_its_pixels_undo_it(gateway):
    answer = analysed(gateway, encode_png(BROKEN), kind="connect", at="4,6")
    made = answer.json()
    assert answer.status_code == 200 and made["runs"] == [[4, 6, 7, 1]] and made["shape"] == [8, 14]
    assert made["before"] == {"beta0": 2, "beta1": 0, "beta2": None}
    assert made["after"] == {"beta0": 2, "beta1": 1, "beta2": None}
    image = analysed(gateway, encode_png(BROKEN), kind="connect", at="4,6", accept="image/png")
    shown = imaging.decode_mask(image.content, gateway.settings) > 0
    assert recount(shown) == (2, 1)
    row, start, stop, _ = made["runs"][0]
    shown[row, start:stop] = False
    assert (shown == (BROKEN > 127)).all()


def test_mask_as_it_is_now_goes_along_with_the_map(gateway):
    now = (BROKEN > 127).astype(np.uint8) * 255
    now[6, 5] = 0
    made = analysed(gateway, encode_png(BROKEN), mask=encode_png(now), kind="cut", at="1,5", to="4,5").json()
    assert made["before"] == {"beta0": 1, "beta1": 0, "beta2": None}
    assert made["after"] == {"beta0": 2, "beta1": 0, "beta2": None}
    small = analysed(gateway, encode_png(BROKEN), mask=encode_png(now[1:]), kind="fill", at="1,5")
    assert told(small) == (422, "mask_mismatch")


def test_stored_images_are_edited_by_name(gateway):
    image = gateway.upload(encode_png(BROKEN)).json()["id"]
    body = json.dumps({"image": image, "mask": None})
    answer = gateway.ask(
        "POST",
        "/v1/analyses/edits",
        "clinician",
        params={"kind": "remove", "at": "6,5"},
        content=body,
        headers={"Content-Type": JSON},
    )
    assert answer.json()["after"]["beta0"] == 1


def test_label_of_a_mask_is_edited(gateway):
    labels = np.zeros((9, 20), np.uint8)
    labels[3:6, 2:8] = labels[3:6, 10:17] = 7
    labels[1] = 3
    made = analysed(gateway, encode_png(labels), kind="connect", at="4,9", label=7).json()
    assert made["after"] == {"beta0": 1, "beta1": 0, "beta2": None} and made["pixels"] == 2


def test_volume_sent_along_is_answered_as_nifti(gateway):
    volume = np.zeros((7, 8, 20), np.float32)
    volume[2:5, 2:6, 2:18] = 0.9
    answer = analysed(
        gateway,
        encode_nifti_gz(volume, np.eye(4)),
        media="application/gzip",
        accept="application/gzip",
        kind="cut",
        at="3,4,10",
    )
    assert recount(np.asarray(nibabel.Nifti1Image.from_bytes(_unzipped(answer)).dataobj).T > 0) == (2, 0)


@pytest.mark.parametrize(
    "options, code",
    [
        ({"kind": "fill", "at": "0,0"}, "nothing_to_edit"),
        ({"kind": "fill", "at": "0"}, "invalid"),
        ({"kind": "fill", "at": "0,x"}, "invalid"),
        ({"kind": "fill"}, "invalid"),
        ({"at": "0,0"}, "invalid"),
        ({"kind": "fill", "at": "900,0"}, "invalid"),
        ({"kind": "fill", "at": "0,0", "radius": 1}, "invalid"),
    ],
)
def test_malformed_or_empty_analysed_edit_is_refused(gateway, options, code):
    assert told(analysed(gateway, encode_png(BROKEN), **options)) == (422, code)
