"""Random repair, and what a run measures beside its validation images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.controls import RandomRepair, random_repair
from tests.models.training_runs import run
from tests.topology.masks import mask
from topology.components import betti_numbers

TWO_RINGS = mask("""
    .........
    .###.###.
    .#.#.#.#.
    .###.###.
    ......... """)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_nothing_is_edited_where_there_is_one_component_without_holes():
    line = np.zeros((5, 9), bool)
    line[2] = True
    assert (random_repair(line, 10, rng()) == line).all()
    assert not random_repair(np.zeros((4, 4), bool), 3, rng()).any()


def test_each_edit_changes_one_betti_number_and_all_kinds_are_drawn():
    assert betti_numbers(TWO_RINGS) == (2, 2)
    seen = {betti_numbers(random_repair(TWO_RINGS, 1, rng(seed))) for seed in range(40)}
    assert seen == {(1, 1), (1, 2), (2, 1)}, "a ring removed, two joined, a hole filled"
    assert betti_numbers(random_repair(TWO_RINGS, 9, rng())) == (1, 0)


def test_the_mask_that_is_given_is_left_alone_and_the_same_seed_gives_the_same():
    before = TWO_RINGS.copy()
    assert (random_repair(TWO_RINGS, 2, rng(3)) == random_repair(TWO_RINGS, 2, rng(3))).all()
    assert (before == TWO_RINGS).all()


def test_in_volumes_cavities_are_filled_and_components_joined():
    volume = np.zeros((7, 7, 15), bool)
    volume[1:6, 1:6, 1:6], volume[3, 3, 3], volume[3, 3, 10:14] = True, False, True
    assert betti_numbers(volume) == (2, 0, 1)
    assert betti_numbers(random_repair(volume, 5, rng(1))) == (1, 0, 0)


def test_a_mask_gets_as_many_edits_as_it_has_wrong_features():
    change = RandomRepair(0)
    right = np.stack([TWO_RINGS, TWO_RINGS])
    one_wrong = right.copy()
    one_wrong[1, 2, 2] = False
    one_wrong[1, 2, 3] = False
    assert (change(right, right) == right).all()
    edited = change(one_wrong, right)
    assert (edited[0] == right[0]).all()
    wrong = sum(abs(a - b) for a, b in zip(betti_numbers(one_wrong[1]), betti_numbers(TWO_RINGS), strict=True))
    assert wrong == 1 and sum(betti_numbers(edited[1])) == sum(betti_numbers(one_wrong[1])) - 1


@pytest.mark.parametrize("classes", [("background", "a"), ("background", "a", "b")])
def test_a_run_measures_shifted_images_and_edited_masks_and_learns_from_neither(make_dataset, spec, tmp_path, classes):
    world = make_dataset(count=5, classes=classes)
    plain = run(spec, world, tmp_path / "plain")[-1]
    facts = json.loads((world / "dataset.json").read_text())
    facts["items"].append(facts["items"][0] | {"id": "other site", "split": "shifted"})
    (world / "dataset.json").write_text(json.dumps(facts))
    done = run({**spec, "controls": ["random_repair"]}, world, tmp_path / "beside")[-1]
    assert done["sha256"] != plain["sha256"] and done["metrics"] == plain["metrics"], (
        "only the spec in the file differs"
    )
    assert [item["id"] for item in done["shifted"]] == ["other site"]
    assert set(done["shifted"][0]["figures"]) == set(classes[1:])
    edited = done["controls"]["random_repair"]
    assert [item["id"] for item in edited] == [item["id"] for item in done["items"]]
    assert edited[0]["figures"][classes[1]].keys() == done["items"][0]["figures"][classes[1]].keys()
    assert "shifted" not in plain and "controls" not in plain
