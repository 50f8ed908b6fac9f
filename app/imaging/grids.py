"""Brings a picture to the grid of another by their affines, or refuses it.

The same mask may be stored with its rows from left to right or from right to left; the affine tells. Two grids are the
same when, after axes are exchanged and turned, no corner lies further than `TOLERANCE` of a voxel from its place: less
than half a voxel, the nearest voxel is the same one anyway. What states no place (PNG, JPEG, NIfTI without codes) can
only be compared by its shape. A part of a grid, as 3D Slicer crops segmentations, is put into its place with 0 around.
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
    whole = turn is not None and all(
        part.stop - part.start == side for part, side in zip(turn[2], _as_shape(like), strict=True)
    )
    if turn is not None and (whole or picture.sparse):
        order, flips, place = turn
        turned = pixels.transpose(0, *(1 + axis for axis in order))[(slice(None), *flips)]
        if not whole:
            part, turned = turned, np.zeros((len(turned), *_as_shape(like)), turned.dtype)
            turned[(slice(None), *place)] = part
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
    spacing = np.linalg.norm(placed[:3, :3], axis=0)
    if picture.spacing_mm is not None:  # it may have been stated by other means than the affine
        spacing[move[:, 0].astype(int)] = picture.spacing_mm[::-1]
    return replace(
        picture,
        pixels=np.ascontiguousarray(pixels),
        affine=placed,
        forms=None,
        spacing_mm=tuple(float(size) for size in spacing[::-1]),
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


def _turn(
    to_like: np.ndarray, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[list[int], list[slice], list[slice]] | None:
    """For each axis (plane, row, column) of the wanted grid, the axis that it comes from, in which direction, and the
    part of the wanted axis that it is: all, or less where a segmentation was cropped. None when the grids differ.
    """
    matrix, shift = to_like[:3, :3][::-1, ::-1], to_like[:3, 3][::-1]  # in the order plane, row, column
    steps = np.round(matrix)
    if not (np.abs(steps).sum(axis=0) == 1).all() or not (np.abs(steps).sum(axis=1) == 1).all():
        return None
    order = [int(axis) for axis in np.abs(steps).argmax(axis=1)]
    backwards = [steps[to, axis] < 0 for to, axis in enumerate(order)]
    starts = [
        round(shift[to] - (shape[axis] - 1) * back)
        for to, (axis, back) in enumerate(zip(order, backwards, strict=True))
    ]
    parts = [slice(start, start + shape[axis]) for start, axis in zip(starts, order, strict=True)]
    if any(part.start < 0 or part.stop > side for part, side in zip(parts, wanted, strict=True)):
        return None
    for corner in product(*((0, side - 1) for side in shape)):
        place = matrix @ corner + shift - starts
        due = [
            shape[axis] - 1 - corner[axis] if back else corner[axis]
            for axis, back in zip(order, backwards, strict=True)
        ]
        if np.abs(place - due).max() > TOLERANCE:
            return None
    return order, [slice(None, None, -1 if back else 1) for back in backwards], parts


def _nearest(pixels: np.ndarray, from_like: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    from scipy.ndimage import affine_transform

    matrix, shift = from_like[:3, :3][::-1, ::-1], from_like[:3, 3][::-1]
    return np.stack([affine_transform(channel, matrix, shift, wanted, order=0) for channel in pixels])
