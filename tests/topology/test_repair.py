"""Repairs at the least total change: hand cases, exhaustive search, real masks, refusals, interruption."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product

import gudhi
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from skimage.measure import euler_number

from tests.topology.masks import DATA
from topology import simplify
from topology.components import betti_numbers
from topology.edited_mask import BACKGROUND, FOREGROUND, LEAST, EditedMask
from topology.prize_collecting import collect
from topology.simplify import Unreachable

simplify_to = partial(simplify.simplify_to, time_limit_s=None)  # no clock decides a test
simplify_firm = partial(simplify.simplify_firm, time_limit_s=None)

FULL = {2: np.ones((3, 3)), 3: np.ones((3, 3, 3))}


def recount(mask):
    """Betti numbers by SciPy's labels and scikit-image's Euler number; foreground 8 [26]-connected."""
    components = ndimage.label(mask, FULL[mask.ndim])[1]
    enclosed = ndimage.label(np.pad(~mask, 1, constant_values=True))[1] - 1
    if mask.ndim == 2:
        return components, enclosed
    return components, components + enclosed - euler_number(np.pad(mask, 1), 3), enclosed


def keep_largest_fill_smallest(mask, betti):
    """The plain repair that everybody knows, by SciPy."""
    labels, count = ndimage.label(mask, FULL[mask.ndim])
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    mask = np.isin(labels, 1 + np.argsort(-sizes, kind="stable")[: betti[0]])
    if betti[-1] is None:
        return mask
    labels, count = ndimage.label(np.pad(~mask, 1, constant_values=True))
    holes = [k for k in range(1, count + 1) if k != labels.flat[0]]
    holes.sort(key=lambda k: (labels == k).sum())
    inner = labels[(slice(1, -1),) * mask.ndim]
    return mask | np.isin(inner, holes[: max(len(holes) - betti[-1], 0)])


def speck_beside_block():
    mask = np.zeros((40, 40), np.float32)
    mask[2:20, 5:35] = 1
    mask[38, 38] = 1
    return mask


def ring_with_flat_wall():
    values = np.full((40, 40), 0.05, np.float32)
    values[5:35, 5:35] = 0.6
    values[9:31, 9:31] = 0.05
    return values


def blocks_with_flat_gap():
    values = np.full((20, 60), 0.3, np.float32)
    values[:, 5:25] = values[:, 28:48] = 0.9
    return values


def told(simple):
    return [(edit.kind, edit.pixels, round(edit.cost, 4)) for edit in simple.edits]


# Ties and plateaus ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scaled, threshold",
    [
        (lambda m: m, 0.5),
        (lambda m: m.astype(bool), 0.5),
        (lambda m: (255 * m).astype(np.uint8), 127.5),
        (lambda m: m * 60 - 30, 0.0),
        (lambda m: np.where(m > 0, 60.0, -60.0), 20.0),
        (lambda m: 1 / (1 + np.exp(-(m * 80 - 40))).astype(np.float32), 0.5),
        (lambda m: m.astype(np.float64) * 1e300, 5e299),
    ],
    ids=["0/1", "bool", "8 bit", "logits", "logits above 20", "saturated sigmoid", "huge"],
)
def test_speck_is_erased_when_all_values_tie(scaled, threshold):
    simple = simplify_to(scaled(speck_beside_block()), (1, None), threshold=threshold)
    assert [(edit.kind, edit.position, edit.pixels) for edit in simple.edits] == [("erase", (38, 38), 1)]


@pytest.mark.parametrize("block, speck", [(np.nextafter(np.float32(1), np.float32(0)), 1.0), (0.98, 0.99), (0.6, 1.0)])
def test_confident_speck_does_not_outweigh_an_object(block, speck):
    values = speck_beside_block() * np.float32(block)
    values[38, 38] = speck
    (edit,) = simplify_to(values, (1, None)).edits
    assert (edit.kind, edit.position) == ("erase", (38, 38))


def test_large_faint_patch_does_not_outweigh_a_confident_object():
    values = np.zeros((160, 60), np.float32)
    values[5:35, 5:35] = 0.51  # 900 pixels at 0.01
    values[145:148, 5:55] = 0.99  # 150 pixels at 0.49, too far away for a bridge
    simple = simplify_to(values, (1, 0))
    assert simple.values[146, 30] > 0.5 >= simple.values[20, 20]


def test_ring_with_flat_wall_is_cut_not_filled():
    assert told(simplify_to(ring_with_flat_wall(), (1, 0))) == [("open", 4, 0.4)]


def test_blocks_with_flat_gap_are_bridged_not_erased():
    assert told(simplify_to(blocks_with_flat_gap(), (1, 0))) == [("bridge", 3, 0.6)]


def test_bridge_over_plateau_is_straight():
    values = blocks_with_flat_gap()
    changed = np.argwhere((simplify_to(values, (1, 0)).values > 0.5) != (values > 0.5))
    assert len(set(changed[:, 0])) == 1


def test_bridge_has_no_more_pixels_than_what_it_saves():
    values = np.zeros((9, 40), np.float32)
    values[2:7, 2:20] = 0.9
    values[4, 30:33] = 0.9  # 3 pixels, 10 away over a background that is nearly foreground
    values[4, 20:30] = 0.49
    (edit,) = simplify_to(values, (1, 0)).edits
    assert (edit.kind, edit.pixels) == ("erase", 3)


def test_pixels_at_the_threshold_are_not_free():
    values = np.zeros((30, 40), np.float32)
    values[2:28, 2:38] = 0.8
    values[6:24, 6:34] = 0.0  # at the threshold: filling 504 pixels would cost nothing
    simple = simplify_to(values, (1, 0), threshold=0.0)
    assert [(edit.kind, edit.pixels) for edit in simple.edits] == [("open", 4)]
    assert simple.edits[0].cost == pytest.approx(4 * 0.8)
    values[10:20, 2:38] = np.where(values[10:20, 2:38] > 0, 1e-6, 0.0)
    (cheap,) = simplify_to(values, (1, 0), threshold=0.0).edits
    assert cheap.kind == "open" and cheap.cost > LEAST * 0.5 * cheap.pixels > 1e5 * cheap.change


# Referees ------------------------------------------------------------------------------------------------------------


def by_gudhi(mask):
    """Betti numbers of closed pixels by gudhi."""
    cells = gudhi.CubicalComplex(top_dimensional_cells=np.where(np.pad(mask, 1), 0.0, 1.0))
    cells.compute_persistence()
    return tuple(cells.persistent_betti_numbers(0.5, 0.5))[: mask.ndim]


def all_masks(rows, columns):
    bits = (np.arange(2 ** (rows * columns))[:, None] >> np.arange(rows * columns)) & 1
    return bits.astype(bool)


def test_most_repairs_are_optimal_against_exhaustive_search():
    masks = all_masks(3, 4)
    betti = np.array([betti_numbers(mask.reshape(3, 4)) for mask in masks])
    best, ours = [], []
    for seed in range(120):
        random = np.random.default_rng(seed)
        values = (random.random((3, 4)) if seed % 2 else random.choice([0.1, 0.3, 0.7, 0.9], (3, 4))).astype(np.float32)
        sure = np.abs(values.astype(np.float64).ravel() - 0.5)
        costs = (masks != (values > 0.5).ravel()) @ np.maximum(sure, LEAST * sure.mean())
        have = betti_numbers(values > 0.5)
        for wanted in ((1, 0), (2, 0), (1, None), (None, 0)):
            if any(want is not None and want > has for want, has in zip(wanted, have, strict=True)):
                continue
            fits = [want is None or betti[:, k] == want for k, want in enumerate(wanted)]
            best.append(costs[fits[0] & fits[1]].min())
            ours.append(sum(edit.cost for edit in simplify_to(values, wanted).edits))
    best, ours = np.array(best), np.array(ours)
    assert len(best) > 100 and (ours >= best - 1e-6).all()
    assert (ours <= best + 1e-6).mean() > 0.9 and ours.sum() < 1.2 * best.sum()


@pytest.mark.parametrize("ndim", [2, 3])
def test_requested_betti_numbers_match_independent_counts(ndim):
    for seed in range(40):
        random = np.random.default_rng(seed)
        shape = tuple(random.integers(6, (40, 12)[ndim - 2], ndim))
        values = ndimage.gaussian_filter(random.standard_normal(shape), random.choice([0.0, 0.7, 1.5]))
        values = random.choice([values, np.round(3 * values), (values > 0) * 1.0, np.clip(values, 0, 1)])
        have = recount(values > 0)
        wanted = [int(random.integers(1, max(have[0], 1) + 1)), 0] if ndim == 2 else [1, int(have[1] // 2), 0]
        if not have[0]:
            continue
        simple = simplify_to(values, wanted, threshold=0.0)
        mask = simple.values > 0
        assert recount(mask) == simple.certificate["betti"] == by_gudhi(mask) and list(recount(mask)) == wanted, seed
        assert (mask != (values > 0)).sum() == sum(edit.pixels for edit in simple.edits)


def test_repair_never_costs_more_than_keep_largest_fill_smallest():
    for seed in range(60):
        random = np.random.default_rng(seed)
        values = ndimage.gaussian_filter(random.standard_normal((36, 36)), random.choice([0.5, 1.0, 2.0]))
        values = (1 / (1 + np.exp(-4 * values / values.std()))).astype(np.float32)
        mask = values > 0.5
        for wanted in ((1, 0), (2, 1), (1, None)):
            plain = keep_largest_fill_smallest(mask, wanted)
            if any(want not in (None, has) for want, has in zip(wanted, recount(plain), strict=True)):
                continue
            ours = simplify_to(values, wanted).values > 0.5
            sure = np.abs(values.astype(np.float64) - 0.5)
            costs = np.maximum(sure, LEAST * sure[sure > 0].mean())
            assert costs[ours != mask].sum() <= costs[plain != mask].sum() + 1e-9


@pytest.mark.parametrize("side", [FOREGROUND, BACKGROUND])
def test_path_costs_match_dijkstra_over_pixels(side):
    for seed in range(10):
        random = np.random.default_rng(seed)
        values = random.random((18, 24)) * 0.5
        values[6:12, 3:7] += 0.5
        values[8:13, 17:22] += 0.5
        if side == BACKGROUND:
            values = np.pad(1 - values, 2, constant_values=0.9)
        edited = EditedMask(values, 0.5, "closed")
        components = edited.components(side)
        chosen = [2, 3] if side == BACKGROUND else [1, 2]
        paths = edited.regions(side, components.labels, len(components), every=True).paths()
        ours = paths.costs[(np.sort(paths.labels, axis=1) == chosen).all(1)].min()
        assert ours == pytest.approx(dijkstra_over_pixels(edited, components.labels, chosen, side))


def dijkstra_over_pixels(edited, labels, chosen, side):
    """The least cost of pixels between two components, by SciPy on the graph of all pixels."""
    shape, flat = labels.shape, labels.ravel()
    sure = np.abs(edited.values.ravel() - 0.5)
    enter = np.where((edited.flat == side) | np.isnan(sure), np.inf, np.maximum(sure, edited.prices[1]))
    enter[flat == chosen[0]] = enter[flat == chosen[1]] = 1e-12
    rows, columns = np.unravel_index(np.arange(flat.size), shape)
    tails, heads = [], []
    for step in product((-1, 0, 1), repeat=2):
        if step == (0, 0) or (side == BACKGROUND and abs(step[0]) + abs(step[1]) > 1):
            continue
        there = (rows + step[0] >= 0) & (rows + step[0] < shape[0]) & (columns + step[1] >= 0)
        there &= columns + step[1] < shape[1]
        tail = np.flatnonzero(there)
        head = tail + step[0] * shape[1] + step[1]
        open_ = np.isfinite(enter[tail]) & np.isfinite(enter[head])
        tails.append(tail[open_])
        heads.append(head[open_])
    tails, heads = np.concatenate(tails), np.concatenate(heads)
    graph = coo_array((enter[heads], (tails, heads)), shape=(flat.size,) * 2).tocsr()
    away = dijkstra(graph, indices=np.flatnonzero(flat == chosen[0])[0])
    return away[np.flatnonzero(flat == chosen[1])].min()


def test_kept_components_match_exhaustive_search_on_trees():
    for seed in range(60):
        random = np.random.default_rng(seed)
        count = int(random.integers(2, 8))
        masses = random.integers(1, 20, count).astype(float)
        ends = np.array([(random.integers(0, k), k) for k in range(1, count)])
        costs = random.integers(1, 20, count - 1).astype(float)
        order = np.argsort(costs, kind="stable")
        ends, costs = ends[order], costs[order]
        kept, taken = collect(masses, np.full(count, 99), ends, costs, np.ones(count - 1, np.int64), roots=[0])
        ours = masses[~kept].sum() + costs[taken].sum()
        assert ours == least_of_all_choices(masses, ends, costs)


def least_of_all_choices(masses, ends, costs):
    """Masses given up plus paths taken, the least over all subsets of the paths that hang together with node 0."""
    least = np.inf
    for chosen in product((False, True), repeat=len(costs)):
        reached, grew = {0}, True
        paths = [tuple(end) for end, take in zip(ends.tolist(), chosen, strict=True) if take]
        while grew:
            grew = False
            for a, b in paths:
                if (a in reached) != (b in reached):
                    reached |= {a, b}
                    grew = True
        if all(a in reached for a, _ in paths):
            given_up = sum(mass for node, mass in enumerate(masses) if node not in reached)
            least = min(least, given_up + costs[list(chosen)].sum())
    return least


def test_groups_are_kept_apart_where_that_saves_most():
    masses = np.array([100.0, 80.0, 50.0])  # two halves of one object, a small step apart, and a second object
    kept, taken = collect(
        masses, np.full(3, 99), np.array([(0, 1), (1, 2)]), np.array([1.0, 70.0]), np.array([1, 9]), groups=2
    )
    assert kept.all() and taken.tolist() == [0]


# Real masks ----------------------------------------------------------------------------------------------------------


def damaged(name, index, *, side=256, seed=0):
    """(probability, reference) of a crop of a real mask that was blurred, made noisy and broken in twenty places."""
    path = sorted((DATA / name / "masks").iterdir())[index]
    truth = np.asarray(Image.open(path).convert("L"))[200 : 200 + side, 200 : 200 + side] > 0
    random = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(truth.astype(float), 1.2)
    logits = 8 * (soft - 0.45) + 1.5 * ndimage.gaussian_filter(random.standard_normal(truth.shape), 1) * 3
    members = np.argwhere(truth)
    for row, column in members[random.integers(0, len(members), 20)]:
        logits[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4] -= 5
    return logits, truth


def sigmoid(logits, scale=1.0):
    return (1 / (1 + np.exp(-scale * logits))).astype(np.float32)


FORMS = {
    "probability": lambda logits: (sigmoid(logits), 0.5),
    "saturated": lambda logits: (sigmoid(logits, 40), 0.5),
    "8 bit": lambda logits: (np.rint(255 * sigmoid(logits)).astype(np.uint8), 127.5),
    "hard": lambda logits: ((logits > 0).astype(np.uint8), 0.5),
    "logits": lambda logits: (logits, 0.0),
    "clipped logits": lambda logits: (np.clip(logits, 0, 1), 0.0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["chase_db1", "topomortar"])
def test_real_masks_change_less_than_by_keep_largest_fill_smallest(name, form):
    if not (DATA / name).exists():
        pytest.skip("the shared images are not here")
    for index in range(3):
        logits, truth = damaged(name, index, seed=index)
        values, threshold = FORMS[form](logits)
        before = values > threshold
        simple = simplify_to(values, (1, 0), threshold=threshold)
        ours, plain = simple.values > threshold, keep_largest_fill_smallest(before, (1, 0))
        assert recount(ours) == (1, 0) == simple.certificate["betti"]
        assert (ours != before).sum() <= (plain != before).sum()
        dice = [2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in (ours, plain, before)]
        assert dice[0] >= dice[1] and dice[0] > dice[2] - 0.02


# What is asked, and how a search ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "betti, named",
    [
        ((1.5, 0), "1.5"),
        (("1", 0), "'1'"),
        (None, "None"),
        ("10", "'10'"),
        ((True, 0), "True"),
        ((1, -1), "-1"),
        ((1, 0, 0), r"\(1, 0, 0\)"),
        (np.array([1.0, 0.0]), "1.0"),
    ],
)
def test_invalid_betti_number_is_refused_by_name(betti, named):
    with pytest.raises(ValueError, match=named) as refused:
        simplify_to(speck_beside_block(), betti)
    assert not isinstance(refused.value, Unreachable)


def test_numpy_integers_are_accepted():
    assert simplify_to(speck_beside_block(), np.array([1, 0])).certificate["betti"] == (1, 0)


def ask_for_too_much():
    peak = np.zeros((5, 5))
    peak[2, 2] = 0.9
    return simplify_to(peak, (3, 0))


def test_unreachable_passes_through_a_process_pool():
    with ProcessPoolExecutor(1) as pool, pytest.raises(Unreachable, match="no edit brings them nearer") as refused:
        pool.submit(ask_for_too_much).result()
    assert (refused.value.reached, refused.value.asked, refused.value.spent) == ((1, 0), (3, 0), False)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_partial_repair_is_returned_on_request():
    peak = np.zeros((5, 9))
    peak[2, 2] = peak[2, 6] = 0.9
    peak[2, 4] = 0.3
    simple = simplify_to(peak, (5, 0), partial=True)
    assert not simple.certificate["reached"] and simple.certificate["asked"] == (5, 0)
    assert simple.certificate["betti"] == betti_numbers(simple.values > 0.5) == (3, 0)
    assert simplify_to(peak, (2, 0), partial=True).certificate["reached"]


def test_search_over_its_time_limit_is_refused_or_partial():
    values = np.random.default_rng(0).random((96, 96)).astype(np.float32)
    with pytest.raises(Unreachable, match="time") as refused:
        simplify_to(values, (1, 0), time_limit_s=0)
    assert refused.value.spent and refused.value.asked == (1, 0)
    simple = simplify_to(values, (1, 0), time_limit_s=0, partial=True)
    assert simple.certificate["spent"] and simple.certificate["betti"] == betti_numbers(simple.values > 0.5)


@pytest.mark.parametrize(
    "shape, betti", [((256, 256), (1, 0)), ((30, 30, 30), (1, None, 0)), ((14, 14, 14), (1, 0, 0))]
)
def test_search_can_be_interrupted_at_any_check(shape, betti):
    """The caller is asked again and again; what it raises comes out, whenever it does."""
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    asked = []
    simplify_to(values, betti, check=lambda: asked.append(1))
    assert len(asked) > 10

    class Enough(Exception):
        pass

    for last in (1, len(asked) // 2, len(asked)):
        calls = []

        def check(calls=calls, last=last):
            calls.append(1)
            if len(calls) == last:
                raise Enough

        with pytest.raises(Enough):
            simplify_to(values, betti, check=check)
        assert len(calls) == last


def test_checkerboard_is_repaired_or_reports_what_was_reached():
    board = (np.indices((512, 512)).sum(0) % 2).astype(np.float32)
    simple = simplify.simplify_to(board, (1, 0), partial=True)
    assert simple.certificate["betti"] == recount(simple.values > 0.5)
    assert simple.certificate["reached"] or simple.certificate["spent"]


def test_persistent_speck_is_kept_and_faint_patch_removed():
    values = np.zeros((40, 40), np.float32)
    values[2:30, 2:30] = 0.53
    values[36, 36] = 0.95
    simple = simplify_firm(values, 0.1)
    assert [(edit.kind, edit.pixels) for edit in simple.edits] == [("erase", 784)]
    assert simple.values[36, 36] == np.float32(0.95)
