"""Each loss alone repairs the errors that docs/losses.md lists."""

import pytest

from benchmarks.losses import sample
from benchmarks.repairs import DAMAGES, OPTIONS, descend, matching_error, reached, repair, scnp, spoilt
from models.losses import LOSSES, RULE_LOSSES

ALL = set(DAMAGES)
REPAIRS = {
    "neighbour_penalty": ALL,
    "cross_entropy": ALL,
    "dice": ALL,
    "tversky": ALL,
    "focal": ALL,
    "loss_max_pooling": ALL,
    "topk": ALL,
    "cbdice": {"bridge", "island"},
    "homotopy_warping": ALL,
    "sat_loss": ALL,
    "boundary": ALL,
    "region_wise": ALL,
    "neighbour_loss": ALL,
    "soft_cldice": {"break"},
    "skeleton_recall": {"break", "hole"},
    "csp_skeleton_loss": {"break", "bridge"},
    "grayscale_cldice": ALL,
    "threshold_hard_pixels": ALL,
    "persistence_hard_pixels": {"hole"},
    "skeleton_hard_pixels": {"break", "bridge", "island"},
    "topo_loss": ALL,
    "betti_prior": ALL,
    "topology_layer": {"break", "island"},
    "landscape_distance": {"bridge", "hole"},
    "betti_matching": ALL,
    "dmt_loss": {"break", "bridge", "island"},
    "topograph": ALL,
    "dense_matching": ALL,
}
LIMIT = 60


def test_the_table_names_every_loss():
    assert set(REPAIRS) == {"neighbour_penalty", *LOSSES} - RULE_LOSSES


@pytest.mark.parametrize(
    "name, damage", [(name, damage) for name, damages in REPAIRS.items() for damage in sorted(damages)]
)
def test_each_loss_alone_repairs_its_documented_errors(name, damage):
    loss = scnp if name == "neighbour_penalty" else LOSSES[name]
    steps, _ = repair(loss, damage, **OPTIONS.get(name, {}))
    assert steps is not None and steps <= LIMIT


def test_dense_matching_repairs_in_fewer_steps_than_sparse_losses():
    """Its gradient is spread over the whole structure, so every error goes in the time of cross-entropy."""
    for damage in DAMAGES:
        ours, _ = repair(LOSSES["dense_matching"], damage)
        assert all(ours < repair(LOSSES[name], damage)[0] for name in ("topo_loss", "betti_matching"))
        ridges, _ = repair(LOSSES["dmt_loss"], damage)
        assert ridges is None or ours <= ridges


def test_dense_matching_removes_all_errors_of_a_noisy_map():
    """Many errors at once, near each other: two pixels a feature leave some, or join an island to its neighbour instead
    of removing it.
    """
    logits, target = sample(1, (64, 64), "cpu")
    runs = {
        name: descend(LOSSES[name], logits, target, matching_error, steps=LIMIT)
        for name in ("dense_matching", "betti_matching", "topo_loss", "dmt_loss")
    }
    errors, _, end = runs.pop("dense_matching")
    assert errors[0] > 10 and errors[-1] == 0 and spoilt(logits, end, target) == 0
    assert all(
        reached(rival, 0.1) is None or reached(errors, 0.1) < reached(rival, 0.1) for rival, _, _ in runs.values()
    )
    assert spoilt(logits, runs["betti_matching"][2], target) > 0
