"""Rules between classes: where they are broken, by hand, by scipy and on real label maps."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from topology.containment import Rule, violations

SHARED = Path(os.environ.get("TOPOSERVE_DATA_SHARED", Path(__file__).parents[2] / "../shared/data"))
INSIDE = Rule("inside", 2, (1,))


def drawn(text):
    return np.array([[int(each) for each in line] for line in text.split()])


CELL = drawn("000000 011110 012210 012210 011110 000000")


def test_class_within_its_wall_breaks_nothing():
    found = violations(CELL, INSIDE)
    assert found.pixels == len(found.sizes) == 0 and not found.labels.any()


def test_gap_of_the_wall_is_located_on_both_sides():
    labels = CELL.copy()
    labels[2, 1] = 0
    found = violations(labels, INSIDE)
    assert found.pixels == 1 and found.sizes.tolist() == [2]
    assert np.argwhere(found.labels == 1).tolist() == [[2, 1], [2, 2]] and found.boxes.tolist() == [[[2, 1], [3, 3]]]


def test_diagonal_wall_holds_sides_and_not_corners():
    labels = drawn("000000 000100 001210 000100 000000")
    labels[1, 2] = labels[1, 4] = 0  # the wall is 8-connected: its corners are background
    assert violations(labels, INSIDE).pixels == 0
    assert violations(labels, Rule("inside", 2, (1,), contact="corners")).pixels == 1


def test_border_breaks_containment_only_when_it_is_background():
    labels = drawn("1221 1111")
    assert violations(labels, INSIDE).pixels == 0
    assert violations(labels, Rule("inside", 2, (1,), border="background")).pixels == 2


def test_union_of_classes_is_a_wall():
    labels = CELL.copy()
    labels[1:3, 1] = 3
    assert violations(labels, INSIDE).pixels > 0 and violations(labels, Rule("inside", 2, (1, 3))).pixels == 0


def test_component_without_contact_is_a_violation_of_must_touch():
    labels = drawn("0000000 0210020 0000000 0000020 0000000")
    rule = Rule("must_touch", 2, (1,))
    found = violations(labels, rule)
    assert found.sizes.tolist() == [1, 1] and found.pixels == 2
    assert [box[0] for box in found.boxes.tolist()] == [[1, 5], [3, 5]]
    labels[1, 6] = 2  # reaches the border, behind which it may touch
    assert violations(labels, rule).sizes.tolist() == [1]
    assert violations(labels, Rule("must_touch", 2, (1,), border="background")).sizes.tolist() == [2, 1]


def test_must_touch_at_a_corner_only_counts_as_asked():
    labels = drawn("00000 01000 00200 00000")
    assert violations(labels, Rule("must_touch", 2, (1,))).pixels == 1
    assert violations(labels, Rule("must_touch", 2, (1,), contact="corners")).pixels == 0


def test_forbidden_contact_is_located_on_both_sides():
    labels = drawn("00000 02310 02000 00000")
    found = violations(labels, Rule("must_not_touch", 2, (3,)))
    assert found.pixels == 1 and np.argwhere(found.labels).tolist() == [[1, 1], [1, 2]]
    assert violations(labels, Rule("must_not_touch", 2, (1,))).pixels == 0


def test_ignored_pixels_break_no_rule():
    labels = CELL.copy()
    labels[2, 1] = 0
    for place in ((2, 1), (2, 2)):
        ignored = np.zeros(labels.shape, bool)
        ignored[place] = True
        assert violations(labels, INSIDE, ignore=ignored).pixels == 0


@pytest.mark.parametrize("sides", [(13, 14), (6, 7, 8)])
@pytest.mark.parametrize("seed", range(30))
def test_kept_containment_means_that_the_outside_never_reaches_the_subject(sides, seed):
    """Referee: scipy floods the outside through everything but the wall."""
    rng = np.random.default_rng(seed)
    ball = ndimage.gaussian_filter(rng.standard_normal(sides), 1.5)
    labels = np.digitize(ball, np.quantile(ball, [0.5, 0.8])) if seed % 3 else rng.integers(0, 3, sides)
    for contact, structure in (("sides", 1), ("corners", len(sides))):
        found = violations(labels, Rule("inside", 2, (1,), contact, "background"))
        steps = ndimage.generate_binary_structure(len(sides), structure)
        open_, _ = ndimage.label(np.pad(labels != 1, 1, constant_values=True), structure=steps)
        reached = (open_ == open_.flat[0])[(slice(1, -1),) * len(sides)]
        if not len(found.sizes):
            assert not (reached & (labels == 2)).any()
        if (reached & (labels == 2)).any():
            assert found.pixels > 0
        strange = np.pad(~np.isin(labels, (1, 2)), 1, constant_values=True)
        beside = ndimage.binary_dilation(strange, steps)[(slice(1, -1),) * len(sides)]
        assert found.pixels == np.count_nonzero(beside & (labels == 2))


@pytest.mark.parametrize("sides", [(11, 12), (5, 6, 7)])
@pytest.mark.parametrize("seed", range(10))
def test_must_touch_equals_a_search_of_each_component_by_scipy(sides, seed):
    labels = np.random.default_rng(seed).choice(4, sides, p=[0.6, 0.1, 0.2, 0.1])
    rule = Rule("must_touch", 2, (1, 3), border="background")
    components, count = ndimage.label(labels == 2, np.ones((3,) * len(sides)))
    near = ndimage.binary_dilation(np.isin(labels, rule.others))
    alone = [np.count_nonzero(components == k) for k in range(1, count + 1) if not near[components == k].any()]
    assert sorted(violations(labels, rule).sizes.tolist()) == sorted(alone)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (("within", 2, (1,)), "kind is 'within'"),
        (("inside", 2, ()), r"names \[\]"),
        (("inside", 2, (1, 2)), "other classes"),
        (("inside", 2, (1,), "faces"), "contact is 'faces'"),
        (("inside", 2, (1,), "sides", "mirror"), "border is 'mirror'"),
    ],
)
def test_rule_without_meaning_is_rejected_with_the_choices(case, words):
    with pytest.raises(ValueError, match=words):
        Rule(*case)


def test_labels_that_are_no_whole_numbers_are_rejected():
    with pytest.raises(ValueError, match="float64"):
        violations(np.zeros((3, 3)), INSIDE)


@pytest.mark.parametrize(
    ("name", "rule", "pixels"),
    [
        ("axon_sem", INSIDE, {0: 3, 2: 1, 13: 1, 18: 1, 145: 1}),  # axon beside neither axon nor myelin
        ("sunnybrook_lv", Rule("inside", 1, (2,)), {0: 27, 15: 1}),  # cavity; the basal slice of the first patient
    ],
)
def test_real_label_maps_hold_the_known_number_of_wrong_pixels(name, rule, pixels):
    files = sorted((SHARED / name / "masks").glob("*.png"))
    if not files:
        pytest.skip(f"{SHARED} holds the real images; set TOPOSERVE_DATA_SHARED to the folder that has {name}/")
    found = [violations(np.asarray(Image.open(file)), rule).pixels for file in files]
    assert {count: found.count(count) for count in found} == pixels
