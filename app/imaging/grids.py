"""Brings a picture to the grid of another by their affines, or refuses it.

The same mask may be stored with its rows from left to right or from right to left; the affine tells. Two grids are the
same when, after axes are exchanged and turned, no corner lies further than `TOLERANCE` of a voxel from its place: less
than half a voxel, the nearest voxel is the same one anyway. What states no place (PNG, JPEG, NIfTI without codes) can
only be compared by its shape.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from app.errors import MaskMismatch
from app.imaging.picture import Header, Picture

TOLERANCE = 0.25
"""Of a voxel."""


def onto(picture: Picture, like: Picture | Header, *, what: str = "mask", resample: bool = False) -> Picture:
    """The picture on the grid of `like`: its axes in the same order and direction.

    what      what it is, for the sentence that refuses it
    resample  take the nearest voxel where the grids differ, and 0 outside, instead of refusing

    A sparse picture is filled up with 0 to that grid. MaskMismatch when the grids differ, or the shapes where one of
    both states no place.
    """
    here, there = picture.place, like.place
    if here is None or there is None:
        if picture.shape != like.shape:
            raise MaskMismatch(_other_shape(picture, like, what))
        return picture
    pixels = _as_volume(picture)
    to_like = np.linalg.inv(there) @ here
    turn = _turn(to_like, pixels.shape[1:], _as_shape(like))
    if turn is not None:
        order, flips = turn
        turned = pixels.transpose(0, *(1 + axis for axis in order))[(slice(None), *flips)]
    elif picture.sparse and (filled := _filled_up(pixels, to_like, _as_shape(like))) is not None:
        turned = filled
    elif resample:
        turned = _nearest(pixels, np.linalg.inv(to_like), _as_shape(like))
    else:
        raise MaskMismatch(
            f"The {what} lies on another grid than its image. Image: {described(like)}. {what.capitalize()}:"
            f" {described(picture)}. Send it on the grid of the image, or ask for `resample`."
        )
    turned = np.ascontiguousarray(turned.reshape(picture.channels, *like.shape))
    return replace(picture, pixels=turned, spacing_mm=like.spacing_mm, affine=like.affine, forms=like.forms)


def turned_to(picture: Picture, orientation: str) -> Picture:
    """The picture with its axes in another order and direction.

    orientation  where the columns, rows and planes run: "RAS" is right, front, up
    """
    from nibabel import orientations as axes

    affine = picture.affine
    assert affine is not None and picture.is_volume
    move = axes.ornt_transform(axes.io_orientation(affine), axes.axcodes2ornt(orientation))
    pixels = axes.apply_orientation(picture.pixels.transpose(3, 2, 1, 0), move).transpose(3, 2, 1, 0)
    placed = affine @ axes.inv_ornt_aff(move, picture.shape[::-1])
    spacing = np.linalg.norm(placed[:3, :3], axis=0)[::-1]
    return replace(
        picture,
        pixels=np.ascontiguousarray(pixels),
        affine=placed,
        forms=None,
        spacing_mm=tuple(float(size) for size in spacing),
    )


def orientation_of(affine: np.ndarray) -> str:
    """Where the columns, rows and planes run: "RAS" is right, front, up."""
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(affine))


def described(known: Picture | Header) -> str:
    """A grid in words: sides, voxel size, orientation, place of the first voxel."""
    affine = known.affine
    assert affine is not None
    sizes = " x ".join(f"{size:.4g}" for size in np.linalg.norm(affine[:3, :3], axis=0)[: len(known.shape)])
    sides = " x ".join(map(str, known.shape[::-1]))
    origin = ", ".join(f"{place:.4g}" for place in affine[:3, 3])
    return f"{sides} voxels of {sizes} mm, {orientation_of(affine)}, first voxel at ({origin}) mm"


def _other_shape(picture: Picture, like: Picture | Header, what: str) -> str:
    sides = [" x ".join(map(str, each.shape)) for each in (like, picture)]
    cause = ""
    if picture.shape == like.shape[::-1] and (like.orientation > 4) != (picture.orientation > 4):
        cause = (
            f" EXIF turns the {'image' if like.orientation > 4 else what} and not the other: draw the {what} on the"
            " image as it is shown, or save the image without EXIF orientation."
        )
    return f"The image is {sides[0]} and its {what} {sides[1]}. Make both the same size.{cause}"


def _as_volume(picture: Picture) -> np.ndarray:
    """(C, D, H, W)."""
    return picture.pixels if picture.is_volume else picture.pixels[:, None]


def _as_shape(known: Picture | Header) -> tuple[int, ...]:
    """(D, H, W)."""
    return known.shape if known.is_volume else (1, *known.shape)


def _turn(to_like: np.ndarray, shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[list[int], list[slice]] | None:
    """For each axis (plane, row, column) of the wanted grid, the axis that it comes from and in which direction; None
    when the grids differ.
    """
    matrix, shift = to_like[:3, :3][::-1, ::-1], to_like[:3, 3][::-1]  # in the order plane, row, column
    steps = np.round(matrix)
    if not (np.abs(steps).sum(axis=0) == 1).all() or not (np.abs(steps).sum(axis=1) == 1).all():
        return None
    order = [int(axis) for axis in np.abs(steps).argmax(axis=1)]
    if tuple(shape[axis] for axis in order) != wanted:
        return None
    backwards = [steps[to, axis] < 0 for to, axis in enumerate(order)]
    for corner in product(*((0, side - 1) for side in shape)):
        place = matrix @ corner + shift
        due = [
            shape[axis] - 1 - corner[axis] if back else corner[axis]
            for axis, back in zip(order, backwards, strict=True)
        ]
        if np.abs(place - due).max() > TOLERANCE:
            return None
    return order, [slice(None, None, -1 if back else 1) for back in backwards]


def _filled_up(pixels: np.ndarray, to_like: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray | None:
    """A part of the wanted grid in its place there, with 0 around it; None where it is no part of that grid."""
    matrix, shift = to_like[:3, :3][::-1, ::-1], to_like[:3, 3][::-1]
    steps = np.round(matrix)
    if not (np.abs(steps).sum(axis=0) == 1).all() or not (np.abs(steps).sum(axis=1) == 1).all():
        return None
    corners = np.array(list(product(*((0, side - 1) for side in pixels.shape[1:]))))
    if np.abs(corners @ (matrix - steps).T + shift - np.round(shift)).max() > TOLERANCE:
        return None
    order = [int(axis) for axis in np.abs(steps).argmax(axis=1)]
    backwards = [steps[to, axis] < 0 for to, axis in enumerate(order)]
    turned = pixels.transpose(0, *(1 + axis for axis in order))
    turned = turned[(slice(None), *(slice(None, None, -1 if back else 1) for back in backwards))]
    first = [
        round(float(place)) - (side - 1 if back else 0)
        for place, side, back in zip(shift, turned.shape[1:], backwards, strict=True)
    ]
    if any(at < 0 or at + side > most for at, side, most in zip(first, turned.shape[1:], wanted, strict=True)):
        return None
    filled = np.zeros((len(pixels), *wanted), pixels.dtype)
    filled[(slice(None), *(slice(at, at + side) for at, side in zip(first, turned.shape[1:], strict=True)))] = turned
    return filled


def _nearest(pixels: np.ndarray, from_like: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    from scipy.ndimage import affine_transform

    matrix, shift = from_like[:3, :3][::-1, ::-1], from_like[:3, 3][::-1]
    return np.stack([affine_transform(channel, matrix, shift, wanted, order=0) for channel in pixels])
