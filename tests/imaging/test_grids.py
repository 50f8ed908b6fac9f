"""Pictures brought to the grid of another one: turned by their affines, resampled, or refused."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
from nibabel import orientations as axes

from app.errors import MaskMismatch
from app.imaging import decode, decode_mask, encode_nifti_gz, encode_png, onto
from app.imaging.grids import orientation_of, turned_to

AFFINE = np.diag([0.8, 0.8, 2.5, 1.0])
AFFINE[:3, 3] = [-30, -20, 7]
VOLUME = np.zeros((20, 16, 12), np.uint8)
VOLUME[2:6, 3:12, 2:9] = 1


def nifti(values=VOLUME, affine=AFFINE) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(values, affine).to_bytes())


def stored_as(codes: str) -> bytes:
    """The same volume at the same place, by nibabel."""
    image = nibabel.Nifti1Image(VOLUME, AFFINE)
    move = axes.ornt_transform(axes.io_orientation(AFFINE), axes.axcodes2ornt(codes))
    return gzip.compress(image.as_reoriented(move).to_bytes())


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "LPI", "ASR", "SAR", "PIR"])
def test_the_same_mask_in_another_orientation_is_the_same_mask(codes, limits):
    like, mask = decode(nifti(), limits), decode(stored_as(codes), limits)
    assert orientation_of(mask.affine) == codes
    placed = onto(mask, like)
    np.testing.assert_array_equal(placed.pixels, like.pixels)
    np.testing.assert_array_equal(placed.affine, like.affine)
    assert placed.spacing_mm == like.spacing_mm
    np.testing.assert_array_equal(decode_mask(stored_as(codes), limits, like=like), like.pixels[0])
    np.testing.assert_array_equal(onto(like, mask).pixels, mask.pixels)


@pytest.mark.parametrize("codes", ["LPS", "SAR"])
def test_a_picture_is_turned_to_a_named_orientation_and_back(codes, limits):
    picture, expected = decode(nifti(), limits), decode(stored_as(codes), limits)
    turned = turned_to(picture, codes)
    np.testing.assert_array_equal(turned.pixels, expected.pixels)
    np.testing.assert_allclose(turned.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(turned.spacing_mm, expected.spacing_mm, rtol=1e-6)
    np.testing.assert_array_equal(onto(turned, picture).pixels, picture.pixels)


def test_rounding_of_an_affine_is_no_other_grid(limits):
    noise = np.random.default_rng(0).uniform(-2e-4, 2e-4, (3, 4))
    moved = AFFINE.copy()
    moved[:3] += noise
    like = decode(nifti(), limits)
    np.testing.assert_array_equal(onto(decode(nifti(affine=moved), limits), like).pixels, like.pixels)


@pytest.mark.parametrize(
    "affine", [np.diag([3.0, 3, 3, 1]), AFFINE + np.eye(4)[:, 3:] * 0 + np.pad([[0, 5.0]], ((0, 3), (2, 0)))]
)
def test_another_grid_is_refused_naming_both_or_resampled(affine, limits):
    like, mask = decode(nifti(), limits), decode(nifti(affine=affine), limits)
    with pytest.raises(MaskMismatch, match=r"0\.8 x 0\.8 x 2\.5 mm, RAS.*first voxel at \(-30, -20, 7\).*Mask:.*RAS"):
        onto(mask, like)
    placed = onto(mask, like, resample=True)
    to_mask = np.linalg.inv(affine) @ AFFINE  # an independent look-up, voxel by voxel
    for index in np.random.default_rng(0).integers(0, VOLUME.shape, (300, 3)):
        at = to_mask[:3, :3] @ index + to_mask[:3, 3]
        nearest = np.round(at).astype(int)
        if np.abs(at - nearest).max() > 0.49:
            continue  # a tie
        inside = (nearest >= 0).all() and (nearest < VOLUME.shape).all()
        assert placed.pixels[(0, *index[::-1])] == (VOLUME[tuple(nearest)] if inside else 0)


def test_what_states_no_place_is_compared_by_its_shape(limits):
    unplaced = nibabel.Nifti1Image(VOLUME, None)
    mask, like = decode(gzip.compress(unplaced.to_bytes()), limits), decode(nifti(), limits)
    assert mask.place is None
    np.testing.assert_array_equal(onto(mask, like).pixels, like.pixels)
    flat = decode(encode_png(VOLUME[:, :, 4]), limits)
    with pytest.raises(MaskMismatch, match="The image is 12 x 16 x 20 and its mask 20 x 16"):
        onto(flat, like)


def test_both_places_of_a_scan_come_back_with_their_codes(limits):
    image = nibabel.Nifti1Image(VOLUME, AFFINE)
    other = AFFINE.copy()
    other[:3, 3] = 0
    image.set_sform(AFFINE, 1)
    image.set_qform(other, 3)
    picture = decode(image.to_bytes(), limits)
    answer = nibabel.Nifti1Image.from_bytes(
        gzip.decompress(encode_nifti_gz(picture.pixels[0], picture.affine, forms=picture.forms))
    )
    assert (int(answer.header["sform_code"]), int(answer.header["qform_code"])) == (1, 3)
    np.testing.assert_allclose(answer.get_sform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(answer.get_qform(), other, atol=1e-5)
    np.testing.assert_allclose(answer.header.get_zooms(), (0.8, 0.8, 2.5), rtol=1e-6)
