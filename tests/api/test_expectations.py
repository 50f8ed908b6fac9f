"""Expected topology, margins, repair and uncertainty of predictions over HTTP."""

import io
import json
from functools import partial

import nibabel
import numpy as np
import pytest
import tifffile

from app import imaging
from app.errors import Invalid
from app.imaging import encode_nifti_gz, encode_png
from app.serving import answers, certainty, expectations, repair
from app.serving.pipeline import Segmentation
from tests.gateway import told
from tests.images import drawn
from tests.serving import networks
from topology.components import betti_numbers

JSON = "application/json"
nearly = partial(pytest.approx, abs=1e-6)
CLASSES = ("background", "vessel", "a.b, c")


BROKEN = drawn("""
    ..............
    .999999999999.
    .9..........9.
    .9..........9.
    .99999499959..
    ..............
    .....5....4...
    ..............""")
"""A ring that gapes by one pixel of 4 and hangs together by one of 5; a speck of 5 that is just there, one of 4 that is
just not.
"""
P4, P5 = 112 / 255, 137 / 255
"""What the digits 4 and 5 stand for."""


@pytest.fixture
def plain(registered):
    return registered("plain", networks.through(), scaling=networks.PLAIN)


@pytest.fixture
def three(registered):
    scaling = {"kind": "dataset", "mean": [0.0] * 3, "std": [1.0] * 3}
    return registered(
        "three", networks.through(channels=3), channels=3, classes=("background", "wall", "lumen"), scaling=scaling
    )


def mask_of(answer, gateway):
    return imaging.decode_mask(answer.content, gateway.settings)


# Margins ------------------------------------------------------------------------------------------------------------


def test_margins_give_place_and_stability_of_each_feature(plain, predict):
    (vessel,) = predict("plain", encode_png(BROKEN), accept=JSON, margins="true").json()["topology"]
    told_ = vessel["margins"]
    seen = [
        (
            each["dimension"],
            each["present"],
            tuple(each["position"]),
            round(each["margin"], 3),
            each["changes_at"] > 0.5,
        )
        for each in told_["features"]
    ]
    assert sorted(seen) == sorted(
        [
            (0, True, (6, 5), 0.037, True),
            (0, False, (4, 10), 0.037, True),
            (0, False, (6, 10), 0.061, False),
            (1, False, (4, 6), 0.061, False),
            (0, True, (1, 1), 0.429, True),
        ]
    )
    assert [each["margin"] for each in told_["features"]] == sorted(each["margin"] for each in told_["features"])
    assert {each["sentence"] for each in told_["features"]} >= {
        "The component at (6, 5) holds by 0.037: a threshold higher by that erases it.",
        "The bridge at (4, 10) holds by 0.037: a threshold higher by that makes two components of one.",
        "The gap at (4, 6) is open by 0.061: a threshold lower by that closes a loop.",
        "A component at (6, 10) is missed by 0.061: a threshold lower by that shows it.",
    }
    assert (told_["present"], told_["near"], told_["threshold"]) == (vessel["beta0"] + vessel["beta1"], 3, 0.5)
    assert told_["features"][0]["changes_at"] == nearly(P5)


def test_margins_follow_the_threshold_and_are_optional(plain, predict):
    (vessel,) = predict("plain", encode_png(BROKEN), accept=JSON, margins="true", threshold=0.4).json()["topology"]
    assert vessel["margins"]["threshold"] == 0.4 and vessel["margins"]["features"][0]["margin"] == nearly(P4 - 0.4)
    body = predict("plain", encode_png(BROKEN), accept=JSON).json()
    assert body["topology"][0]["margins"] is None and body["expectation"] is None and body["repair"] is None


def test_multiclass_margin_is_the_lead_over_the_next_class(three, predict):
    pixels = np.zeros((3, 6, 9), np.uint8)
    pixels[0] = 200
    pixels[1, 2, 1:4], pixels[1, 2, 2] = 250, 210
    pixels[2, 2, 5:8] = 230
    body = predict("three", encode_png(pixels), accept=JSON, margins="true").json()
    wall, lumen = body["topology"]
    assert wall["margins"]["threshold"] == 0 and lumen["margins"]["features"][0]["margin"] == nearly(30 / 255)
    bridge = next(each for each in wall["margins"]["features"] if not each["present"])
    assert bridge["position"] == [2, 2] and bridge["margin"] == nearly(10 / 255)


# Expectations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expect",
    [
        "beta0:2",
        "beta0:2,beta1:0",
        " vessel.beta0 : 2 ",
        "{beta0:2,beta1:0}",
        '{"beta0": 2}',
        '{"vessel": {"beta0": 2, "euler": 2}}',
        '{"vessel.beta1": 0}',
        "euler:2",
    ],
)
def test_met_expectation_is_satisfied_in_every_notation(plain, predict, expect):
    answer = predict("plain", encode_png(BROKEN), accept=JSON, expect=expect)
    assert answer.status_code == 200, answer.text
    assert answer.json()["expectation"]["satisfied"] is True and answer.json()["expectation"]["violations"] == []
    image = predict("plain", encode_png(BROKEN), expect=expect, strict="true")
    assert image.headers["toposerve-expectation"] == "satisfied" and image.headers["content-type"] == "image/png"


def test_violation_names_the_surplus_or_missing_features(plain, predict):
    body = predict("plain", encode_png(BROKEN), accept=JSON, expect="beta0:1,beta1:1,euler:0").json()
    expectation = body["expectation"]
    assert expectation["satisfied"] is False and expectation["expected"] == {
        "vessel": {"beta0": 1, "beta1": 1, "euler": 0}
    }
    many, few, euler = expectation["violations"]
    assert (many["class_name"], many["name"], many["expected"], many["found"], many["by"]) == (
        "vessel",
        "beta0",
        1,
        2,
        1,
    )
    least = many["places"][0]
    assert (least["position"], least["size"], least["box"]) == ([6, 5], 1, [[6, 5], [7, 6]]) and least[
        "margin"
    ] == nearly(P5 - 0.5)
    assert (few["name"], few["by"], [each["position"] for each in few["places"]]) == ("beta1", -1, [[4, 6]])
    assert euler["name"] == "euler" and euler["by"] == 2


def test_strict_mode_refuses_with_all_violations_and_stores_nothing(plain, predict, gateway):
    before = gateway.count_everything()
    for accept in (JSON, "image/png"):
        answer = predict("plain", encode_png(BROKEN), accept=accept, expect="beta0:1", strict="true", store="true")
        assert told(answer) == (422, "expectation_violated")
        (violation,) = answer.json()["violations"]
        assert violation["found"] == 2 and violation["places"][0]["position"] == [6, 5]
        assert answer.json()["errors"][0]["detail"] == "vessel has 2 components; 1 was expected."
    assert gateway.count_everything() == before


def test_violated_expectation_is_reported_without_strict(plain, predict):
    answer = predict("plain", encode_png(BROKEN), expect="beta0:7")
    assert answer.status_code == 200 and answer.headers["toposerve-expectation"] == "violated"


@pytest.mark.parametrize(
    "options, said",
    [
        ({"expect": "beta7:1"}, "beta0, beta1, euler"),
        ({"expect": "beta2:1"}, "2 dimensions"),
        ({"expect": "beta0:-1"}, "from 0 to 2147483647"),
        ({"expect": "beta0:2147483648"}, "from 0 to 2147483647"),
        ({"expect": "euler:-2147483648"}, "from -2147483647"),
        ({"expect": "beta0:99999999999"}, "whole number"),
        ({"expect": "beta0:one"}, "whole number"),
        ({"expect": "beta0:1.5"}, "whole number"),
        ({"expect": "beta0"}, "a colon"),
        ({"expect": ","}, "a colon"),
        ({"expect": "wall.beta0:1"}, "there is vessel"),
        ({"expect": "background.beta0:1"}, "there is vessel"),
        ({"expect": ".beta0:1"}, "there is vessel"),
        ({"expect": "beta0:1,beta0:2"}, "both 1 and 2"),
        ({"expect": '{"beta0": 1, "beta0": 1}'}, "no JSON object"),
        ({"expect": '{"beta0": true}'}, "whole number"),
        ({"expect": '{"beta0": "1"}'}, "whole number"),
        ({"expect": '{"vessel": {}, "a": {}}'}, "Nothing is expected"),
        ({"expect": '{"beta0": {"beta0": 1}}'}, "there is vessel"),
        ({"expect": '{"beta0": 1'}, "no JSON object"),
        ({"expect": '{"beta0": ' + "9" * 2000 + "}"}, "from 0"),
        ({"strict": "true"}, "Send `expect`"),
        ({"repair_margin": 0.1}, "repair=true"),
        ({"repair_margin": 0.1, "repair": "true", "expect": "beta0:1"}, "Leave one of them out"),
        ({"skeleton": "true", "artifact": "probability"}, "Leave one of them out"),
    ],
)
def test_impossible_expectation_is_refused_with_a_suggestion(plain, predict, options, said):
    answer = predict("plain", encode_png(BROKEN), **options)
    assert told(answer) == (422, "invalid") and said in answer.json()["detail"], answer.text
    assert answer.json()["errors"][0]["pointer"].startswith("/query/")


@pytest.mark.parametrize(
    "options",
    [
        {"expect": ""},
        {"expect": "x" * 2049},
        {"repair_margin": 0, "repair": "true"},
        {"repair_margin": "nan", "repair": "true"},
        {"artifact": "everything"},
        {"margins": "perhaps"},
    ],
)
def test_options_outside_their_bounds_are_refused(plain, predict, options):
    assert told(predict("plain", encode_png(BROKEN), **options)) == (422, "invalid")


def test_class_names_with_special_characters_can_be_used():
    assert expectations.read("beta0:1", CLASSES, 2) == {"vessel": {"beta0": 1}, "a.b, c": {"beta0": 1}}
    assert expectations.read('{"a.b, c": {"beta0": 3}}', CLASSES, 2) == {"a.b, c": {"beta0": 3}}
    assert expectations.read("vessel.beta2:0", CLASSES, 3) == {"vessel": {"beta2": 0}}
    with pytest.raises(Invalid, match=r"no class 'a\.b'"):
        expectations.read("a.b.beta0:1", CLASSES, 2)


# Repairs ------------------------------------------------------------------------------------------------------------


def test_repair_meets_the_expectation_and_lists_every_edit(plain, predict, gateway):
    from skimage.measure import euler_number, label

    options = {"expect": "beta0:1,beta1:0", "repair": "true"}
    body = predict("plain", encode_png(BROKEN), accept=JSON, **options).json()
    (edit,) = body["repair"]["edits"]
    assert (edit["class_name"], edit["kind"], edit["position"], edit["box"], edit["pixels"]) == (
        "vessel",
        "erase",
        [6, 5],
        [[6, 5], [7, 6]],
        1,
    )
    assert (
        edit["change"] == nearly(P5 - 0.5) and body["repair"]["certified"] is True and body["repair"]["edit_count"] == 1
    )
    assert body["expectation"]["satisfied"] and (body["topology"][0]["beta0"], body["topology"][0]["beta1"]) == (1, 0)
    image = predict("plain", encode_png(BROKEN), strict="true", **options)
    shown = mask_of(image, gateway) > 0
    assert (
        image.headers["toposerve-edits"] == "1"
        and label(shown, connectivity=2).max() == 1
        and euler_number(shown, connectivity=2) == 1
    )
    assert np.argwhere(shown != (BROKEN > 127)).tolist() == [[6, 5]]


def test_repair_closes_a_ring_when_one_loop_is_expected(plain, predict, gateway):
    answer = predict("plain", encode_png(BROKEN), expect="beta0:1,beta1:1", repair="true")
    shown = mask_of(answer, gateway) > 0
    assert answer.status_code == 200 and betti_numbers(shown) == (1, 1) and shown[4, 6]


def test_repair_without_expectation_keeps_only_stable_features(plain, predict):
    weak, strong = (
        predict("plain", encode_png(BROKEN), accept=JSON, repair="true", **more).json()
        for more in ({"repair_margin": 0.03}, {})
    )
    assert weak["repair"] == {"certified": True, "edit_count": 0, "edits": []} and weak["topology"][0]["beta0"] == 2
    assert strong["repair"]["edit_count"] == 1 and strong["topology"][0]["beta0"] == 1 and strong["expectation"] is None


def test_unreachable_repair_is_refused_with_the_result_reached(plain, predict, gateway):
    before = gateway.count_everything()
    answer = predict("plain", encode_png(BROKEN), expect="beta0:9", repair="true", store="true")
    assert told(answer) == (422, "repair_failed")
    assert (
        answer.json()["reached"]["vessel"]["beta0"] < 9
        and "as near as edits of its map lead to beta0 9" in answer.json()["detail"]
    )
    assert told(predict("plain", encode_png(BROKEN), expect="euler:5", repair="true")) == (422, "repair_failed")
    assert gateway.count_everything() == before


def test_repair_gives_removed_pixels_to_the_next_probable_class(three, predict, gateway):
    pixels = np.zeros((3, 12, 12), np.uint8)
    pixels[0] = 100
    pixels[1, 2:5, 2:5], pixels[1, 8, 8] = 200, 120
    pixels[2, 7:10, 7:10], pixels[2, 2, 10] = 110, 105
    options = {"expect": "beta0:1,beta1:0", "repair": "true"}
    before, after = (mask_of(predict("three", encode_png(pixels), **each), gateway) for each in ({}, options))
    assert [betti_numbers(before == k) for k in (1, 2)] == [(2, 0), (2, 1)]
    assert [betti_numbers(after == k) for k in (1, 2)] == [(1, 0), (1, 0)]
    assert after[8, 8] == 2 and after[2, 10] == 0
    body = predict("three", encode_png(pixels), accept=JSON, **options).json()
    assert {each["class_name"] for each in body["repair"]["edits"]} <= {"wall", "lumen"} and body["expectation"][
        "satisfied"
    ]


def answered(probability, threshold=None):
    labels = probability.argmax(axis=0) if threshold is None else probability[0] > threshold
    return Segmentation(labels.astype(np.uint8), probability, ("background", "wall", "lumen"), threshold, None, 1, {})


def test_a_bridge_takes_its_pixels_from_the_other_classes():
    scores = np.zeros((3, 5, 9), np.float32)
    scores[0] = 0.5
    scores[1, 1:4, 1:4] = scores[1, 1:4, 5:8] = 0.9
    scores[1, 2, 4], scores[2, 2, 4] = 0.55, 0.6
    made = repair.repaired(answered(scores), {"wall": {"beta0": 1}})
    assert [(edit["kind"], edit["position"]) for edit in made.edits["wall"]] == [("bridge", (2, 4))]
    assert (
        made.prediction.labels[2, 4] == 1
        and betti_numbers(made.prediction.labels == 1) == (1, 0)
        and not (made.prediction.labels == 2).any()
    )
    np.testing.assert_array_equal(made.prediction.probability, scores)


def test_tied_pixel_belongs_to_the_class_in_the_mask():
    drawn_ = np.full((3, 4, 4), 1 / 3, np.float32)
    drawn_[0, 1:3, 1:3] = 0
    for position, components in ((1, 1), (2, 0)):
        found = certainty.features(answered(drawn_), position)
        assert found.present[found.bars.dimension == 0].sum() == components
    rng = np.random.default_rng(0)
    coarse = answered(rng.integers(0, 3, (3, 20, 20)).astype(np.float32) / 4)
    for position in (1, 2):
        found = certainty.features(coarse, position)
        counted = np.bincount(found.bars.dimension[found.present], minlength=2)
        assert tuple(counted) == betti_numbers(coarse.labels == position)


def test_uncertainty_is_one_for_equal_classes_and_zero_for_a_certain_one():
    even, sure = np.full((3, 2, 2), 1 / 3, np.float32), np.zeros((3, 2, 2), np.float32)
    sure[1] = 1
    np.testing.assert_allclose(answers.uncertainty(answered(even)), 1, atol=1e-6)
    assert (answers.uncertainty(answered(sure)) == 0).all()
    quarter = np.full((1, 2, 2), 0.25, np.float32)
    np.testing.assert_allclose(answers.uncertainty(answered(quarter, 0.5)), 0.8112781, atol=1e-6)


def test_volume_repair_handles_components_and_cavities_but_not_tunnels(registered, predict):
    registered("cube", networks.through(dimensions=3), dimensions=3, scaling=networks.PLAIN)
    volume = np.zeros((9, 10, 11), np.uint8)
    volume[1:6, 1:6, 1:6] = 250
    volume[3, 3, 3] = 120
    volume[8, 8, 8] = 140
    content, options = encode_nifti_gz(volume, np.eye(4)), {"media": "application/gzip", "repair": "true"}
    answer = predict("cube", content, expect="beta0:1,beta1:0,beta2:0", **options)
    assert answer.status_code == 200 and answer.headers["toposerve-edits"] == "2", answer.text
    mask = np.asarray(nibabel.Nifti1Image.from_bytes(unzipped(answer)).dataobj)
    assert betti_numbers(mask) == (1, 0, 0)
    assert told(predict("cube", content, expect="beta1:3", **options)) == (422, "repair_failed")
    body = predict("cube", content, accept=JSON, media="application/gzip", margins="true", expect="beta2:0").json()
    (violation,) = body["expectation"]["violations"]
    assert violation["places"][0]["position"] == [3, 3, 3] and violation["places"][0]["size"] == 1
    assert violation["places"][0]["sentence"].startswith("The cavity at (3, 3, 3) holds by 0.029")


def unzipped(answer):
    import gzip

    return gzip.decompress(answer.content)


# Pictures -----------------------------------------------------------------------------------------------------------


def test_every_artifact_can_be_the_answer(plain, predict, gateway):
    content = encode_png(BROKEN)
    pictures = {
        name: predict("plain", content, artifact=name, accept="image/png")
        for name in ("mask", "skeleton", "simple_points", "probability", "uncertainty")
    }
    assert {answer.status_code for answer in pictures.values()} == {200}
    shown = {name: mask_of(answer, gateway) for name, answer in pictures.items()}
    assert pictures["mask"].content == predict("plain", content).content
    assert (
        pictures["skeleton"].content
        == predict("plain", content, skeleton="true").content
        == predict("plain", content, skeleton="true", artifact="skeleton").content
    )
    np.testing.assert_array_equal(shown["probability"], BROKEN)
    p = BROKEN[BROKEN > 0] / 255
    np.testing.assert_allclose(
        shown["uncertainty"][BROKEN > 0], -255 * (p * np.log2(p) + (1 - p) * np.log2(1 - p)), atol=0.51
    )
    assert (shown["uncertainty"][BROKEN == 0] == 0).all()


def test_probability_skeleton_has_the_topology_of_every_threshold(plain, three, predict):
    from topology.components import betti_numbers

    content = encode_png(BROKEN)
    answer = predict("plain", content, artifact="probability_skeleton")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/tiff"
    thin, prob = tifffile.imread(io.BytesIO(answer.content)), BROKEN / np.float32(255)
    assert thin.dtype == np.float32 and (thin <= prob + 1e-6).all() and (thin > 0).sum() < (prob > 0).sum()
    for level in np.unique(prob[prob > 0]) - np.float32(1e-4):
        assert betti_numbers(thin >= level) == betti_numbers(prob >= level)
    grey = predict("plain", content, artifact="probability_skeleton", accept="image/png")
    assert grey.headers["content-type"] == "image/png"
    answer = predict("three", encode_png(np.full((3, 8, 8), 85, np.uint8)), artifact="probability_skeleton")
    assert tifffile.imread(io.BytesIO(answer.content)).shape == (2, 8, 8)  # a page for each foreground class


def test_simple_points_are_drawn_grey_and_critical_points_white(plain, predict, gateway):
    blocks = np.zeros((7, 11), np.uint8)
    blocks[1:4, 1:4] = blocks[1:4, 5:8] = blocks[2, 4] = blocks[5, 9] = 250
    shown = mask_of(predict("plain", encode_png(blocks), artifact="simple_points"), gateway)
    assert (shown[2, 4], shown[2, 2], shown[1, 1], shown[5, 9], shown[0, 0]) == (255, 60, 120, 180, 0)


def test_real_valued_artifacts_are_available_as_float_and_labels_are_not(plain, three, predict):
    uncertain = tifffile.imread(
        io.BytesIO(predict("plain", encode_png(BROKEN), artifact="uncertainty", accept="image/tiff").content)
    )
    assert uncertain.dtype == np.float32 and uncertain.shape == BROKEN.shape and 0.99 < uncertain.max() <= 1
    assert predict("plain", encode_png(BROKEN), artifact="probability").headers["content-type"] == "image/tiff"
    assert told(predict("plain", encode_png(BROKEN), artifact="mask", accept="image/tiff")) == (406, "not_acceptable")
    colour = np.full((3, 8, 8), 85, np.uint8)
    assert told(predict("three", encode_png(colour), artifact="probability", accept="image/png")) == (
        406,
        "not_acceptable",
    )
    even = tifffile.imread(
        io.BytesIO(predict("three", encode_png(colour), artifact="uncertainty", accept="image/tiff").content)
    )
    np.testing.assert_allclose(even, 1, atol=1e-6)


def test_uncertainty_is_per_ridge_when_the_network_has_a_persistence_threshold(registered, predict, gateway):
    registered("ridges", networks.with_threshold(), extra_outputs=["persistence_threshold"])
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    of_ridges = tifffile.imread(
        io.BytesIO(predict("ridges", encode_png(pixels), artifact="uncertainty", accept="image/tiff").content)
    )
    assert (of_ridges == 0).any() and 0 < of_ridges.max() <= 1
    stored = predict("ridges", encode_png(pixels), accept=JSON, store="true").json()
    kept = imaging.decode_mask(gateway.ask("GET", stored["artifacts"]["uncertainty"]["href"]).content, gateway.settings)
    np.testing.assert_array_equal(kept, np.rint(of_ridges * np.float32(255)))


# Kept ---------------------------------------------------------------------------------------------------------------


def test_stored_prediction_keeps_expectation_result_and_repair(plain, predict, gateway):
    options = {"expect": "beta0:1", "margins": "true", "store": "true", "accept": JSON}
    violated, repaired = (
        predict("plain", encode_png(BROKEN), **options),
        predict("plain", encode_png(BROKEN), repair="true", **options),
    )
    for answer in (violated, repaired):
        assert answer.status_code == 201 and gateway.ask("GET", answer.headers["location"]).json() == answer.json()
    assert violated.json()["expectation"]["violations"] and not repaired.json()["expectation"]["violations"]
    assert (
        repaired.json()["repair"]["edit_count"] == 1
        and repaired.json()["topology"][0]["margins"] == violated.json()["topology"][0]["margins"]
    )
    masks = [gateway.ask("GET", answer.json()["artifacts"]["mask"]["href"]).content for answer in (violated, repaired)]
    assert masks[0] != masks[1] and betti_numbers(imaging.decode_mask(masks[1], gateway.settings)) == (1, 0)
    assert json.loads(repaired.text)["repair"]["certified"] is True
