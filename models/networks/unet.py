"""The U-Net, in the plane and in space.

Batch normalisation, on purpose: once trained it is a fixed factor per channel, so that a pixel's answer depends on its
receptive field only, not on the batch it travels in or on the tile it is cut into. Group and instance normalisation
look at the whole tile; a tile that lies in the black corner of a photograph then turns its noise into structure. They
learn no faster (`docs/training.md`), and are there for batches of one or two patches, whose statistics mean little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from models.errors import InvalidInput

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMALISATION: dict[str, dict[int, Callable[[int], nn.Module]]] = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: partial(nn.InstanceNorm2d, affine=True), 3: partial(nn.InstanceNorm3d, affine=True)},
    "group": dict.fromkeys((2, 3), lambda width: nn.GroupNorm(math.gcd(GROUPS, width), width)),
}
GROUPS = 8
"""Groups of features that are normalised together, or the largest divisor of it that divides them."""
POOLING = {2: F.max_pool2d, 3: F.max_pool3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def _double_convolution(dimensions, before, after, normalisation="batch"):
    """Two 3x3(x3) convolutions, each normalised and rectified; sides are kept."""
    layers = []
    for width in (before, after):
        layers += [
            CONVOLUTION[dimensions](width, after, 3, padding=1, bias=False),  # the normalisation has its own offset
            NORMALISATION[normalisation][dimensions](after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """The same two convolutions with what came in added before the last rectifier: He et al., CVPR 2016."""

    def __init__(self, dimensions: int, before: int, after: int, normalisation: str):
        super().__init__()
        self.layers = _double_convolution(dimensions, before, after, normalisation)[:-1]
        self.shortcut = nn.Sequential(
            CONVOLUTION[dimensions](before, after, 1, bias=False), NORMALISATION[normalisation][dimensions](after)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, before, ...) to (N, after, ...)."""
        return F.relu(self.layers(features) + self.shortcut(features))


class UNet(nn.Module):
    """Logits for every pixel from an encoder and a decoder with skip connections.

    channels       features at each level, finest first; two convolutions a level, sides halved between levels
    dimensions     2 or 3
    residual       blocks with a shortcut
    normalisation  "batch", "instance" or "group"; the last two look at the whole tile, see above
    Source: Ronneberger et al., MICCAI 2015; with padding (sides are kept) and batch normalisation.
    """

    def __init__(
        self, channels_in, channels_out, *, channels=(32, 64, 128), dimensions=2, residual=False, normalisation="batch"
    ):
        super().__init__()
        if normalisation not in NORMALISATION:
            raise InvalidInput(f"normalisation is {normalisation!r}; choose one of {', '.join(NORMALISATION)}.")
        if dimensions not in CONVOLUTION:
            raise InvalidInput(f"A U-Net has 2 or 3 dimensions, not {dimensions!r}.")
        if not channels or min(channels) < 1:
            raise InvalidInput(f"channels is {list(channels)}; give one positive width for each level, finest first.")
        self.dimensions = dimensions
        self.normalisation = normalisation
        self.multiple = 2 ** (len(channels) - 1)
        block = partial(ResidualBlock if residual else _double_convolution, dimensions, normalisation=normalisation)
        widths = [channels_in, *channels]
        self.encoder = nn.ModuleList(block(a, b) for a, b in zip(widths, channels, strict=False))
        pairs = list(zip(channels[-2::-1], channels[:0:-1], strict=True))
        self.upsampling = nn.ModuleList(TRANSPOSED[dimensions](deep, wide, 2, stride=2) for wide, deep in pairs)
        self.decoder = nn.ModuleList(block(2 * wide, wide) for wide, _ in pairs)
        self.head = CONVOLUTION[dimensions](channels[0], channels_out, 1)
        self.to(memory_format=CHANNELS_LAST[dimensions])  # a third less time on CPUs

    @property
    def receptive_field(self) -> int | None:
        """Side, in pixels, of the square around a pixel outside which the image cannot change its logit (an upper
        bound); None: the whole image.
        """
        if self.normalisation != "batch":
            return None
        reach = 0
        for level in range(len(self.encoder)):
            blocks = 1 if level == len(self.encoder) - 1 else 2  # the deepest level has no decoder
            reach += 2 * blocks * 2**level
        return 2 * (reach + self.multiple - 1) + 1  # a pooled or upsampled pixel is off by less than one cell

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(N, channels_in, ...) to the features of every level, finest first; sides must be multiples of `multiple`."""
        levels: list[torch.Tensor] = []
        for level, block in enumerate(self.encoder):
            levels.append(block(image if level == 0 else POOLING[self.dimensions](levels[-1], 2)))
        return levels

    def decode(self, levels: list[torch.Tensor]) -> torch.Tensor:
        """The features of every level to logits (N, channels_out, ...)."""
        *skips, features = levels
        for upsample, block, skip in zip(self.upsampling, self.decoder, reversed(skips), strict=True):
            features = block(torch.cat([skip, upsample(features)], 1))
        return self.head(features)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, channels_in, ...) to logits (N, channels_out, ...); sides must be multiples of `multiple`."""
        return self.decode(self.encode(image))
