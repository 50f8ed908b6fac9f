"""A table of every loss; the shared tests run on each entry."""

import numpy as np
import pytest
import torch

from models.losses import LOSSES, REFERENCE_FREE, RULE_LOSSES

OPTIONS = {
    "inside": {"pairs": [{"subject": 2, "others": [1]}], "where_true": False},
    "must_touch": {"pairs": [{"subject": 1, "others": [2]}], "border": "background"},
    "must_not_touch": {"pairs": [{"subject": 2, "others": [1]}], "where_true": False},
}
"""Loss -> what its hyper-parameters are in the shared tests, where its defaults do not do."""

ALTERNATIVES = {
    "cross_entropy": {},
    "dice": {"smooth": 0.5},
    "soft_cldice": {"iterations": 2, "smooth": 0.1},
    "tversky": {"alpha": 0.6, "beta": 0.2, "smooth": 0.5},
    "focal": {"gamma": 0.5, "foreground_weight": 3.0},
    "loss_max_pooling": {"power": 1.2, "fraction": 0.6},
    "topk": {"fraction": 0.6},
    "cbdice": {"iterations": 1, "smooth": 0.1},
    "homotopy_warping": {},
    "sat_loss": {"relative": True, "reduction": "sum"},
    "boundary": {},
    "region_wise": {},
    "neighbour_loss": {},
    "skeleton_recall": {"radius": 0, "smooth": 1.0},
    "threshold_hard_pixels": {"threshold": 0.3},
    "persistence_hard_pixels": {"threshold": 0.3, "dimensions": [0, 1]},
    "skeleton_hard_pixels": {"threshold": 0.3, "thinning": "exact"},
    "topo_loss": {"window": 6, "noise": 0.4, "reduction": "sum"},
    "betti_prior": {
        "priors": lambda axes: [{"classes": [1], "betti": [2, 1, 0][:axes]}],
        "power": 1.0,
        "reduction": "sum",
    },
    "csp_skeleton_loss": {"iterations": 1, "rule": "published", "smooth": 1.0},
    "grayscale_cldice": {"noise": 0.6, "smooth": 0.1},
    "betti_matching": {"connectivity": "open", "relative": True, "push_apart": True, "reduction": "sum"},
    "landscape_distance": {"depth": 1, "points": 10},
    "dmt_loss": {"noise": 0.6},
    "dense_matching": {"levels": 2, "border": "unknown", "reduction": "sum"},
    "topograph": {"aggregate": "max", "include_background": False, "border": "background", "reduction": "sum"},
    "topology_layer": {"dimension": 1, "skip": 2, "power": 2.0, "reduction": "sum"},
}
"""Loss -> another value than the default for each of its hyper-parameters; each must change the answer.

Those of rules between classes have tests of their own.
"""

WITHOUT_REFERENCE = REFERENCE_FREE | RULE_LOSSES
"""Losses that judge a map by itself: a prediction nearer to some reference need not cost less."""

WITHOUT_LABELS = REFERENCE_FREE
"""Losses that look at every pixel, labelled or not, because that is what they are for."""

KINDS = {
    "sigmoid in the plane": (1, (14, 17)),
    "softmax in the plane": (3, (14, 17)),
    "sigmoid in space": (1, (6, 9, 8)),
    "softmax in space": (3, (6, 9, 8)),
}
"""Name -> (channels, sides)."""


CASES = [(name, kind) for name in sorted(LOSSES) for kind in KINDS if "softmax" in kind or name not in RULE_LOSSES]
"""Every loss in every setting that it is for."""


def loss_of(name, logits, target, **options):
    """(N,) of a loss that is named, with its `OPTIONS`."""
    return LOSSES[name](logits, target, **{**OPTIONS.get(name, {}), **options})


def term_of(name, **fields):
    """A term of a specification, with its `OPTIONS`."""
    return {"name": name, **OPTIONS.get(name, {}), **fields}


def cases(without=frozenset()):
    """Parametrise a test over CASES but for some losses."""
    return pytest.mark.parametrize("name, kind", [case for case in CASES if case[0] not in without])


def noisy_tube(channels, sides, *, batch=2, seed=0, dtype=torch.float64):
    """Logits that see a tube through noise, and the tube: (batch, channels, *sides), (batch, *sides) int64."""
    rng = np.random.default_rng(seed)
    target = np.zeros((batch, *sides), np.int64)
    middle = tuple(slice(side // 2 - 1, side // 2 + 1) for side in sides[1:-1])
    for sample in range(batch):
        target[(sample, slice(None), *middle, slice(3 + sample, 6 + sample))] = 1
        target[(sample, slice(3, 5), *middle, slice(1, sides[-1] - 2))] = 1 if channels == 1 else channels - 1
    truth = target[:, None] == (np.arange(channels).reshape(1, -1, *[1] * len(sides)) if channels > 1 else 1)
    logits = 2.0 * truth - 1.0 + 1.5 * rng.standard_normal(truth.shape)
    return torch.from_numpy(logits).to(dtype), torch.from_numpy(target)
