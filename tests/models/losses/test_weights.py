"""Weights of loss max-pooling compared with their definition."""

import numpy as np
import pytest
import torch

from models.losses.overlap import _worst_weights, loss_max_pooling


def slow_weights(losses, power, fraction):
    """min(c l^(q-1), cap), with c by bisection so that the budget is spent."""
    budget = len(losses) ** (1 - power)
    cap = (budget / np.ceil(fraction * len(losses))) ** (1 / power)
    shape = (losses / losses.max()) ** (1 / (power - 1))
    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        spent = (np.minimum(np.exp(middle) * shape, cap) ** power).sum()
        low, high = (middle, high) if spent < budget else (low, middle)
    return np.minimum(np.exp(low) * shape, cap)


@pytest.mark.parametrize("fraction", [0.02, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("power", [1.5, 1.7, 4.0])
@pytest.mark.parametrize("equal", [False, True])
def test_weights_respect_the_cap_and_use_the_budget(fraction, power, equal):
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 60):
        losses = 0.05 + rng.random(count) ** 3
        losses[count // 2 :] = losses[0] if equal else losses[count // 2 :]
        weights = _worst_weights(torch.from_numpy(losses), count, power, fraction).numpy()
        assert np.allclose(weights, slow_weights(losses, power, fraction), rtol=1e-5)


def test_fraction_of_one_gives_the_mean():
    logits = torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(0))
    for level in (logits, torch.full_like(logits, 0.3)):
        entropy = (
            torch.nn.functional.binary_cross_entropy_with_logits(level, torch.ones_like(level), reduction="none")
            .flatten(1)
            .mean(1)
        )
        assert torch.allclose(loss_max_pooling(level, torch.ones(2, 6, 7, dtype=torch.long), fraction=1.0), entropy)
