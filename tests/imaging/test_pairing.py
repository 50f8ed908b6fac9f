"""Pairs that names of files and folders suggest."""

from __future__ import annotations

import pytest

from app.errors import BadDataset
from app.imaging import open_dataset
from app.imaging.pairing import proposed
from tests.imaging.crafted_files import zip_of


def couples(*names: str) -> dict[str, str]:
    """Image -> mask of files, all of them .png."""
    return {each.image: each.mask for each in proposed({name + ".png": name for name in names}).matches}


LAYOUTS = {
    "_mask beside it": ("a", "a_mask", "b", "b_mask"),
    "Pytorch-UNet": ("imgs/a", "masks/a_mask", "imgs/b", "masks/b_mask"),
    "labels": ("images/a", "labels/a", "images/b", "labels/b"),
    "capitals": ("Images/a", "Masks/a", "Images/b", "Masks/b"),
    "nnU-Net's endings": ("img/a_0000", "seg/a", "img/b_0000", "seg/b"),
    "splits outside": ("train/images/a", "train/labels/a", "val/images/a", "val/labels/a"),
    "ISIC": ("data/ISIC_0000", "gt/ISIC_0000_segmentation", "data/ISIC_0001", "gt/ISIC_0001_segmentation"),
    "a folder for each patient": ("p01/scan", "p01/mask", "p02/scan", "p02/mask"),
    "patients, any names": ("p01/t1", "p01/roi_seg", "p02/t1", "p02/roi_seg"),
    "words in front": ("img_1", "seg_1", "img_2", "seg_2"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_layouts_are_paired(layout):
    names = [name + ".png" for name in LAYOUTS[layout]]
    assert couples(*LAYOUTS[layout]) == dict(zip(names[::2], names[1::2], strict=True))


def test_of_two_masks_the_one_drawn_by_hand_is_the_label_and_the_others_are_named():
    names = ("training/images/21_training", "training/mask/21_training_mask", "training/1st_manual/21_manual1")
    found = proposed({name + ".png": name for name in names})
    assert [match.mask for match in found.matches] == ["training/1st_manual/21_manual1.png"]
    assert found.matches[0].split == "train" and found.unpaired == ["training/mask/21_training_mask.png"]
    assert found.patterns == ["training/images/*_training.png with training/1st_manual/*_manual1.png"]


def test_a_patient_is_a_group():
    found = proposed({f"set/{name}.png": f"set/{name}" for name in LAYOUTS["a folder for each patient"]})
    assert [(match.name, match.group) for match in found.matches] == [("p01/scan", "p01"), ("p02/scan", "p02")]


def test_nothing_is_guessed_where_two_images_could_be_meant():
    assert couples("p/flair", "p/t1", "p/seg", "q/t1") == {}
    assert couples("a_image", "a_raw", "a_mask") == {}


SUFFIXED = {"a.png": b"image", "a_mask.png": b"mask", "notes/README.md": b"read me", "b.png": b"alone"}


def test_a_proposal_is_offered_first_and_used_only_on_request(limits):
    with (
        pytest.raises(
            BadDataset, match=r"Seen: .*2 \.png.*1 pairs could be made \(\*\.png with \*_mask\.png\).*pairing=proposed"
        ),
        open_dataset(zip_of({name: SUFFIXED[name] for name in ("a.png", "a_mask.png")}), limits),
    ):
        pass
    with open_dataset(zip_of(SUFFIXED), limits, pairing="proposed") as dataset:
        assert [(pair.name, pair.image, pair.mask) for pair in dataset] == [("a", b"image", b"mask")]
        assert dataset.ignored == ["b.png", "notes/README.md"]


def test_files_that_are_no_images_are_left_out_and_named(limits):
    files = {"images/a.png": b".", "masks/a.png": b".", "images/README.txt": b"", "masks/list.csv": b""}
    with open_dataset(zip_of(files), limits) as dataset:
        assert (len(dataset), dataset.ignored, dataset.proposal) == (1, ["images/README.txt", "masks/list.csv"], None)


def test_a_refusal_says_what_was_seen(limits):
    files = zip_of({f"pictures/{name}": b"." for name in ("a.png", "b.webp", "c.webp")} | {"text/a.txt": b"."})
    with (
        pytest.raises(BadDataset, match=r"Seen: pictures/ \(2 \.webp, 1 \.png\), text/ \(1 \.txt\)\."),
        open_dataset(files, limits),
    ):
        pass
