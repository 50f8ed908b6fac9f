"""Invariants on Hypothesis inputs, and counts against gudhi and cc3d."""

from itertools import islice

import cc3d
import gudhi
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from tests.topology.masks import random_masks, shared_masks
from topology.components import betti_numbers
from topology.matching import match
from topology.persistence import persistence
from topology.simple import simple_points
from topology.skeleton import skeletonize

generated = settings(max_examples=60, deadline=None, derandomize=True, database=None)
kinds = st.sampled_from(["closed", "open"])
shapes = st.one_of(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 5)] * 3))
# Without a fill every pixel is drawn on its own; with one, nearly all of them would be equal.
masks = shapes.flatmap(lambda shape: arrays(bool, shape, elements=st.booleans(), fill=st.nothing()))
few_levels = st.integers(-3, 3)  # ties and plateaus
many_levels = st.integers(-1000, 1000)


def maps_of(shape):
    return st.sampled_from([few_levels, many_levels]).flatmap(
        lambda levels: arrays(np.int16, shape, elements=levels, fill=st.nothing())
    )


maps = shapes.flatmap(maps_of)
pairs_of_maps = shapes.flatmap(lambda shape: st.tuples(maps_of(shape), maps_of(shape)))


def same_bars(code, other):
    return all(np.array_equal(getattr(code, side), getattr(other, side)) for side in ("dimension", "births", "deaths"))


def layouts(array):
    """The same array read-only, as every second element of a larger one read backwards, in Fortran order, and
    big-endian.
    """
    frozen = array.copy()
    frozen.flags.writeable = False
    strided = np.zeros([2 * side for side in array.shape], array.dtype)[
        tuple(slice(None, None, -2) for _ in array.shape)
    ]
    strided[...] = array
    return frozen, strided, np.asfortranarray(array), array.astype(">f4")


@generated
@given(masks, kinds, st.data())
def test_turned_mirrored_and_framed_masks_have_the_same_betti_numbers(mask, kind, data):
    axes = data.draw(st.permutations(range(mask.ndim)))[:2]
    expected = betti_numbers(mask, connectivity=kind)
    framed = np.pad(mask, data.draw(st.integers(1, 3)))
    for moved in (np.rot90(mask, axes=axes), np.rot90(mask, 2, axes=axes), np.flip(mask, axes[0]), mask.T, framed):
        assert betti_numbers(moved, connectivity=kind) == expected


@generated
@given(masks, kinds)
def test_the_framed_complement_has_the_dual_betti_numbers(mask, kind):
    """Alexander duality: holes are background components but the outside, components are holes of the background."""
    dual = betti_numbers(~np.pad(mask, 1), connectivity="open" if kind == "closed" else "closed")
    assert (dual[0] - 1, *dual[1:]) == betti_numbers(mask, connectivity=kind)[::-1]


@generated
@given(masks, kinds)
def test_a_skeleton_is_a_part_of_its_mask_with_the_same_betti_numbers(mask, kind):
    skeleton = skeletonize(mask, connectivity=kind)
    assert not (skeleton & ~mask).any()
    assert betti_numbers(skeleton, connectivity=kind) == betti_numbers(mask, connectivity=kind)


@generated
@given(masks, kinds)
def test_removing_one_simple_point_keeps_betti_numbers(mask, kind):
    simple, expected = simple_points(mask, connectivity=kind), betti_numbers(mask, connectivity=kind)
    assert not (simple & ~mask).any()
    for place in np.argwhere(simple):
        less = mask.copy()
        less[tuple(place)] = False
        assert betti_numbers(less, connectivity=kind) == expected


@generated
@given(maps, kinds, st.integers(-50, 50))
def test_strictly_monotone_transform_keeps_the_pairing(values, kind, shift):
    code = persistence(values, connectivity=kind)
    wide = values.astype(np.int64)
    for change in (lambda v: v + shift, lambda v: v**3 + 5 * v):
        changed = persistence(change(wide), connectivity=kind)
        assert same_bars(code, changed)
        assert np.array_equal(changed.birth_values, change(code.birth_values.astype(np.float64)))
        assert np.array_equal(changed.finite().death_values, change(code.finite().death_values.astype(np.float64)))


@generated
@given(maps, kinds)
def test_a_map_matched_with_itself_has_every_bar_matched(values, kind):
    found = match(values, values.copy(), connectivity=kind)
    assert (
        found.error == 0
        and len(found.matched) == len(found.prediction)
        and (found.matched[:, 0] == found.matched[:, 1]).all()
    )


@generated
@given(pairs_of_maps, kinds)
def test_swapping_two_maps_swaps_the_two_sides_of_their_matching(pair, kind):
    one, other = match(*pair, connectivity=kind), match(*pair[::-1], connectivity=kind)
    assert np.array_equal(one.only_prediction, other.only_reference) and np.array_equal(
        one.only_reference, other.only_prediction
    )
    assert sorted(one.matched.tolist()) == sorted(other.matched[:, ::-1].tolist())


@generated
@given(pairs_of_maps)
def test_memory_layout_and_byte_order_do_not_change_results(pair):
    values, other = pair
    mask, code, error = values > 0, persistence(values), match(values, other).error
    for variant in layouts(mask):
        assert betti_numbers(variant) == betti_numbers(mask)
        assert np.array_equal(skeletonize(variant), skeletonize(mask)) and np.array_equal(
            simple_points(variant), simple_points(mask)
        )
    for variant, other_variant in zip(layouts(values), layouts(other), strict=True):
        assert same_bars(persistence(variant), code) and match(variant, other_variant).error == error
        assert np.array_equal(variant, values)


@generated
@given(maps, st.data())
def test_single_nan_is_refused_and_counted(values, data):
    spoilt = values.astype(np.float32)
    spoilt.flat[data.draw(st.integers(0, values.size - 1))] = np.nan
    for call in (
        betti_numbers,
        skeletonize,
        simple_points,
        persistence,
        lambda v: match(v, values),
        lambda v: match(values, v),
    ):
        with pytest.raises(ValueError, match="1 NaN"):
            call(spoilt)


def by_gudhi(mask, kind):
    """Betti numbers of the mask as sublevel set at 0 of a two-valued cubical complex: its bars that are born at 0 and
    last.
    """
    cells = {"top_dimensional_cells" if kind == "closed" else "vertices": np.where(mask, 0.0, 1.0)}
    cubes = gudhi.CubicalComplex(**cells)
    cubes.compute_persistence(homology_coeff_field=2)
    intervals = (np.reshape(cubes.persistence_intervals_in_dimension(d), (-1, 2)) for d in range(mask.ndim))
    return tuple(int(((bars[:, 0] == 0) & (bars[:, 1] > 0)).sum()) for bars in intervals)


def by_cc3d(mask, kind):
    """Components, and holes or cavities as the components of the framed complement but the outside."""
    full, faces = (8, 4) if mask.ndim == 2 else (26, 6)
    inside, outside = (full, faces) if kind == "closed" else (faces, full)
    parts = cc3d.connected_components(mask.astype(np.uint8), connectivity=inside, return_N=True)[1]
    return (
        parts,
        cc3d.connected_components((~np.pad(mask, 1)).astype(np.uint8), connectivity=outside, return_N=True)[1] - 1,
    )


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_random_masks_have_the_betti_numbers_of_gudhi_and_cc3d(kind):
    for mask in random_masks(200, seed=11, longest=(40, 14)):
        betti = betti_numbers(mask, connectivity=kind)
        assert betti == by_gudhi(mask, kind), mask.shape
        assert (betti[0], betti[-1]) == by_cc3d(mask, kind), mask.shape


@pytest.mark.parametrize(
    "folder", ["axon_sem", "chase_db1", "dsb2018", "isbi12", "msd_hippocampus", "sunnybrook_lv", "topomortar"]
)
def test_every_class_of_real_masks_has_the_betti_numbers_of_gudhi_and_cc3d(folder):
    seen = 0
    for file, image, _ in islice(shared_masks(folder, {"mask", "mask_2nd", "mask_noisy", "mask_endo_only"}), 4):
        reach = 60 if image.ndim == 2 else 12  # gudhi is slow: it counts in the middle only
        middle = tuple(slice(max(0, side // 2 - reach), side // 2 + reach) for side in image.shape)
        for value, kind in ((v, k) for v in np.unique(image) for k in ("closed", "open")):
            mask = image == value
            betti = betti_numbers(mask, connectivity=kind)
            assert (betti[0], betti[-1]) == by_cc3d(mask, kind), (file, value)
            assert betti_numbers(mask[middle], connectivity=kind) == by_gudhi(mask[middle], kind), (file, value)
            seen += 1
    assert seen >= 8
