"""Networks of MONAI, by name, as the others are trained, exported and served.

Batch normalisation where the architecture leaves the choice, so that an answer depends on a receptive field only; see
`models.networks.unet`. MONAI is loaded when one of them is built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models.errors import InvalidInput
from models.losses.overlap import cross_entropy, dice
from models.losses.pixels import labelled


class Borrowed(nn.Module):
    """A network of MONAI behind the interface of ours.

    dimensions  2 or 3
    channels    features at each level, finest first; sides are halved between levels
    """

    fewest_levels = 2

    def __init__(self, channels: Sequence[int], dimensions: int):
        super().__init__()
        if dimensions not in (2, 3):
            raise InvalidInput(f"A network has 2 or 3 dimensions, not {dimensions!r}.")
        if len(channels) < self.fewest_levels or min(channels) < 1:
            raise InvalidInput(
                f"channels is {list(channels)}; give {self.fewest_levels} or more positive widths, one for each level,"
                " finest first."
            )
        self.dimensions, self.levels, self.multiple = dimensions, len(channels), 2 ** (len(channels) - 1)

    @property
    def receptive_field(self) -> int | None:
        """Side, in pixels, of what an output pixel depends on (an upper bound); None: the whole image."""
        reach = sum(self.reach(level) * 2**level for level in range(self.levels))
        return 2 * (reach + self.multiple - 1) + 1

    def reach(self, level: int) -> int:
        """Pixels of a level by which its convolutions reach, encoder and decoder together."""
        return 6 if level < self.levels - 1 else 3

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, channels_in, ...) to logits (N, channels_out, ...); sides must be multiples of `multiple`."""
        return self.get_submodule("body")(image)


class DynUNet(Borrowed):
    """The U-Net of nnU-Net: strided convolutions, leaky rectifiers, and losses at several levels.

    deep_supervision  how many deeper levels answer, too, while it is trained, two fewer than there are levels at most:
                      `network/deep_supervision` is the sum of their cross-entropy and Dice, each level at half the
                      weight of the one above, as nnU-Net has it
    residual          blocks with a shortcut
    Source: Isensee et al., Nature Methods 2021, as MONAI's DynUNet.
    """

    fewest_levels = 3

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        channels: Sequence[int] = (32, 64, 128),
        dimensions: int = 2,
        deep_supervision: int = 1,
        residual: bool = False,
    ):
        super().__init__(channels, dimensions)
        from monai.networks.nets import DynUNet as Body

        self.deeper = min(deep_supervision, len(channels) - 2)
        self.body = Body(
            dimensions,
            channels_in,
            channels_out,
            kernel_size=[3] * len(channels),
            strides=[1] + [2] * (len(channels) - 1),
            upsample_kernel_size=[2] * (len(channels) - 1),
            filters=list(channels),
            norm_name="batch",
            deep_supervision=self.deeper > 0,
            deep_supr_num=max(1, self.deeper),
            res_block=residual,
        )
        # It registers its blocks a second time, in the order in which they are called; a weights file names each once.
        self.body.__dict__["skip_layers"] = self.body._modules.pop("skip_layers")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, channels_in, ...) to logits (N, channels_out, ...); sides must be multiples of `multiple`."""
        answers = self.body(image)
        return answers[:, 0] if self.training and self.deeper else answers

    def learn(
        self, image: torch.Tensor, target: torch.Tensor, *, ignore: int | None = None, step: int = 1
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The logits of a training step, and the losses of the deeper levels at full size: (N,)."""
        if not self.deeper:
            return self.body(image), {}
        answers = self.body(image).unbind(1)
        seen = labelled(target, ignore).flatten(1).any(1)
        costs = [cross_entropy(each, target, ignore=ignore) + dice(each, target, ignore=ignore) for each in answers[1:]]
        total = sum(0.5 ** (depth + 1) * cost for depth, cost in enumerate(costs))
        return answers[0], {"deep_supervision": torch.where(seen, total, 0)}


class SegResNet(Borrowed):
    """A residual encoder with a light decoder.

    Source: Myronenko, BrainLes 2018, as MONAI's SegResNet, without its autoencoder; widths double from level to level.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, channels: Sequence[int] = (32, 64, 128), dimensions: int = 2
    ):
        super().__init__(channels, dimensions)
        doubled = [channels[0] * 2**level for level in range(len(channels))]
        if list(channels) != doubled:
            raise InvalidInput(f"channels is {list(channels)}; in segresnet widths double: {doubled}.")
        from monai.networks.nets import SegResNet as Body

        self.body = Body(
            dimensions,
            init_filters=channels[0],
            in_channels=channels_in,
            out_channels=channels_out,
            norm="BATCH",
            blocks_down=(1, *[2] * (len(channels) - 1)),
            blocks_up=(1,) * (len(channels) - 1),
            upsample_mode="deconv",
        )

    def reach(self, level: int) -> int:
        """Pixels of a level by which its convolutions reach, encoder and decoder together."""
        return 8


class AttentionUnet(Borrowed):
    """A U-Net whose skip connections pass through gates that the deeper level opens.

    It normalises over the tile in its decoder, so its receptive field is the whole image, and seams of tiles may show.
    Source: Oktay et al., MIDL 2018, as MONAI's AttentionUnet.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, channels: Sequence[int] = (32, 64, 128), dimensions: int = 2
    ):
        super().__init__(channels, dimensions)
        from monai.networks.nets import AttentionUnet as Body

        self.body = Body(dimensions, channels_in, channels_out, list(channels), [2] * (len(channels) - 1))

    @property
    def receptive_field(self) -> int | None:
        """None: the whole image."""
        return None
