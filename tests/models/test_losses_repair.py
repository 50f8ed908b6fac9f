"""Each loss, descended alone, repairs the errors that docs/losses.md says it repairs."""

import pytest

from benchmarks.repairs import DAMAGES, OPTIONS, repair, scnp
from models.losses import LOSSES

ALL = set(DAMAGES)
REPAIRS = {
    "neighbour_penalty": ALL, "cross_entropy": ALL, "dice": ALL, "tversky": ALL, "focal": ALL, "loss_max_pooling": ALL, "boundary": ALL,
    "region_wise": ALL, "neighbour_loss": ALL, "soft_cldice": {"break"}, "skeleton_recall": {"break", "hole"}, "csp_skeleton_loss": {"break", "bridge"},
    "threshold_hard_pixels": ALL, "persistence_hard_pixels": {"hole"}, "skeleton_hard_pixels": {"break", "bridge", "island"},
    "topo_loss": ALL, "betti_prior": ALL, "topology_layer": {"break", "island"}, "landscape_distance": {"bridge", "hole"},
    "betti_matching": ALL, "dmt_loss": {"break", "bridge", "island"}, "topograph": ALL, "dense_matching": ALL,
}  # fmt: skip
LIMIT = 60


def test_the_table_names_every_loss():
    assert set(REPAIRS) == {"neighbour_penalty", *LOSSES}


@pytest.mark.parametrize("name, damage", [(name, damage) for name, damages in REPAIRS.items() for damage in sorted(damages)])
def test_a_loss_alone_repairs(name, damage):
    loss = scnp if name == "neighbour_penalty" else LOSSES[name]
    steps = repair(loss, damage, **OPTIONS.get(name, {}))
    assert steps is not None and steps <= LIMIT


def test_dense_matching_needs_fewer_steps_than_two_pixels_a_feature():
    """Its gradient is spread over the whole structure, so every error goes in the time of cross-entropy."""
    for damage in DAMAGES:
        ours = repair(LOSSES["dense_matching"], damage)
        assert all(ours < repair(LOSSES[name], damage) for name in ("topo_loss", "betti_matching"))
