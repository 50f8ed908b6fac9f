"""Probabilistic DMT: a U-Net that also predicts a persistence threshold with its deviation.

The structures of a probability map form a one-parameter family M_eps: its ridges of a persistence above eps. Two small
heads predict a normal distribution over eps, one from the image (the prior, all that is left when the network is used),
one from image and reference (the posterior). A structure of persistence pi is there with probability
Phi((pi - mean) / deviation), so `topology.morse.structure_uncertainty` needs no samples. A training step scores that
probability against the reference, draws eps from the posterior to weigh the structures that teach the answer, and pulls
the two distributions together. Source: Hu et al., "Learning
Probabilistic Topological Representations Using Discrete Morse Theory", ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from models.errors import InvalidInput
from models.losses.morse import structure_losses
from models.losses.pixels import foreground, labelled, one_hot
from models.networks.unet import CONVOLUTION, UNet

LEAST, MOST = 0.02, 0.5
"""Deviations a head can say, in units of probability: below, samples would teach nothing and the divergence would have
no bound.
"""
WIDTH = 16


class ThresholdHead(nn.Module):
    """(N, width) features of whole images to mean and deviation (N,) of the persistence threshold, both in units of
    probability.

    The mean lies in (0, 1), the deviation between LEAST and MOST; both start near 0.1.
    """

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
        nn.init.normal_(self.layers[2].weight, std=0.01)
        self.layers[2].bias.data = torch.tensor([0.1, (0.1 - LEAST) / (MOST - LEAST)]).logit()

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, deviation = self.layers(features).float().sigmoid().unbind(1)
        return mean, LEAST + (MOST - LEAST) * deviation


class Evidence(nn.Module):
    """(N, channels, ...) image with its reference to (N, WIDTH): three strided convolutions and the mean over all
    places.
    """

    def __init__(self, channels, dimensions):
        super().__init__()
        widths = [channels, WIDTH, WIDTH, WIDTH]
        layers = [(CONVOLUTION[dimensions](a, b, 3, stride=2, padding=1), nn.ReLU()) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*(part for layer in layers for part in layer))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.layers(pictures).flatten(2).mean(2)


def divergence(posterior: tuple[torch.Tensor, torch.Tensor], prior: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Kullback-Leibler divergence (N,) of normal distributions, each (mean, deviation)."""
    (mean, deviation), (expected, spread) = posterior, prior
    return (spread / deviation).log() + (deviation**2 + (mean - expected) ** 2) / (2 * spread**2) - 0.5


class ProbabilisticMorseUNet(nn.Module):
    """A U-Net with a distribution over the persistence that its ridges need to be structures.

    channels           as for the U-Net
    dimensions         2 or 3
    structure_weight     weight of the sampled structure's loss and of its presence
    divergence_weight    weight of the divergence of the posterior from the prior
    structure_from_step  first step at which these terms count: before, the network learns to segment, and its ridges
                         say nothing
    temperature          width of the step between being a structure and not being one, in units of probability
    """

    extra_outputs = ("persistence_threshold",)
    learns_without_labels = False

    def __init__(
        self,
        channels_in,
        channels_out,
        *,
        channels=(32, 64, 128),
        dimensions=2,
        structure_weight=0.5,
        divergence_weight=0.01,
        structure_from_step=500,
        temperature=0.05,
    ):
        super().__init__()
        if min(structure_weight, divergence_weight) < 0 or temperature <= 0:
            raise InvalidInput(
                f"structure_weight {structure_weight} and divergence_weight {divergence_weight} must be at least 0,"
                f" temperature {temperature} above 0."
            )
        self.unet = UNet(channels_in, channels_out, channels=channels, dimensions=dimensions)
        self.prior = ThresholdHead(channels[-1])
        self.evidence = Evidence(channels_in + max(channels_out - 1, 1) + 1, dimensions)
        self.posterior = ThresholdHead(channels[-1] + WIDTH)
        self.structure_weight, self.divergence_weight = structure_weight, divergence_weight
        self.structure_from_step, self.temperature = structure_from_step, temperature
        self.dimensions, self.multiple, self.receptive_field = dimensions, self.unet.multiple, self.unet.receptive_field

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, channels_in, ...) to logits (N, channels_out, ...); the threshold does not change them."""
        return self.unet(image)

    def explain(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and (N, 2) float32 mean and deviation of the persistence threshold of each image (or tile: it looks
        at all of it).
        """
        levels = self.unet.encode(image)
        return self.unet.decode(levels), torch.stack(self.prior(_pooled(levels)), 1)

    def learn(
        self, image: torch.Tensor, target: torch.Tensor, *, ignore: int | None, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and, from `structure_from_step` on, the terms {structure, presence, divergence}; all are 0 for a
        sample of which nothing is labelled.
        """
        levels = self.unet.encode(image)
        logits = self.unet.decode(levels)
        if step < self.structure_from_step:
            return logits, {}
        return logits, self.terms(image, levels, logits, target, ignore)

    def terms(
        self,
        image: torch.Tensor,
        levels: Sequence[torch.Tensor],
        logits: torch.Tensor,
        target: torch.Tensor,
        ignore: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """{structure, presence, divergence}, (N,) each, from an image, the features of every level, and the answer."""
        known = labelled(target, ignore)
        member = foreground(one_hot(target, logits, ignore))
        pooled, seen = _pooled(levels), self.evidence(torch.cat([image, member.to(image), known.to(image)], 1))
        prior, posterior = self.prior(pooled), self.posterior(torch.cat([pooled, seen], 1))
        draw = torch.randn(len(image)).to(image.device)
        structure, presence = structure_losses(
            logits.float(), target, posterior, draw, temperature=self.temperature, ignore=ignore
        )
        apart = divergence(posterior, prior) * known.flatten(1).any(1)
        return {
            "structure": self.structure_weight * structure,
            "presence": self.structure_weight * presence,
            "divergence": self.divergence_weight * apart,
        }


def _pooled(levels):
    """(N, width) mean of the deepest features."""
    return levels[-1].flatten(2).mean(2)
