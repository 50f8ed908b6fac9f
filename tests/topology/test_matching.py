"""Betti matching against its definition by boundary matrices, and drawn examples."""

import itertools

import numpy as np
import pytest

from tests.topology.masks import mask, random_maps
from topology.matching import match
from topology.persistence import persistence


class Complex:
    """All cells of a small grid of closed cubes (T) or of its vertices (V), with plain matrix reduction over two
    elements.
    """

    def __init__(self, shape, connectivity):
        self.shape = shape
        self.grid = tuple(2 * n + 1 if connectivity == "closed" else 2 * n - 1 for n in shape)
        self.closed = connectivity == "closed"
        self.cells = list(itertools.product(*map(range, self.grid)))
        self.dimension = {cell: sum(x % 2 for x in cell) for cell in self.cells}

    def enter(self, values):
        """Sublevel value of every cell for f = -values: closed cells appear with the first pixel, open ones with the
        last vertex.
        """
        entered = {}
        for cell in self.cells:
            pixels = [self._pixels(x, n) for x, n in zip(cell, self.shape, strict=True)]
            around = [-float(values[place]) for place in itertools.product(*pixels)]
            entered[cell] = min(around) if self.closed else max(around)
        return entered

    def _pixels(self, x, n):
        if self.closed:
            return [x // 2] if x % 2 else [k for k in (x // 2 - 1, x // 2) if 0 <= k < n]
        return [x // 2, x // 2 + 1] if x % 2 else [x // 2]

    def boundary(self, cell):
        for axis, x in enumerate(cell):
            if x % 2:
                for step in (-1, 1):
                    yield (*cell[:axis], x + step, *cell[axis + 1 :])

    def order(self, entered, tie):
        return sorted(self.cells, key=lambda cell: (entered[cell], self.dimension[cell], tie[cell]))

    def pairs(self, rows, columns):
        """{birth cell: death cell}: rows in the order of one filtration, columns in that of another."""
        place = {cell: k for k, cell in enumerate(rows)}
        owner = {}
        for cell in columns:
            column = 0
            for face in self.boundary(cell):
                column ^= 1 << place[face]
            while column and (low := column.bit_length() - 1) in owner:
                column ^= owner[low][0]
            if column:
                owner[low] = (column, cell)
        return {rows[low]: cell for low, (_, cell) in owner.items()}


def slow_match(p, y, connectivity, seed):
    """Sorted (dimension, birth and death in p, birth and death in y) of matched finite bars, straight from the
    definition.

    The seed orders the cells that one pixel brings in at the same value.
    """
    cells = Complex(p.shape, connectivity)
    tie = dict(zip(cells.cells, np.random.default_rng(seed).permutation(len(cells.cells)).tolist(), strict=True))
    entered = [cells.enter(v) for v in (p, y, np.maximum(p, y))]
    orders = [cells.order(e, tie) for e in entered]
    to_hub = []
    for k in range(2):
        bars = cells.pairs(orders[k], orders[k])
        hubs = {death: birth for birth, death in cells.pairs(orders[2], orders[2]).items()}
        image = cells.pairs(orders[k], orders[2])
        found = {}
        for birth, death in image.items():
            if (
                entered[k][birth] < entered[2][death]
                and birth in bars
                and death in hubs
                and entered[k][birth] < entered[k][bars[birth]]
            ):
                found[death] = (cells.dimension[birth], -entered[k][birth], -entered[k][bars[birth]])
        to_hub.append(found)
    return sorted((*to_hub[0][death], *to_hub[1][death][1:]) for death in to_hub[0].keys() & to_hub[1].keys())


def fast_match(p, y, connectivity):
    found = match(p, y, connectivity=connectivity)
    rows = []
    for a, b in found.matched:
        if np.isfinite(found.prediction.death_values[a]):
            one, other = found.prediction, found.reference
            rows.append(
                (
                    int(one.dimension[a]),
                    one.birth_values[a],
                    one.death_values[a],
                    other.birth_values[b],
                    other.death_values[b],
                )
            )
    return sorted(rows)


@pytest.mark.parametrize("connectivity", ["closed", "open"])
@pytest.mark.parametrize("shape, count", [((5, 5), 40), ((1, 7), 20), ((3, 3, 3), 16), ((4, 3, 4), 5), ((1, 4, 4), 12)])
def test_matched_bars_are_those_of_image_persistence_by_definition(shape, count, connectivity):
    random = np.random.default_rng(sum(shape))
    found = 0
    for mixture in np.linspace(0, 1, count):
        p, noise = random.permutation(2 * int(np.prod(shape))).reshape(2, *shape).astype(np.float64)
        y = p * (1 - mixture) + noise * mixture + random.random(shape) * 1e-3
        expected = [slow_match(p, y, connectivity, seed) for seed in range(4)]
        # Where one pixel joins three components the definition leaves a choice; compare where it leaves none.
        if all(other == expected[0] for other in expected):
            ours = fast_match(p, y, connectivity)
            assert len(ours) == len(expected[0]) and np.allclose(ours, expected[0])
            found += len(ours)
    assert found > 10


@pytest.mark.parametrize("connectivity", ["closed", "open"])
def test_a_map_matched_with_itself_has_every_feature_matched(connectivity):
    for values in random_maps(60, seed=1):
        found = match(values, values, connectivity=connectivity)
        assert found.error == 0 and len(found.matched) == len(persistence(values, connectivity=connectivity))
        assert np.array_equal(found.matched[:, 0], found.matched[:, 1])


def test_swapping_the_maps_swaps_the_two_sides():
    for k, p in enumerate(random_maps(40, seed=2)):
        y = (p + np.random.default_rng(k).standard_normal(p.shape) * 0.5).astype(np.float32)
        there, back = match(p, y), match(y, p)
        assert sorted(there.matched.tolist()) == sorted(back.matched[:, ::-1].tolist())
        assert np.array_equal(there.only_prediction, back.only_reference)


def test_adding_a_constant_to_both_maps_changes_no_pairing():
    for values in random_maps(20, seed=3):
        p = np.round(values * 8) / 8
        y = np.roll(p, 1, 0)
        assert np.array_equal(match(p, y).matched, match(p + 2, y + 2).matched)


def test_every_bar_is_matched_at_most_once():
    for p in random_maps(30, seed=4):
        found = match(p, np.flip(p))
        assert sorted([*found.matched[:, 0], *found.only_prediction]) == list(range(len(found.prediction)))
        assert sorted([*found.matched[:, 1], *found.only_reference]) == list(range(len(found.reference)))


RING = mask("""
    .......
    .####..
    .#..#..
    .####..
    ....... """)


def test_a_ring_and_the_same_ring_drawn_thicker_share_their_loop():
    thick = RING | np.roll(RING, 1, 0)
    thick[2, 2:4] = False
    found = match(thick, RING)
    assert found.error == 0 and len(found.matched) == 2


def test_rings_in_different_places_are_not_matched_despite_equal_bars():
    left, right = np.pad(RING, ((0, 0), (0, 8))), np.pad(RING, ((0, 0), (8, 0)))
    found = match(left, right)
    assert len(found.only_prediction) == 1 and len(found.only_reference) == 1
    assert found.prediction.dimension[found.only_prediction].tolist() == [1]


def test_broken_ring_leaves_the_reference_loop_unmatched():
    broken = RING.copy()
    broken[1, 2] = False
    found = match(broken, RING)
    assert len(found.only_prediction) == 0
    assert found.reference.dimension[found.only_reference].tolist() == [1]


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        match(np.ones((2, 3)), np.ones((3, 2)))
