"""Tiles cover the image and their weights sum to one."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.serving.tiles import cut, seam, stitch


@given(
    st.integers(1, 400),
    st.integers(2, 12),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 60) | st.none(),
    st.sampled_from([0.0, 0.1, 0.25, 0.5]),
)
def test_the_weights_of_all_tiles_add_up_to_one_at_every_pixel(cells, tile_cells, multiple, field, overlap):
    length, tile = cells * multiple, tile_cells * multiple
    cuts = cut(length, tile, seam(tile, receptive_field=field, overlap=overlap, multiple=multiple), multiple=multiple)
    total = np.zeros(length)
    for window, weights in cuts:
        assert window.start % multiple == 0 and window.start >= 0 and window.stop <= length
        total[window] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert cuts.side <= max(tile, length if length <= tile else 0)


@given(st.integers(40, 400), st.integers(1, 15))
def test_tile_has_zero_weight_within_its_receptive_margin(length, margin):
    field = 2 * margin + 1
    cuts = cut(length, 40, seam(40, receptive_field=field, overlap=0.25, multiple=1), multiple=1)
    if 2 * margin > 20:
        return
    for window, weights in cuts:
        assert window.start == 0 or not weights[:margin].any()
        assert window.stop == length or not weights[-margin:].any()


@given(st.integers(1, 120), st.integers(6, 12), st.sampled_from([1, 2, 8]), st.integers(1, 20))
def test_an_exact_seam_takes_each_pixel_from_one_tile(cells, tile_cells, multiple, field):
    length, tile = cells * multiple, tile_cells * multiple
    at = seam(tile, receptive_field=field, overlap=0.25, multiple=multiple)
    if at.exact:
        times = np.zeros(length)
        for window, weights in cut(length, tile, at, multiple=multiple):
            assert set(weights) <= {0, 1}
            times[window] += weights
        assert (times == 1).all()


@given(st.integers(20, 400), st.integers(3, 12), st.sampled_from([1, 2, 8]), st.integers(1, 60) | st.none())
def test_every_tile_is_needed(cells, tile_cells, multiple, field):
    length, tile = cells * multiple, tile_cells * multiple
    starts = cut(
        length, tile, seam(tile, receptive_field=field, overlap=0.25, multiple=multiple), multiple=multiple
    ).starts
    assert list(starts) == sorted(set(starts))


def test_an_image_no_larger_than_a_tile_is_one_piece():
    cuts = cut(64, 64, seam(64, receptive_field=45, overlap=0.25, multiple=8), multiple=8)
    assert cuts.starts == (0,) and cuts.side == 64


def test_tiles_are_made_as_small_as_their_number_allows():
    at = seam(512, receptive_field=45, overlap=0.25, multiple=8)
    assert cut(584, 512, at, multiple=8).side == 320


@pytest.mark.parametrize(
    "shape, tile",
    [((50, 70), (16, 16)), ((70, 50), (16, 64)), ((30, 40, 20), (16, 16, 16)), ((33, 16, 47), (16, 16, 16))],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_of_a_map_put_together_are_the_map(shape, tile, batch):
    whole = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    axes = [
        cut(n, t, seam(t, receptive_field=5, overlap=0.25, multiple=1), multiple=1)
        for n, t in zip(shape, tile, strict=True)
    ]
    asked = []

    def predict(windows):
        asked.append(len(windows))
        return np.stack([whole[(slice(None), *window)] for window in windows])

    found, times = np.zeros_like(whole), np.zeros(shape, int)
    for place, block in stitch(axes, predict, batch=batch):
        found[(slice(None), *place)] = block
        times[place] += 1
    assert max(asked) <= batch and (times == 1).all()
    np.testing.assert_allclose(found, whole, atol=1e-6)
