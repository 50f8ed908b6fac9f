"""The continuous simple-point layer (TCSP): a soft skeleton that lifts the logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.errors import InvalidInput
from models.losses.simple_points import csp_skeleton, csp_skeleton_loss
from models.networks.unet import UNet
from topology.soft_thinning import RULES

REACH = 7
"""How far the skeleton's protection reaches, in pixels: windows of 15 a side."""
MAXIMUM = {2: F.max_pool2d, 3: F.max_pool3d}


def class_skeletons(logits: torch.Tensor, iterations: int, rule: str = "exact") -> torch.Tensor:
    """CSP skeletons of the probabilities of (N, C, ...) logits, 2 or 3 axes; of a softmax, background is what no
    foreground class takes.
    """
    if logits.shape[1] == 1:
        return csp_skeleton(logits.sigmoid(), iterations, rule)
    foreground = csp_skeleton(logits.softmax(1)[:, 1:].contiguous(), iterations, rule)
    return torch.cat([(1 - foreground.sum(1, keepdim=True)).clamp(min=0), foreground], 1)


def largest_near(maps: torch.Tensor) -> torch.Tensor:
    """Largest value within REACH along every axis, (N, C, ...): one axis after the other, as the window is a box."""
    for axis in range(maps.ndim - 2):
        window = [2 * REACH + 1 if axis == other else 1 for other in range(maps.ndim - 2)]
        maps = MAXIMUM[maps.ndim - 2](maps, window, 1, [side // 2 for side in window])
    return maps


class SimplePointCorrection(nn.Module):
    """Corrected logits o + a^2 v maxpool(S(p(v))) from logits o and variational logits v, both (N, C, ...), 2 or 3
    axes.

    iterations  sweeps of the soft skeleton S
    rule        which pixels are simple: "exact", or in the plane "published"; see `topology.soft_thinning`
    a           learnt, 1 at the start
    Where v is positive near a skeleton the answer is lifted, where it is negative it is lowered: what is not simple is
    protected. Works behind any sigmoid or softmax network and leaves as ONNX. Source: the CSP paper, variational head.
    Of several classes the background's skeleton is what no other takes, but not below 0, where the published code does
    not stop.
    """

    def __init__(self, iterations=5, rule="exact"):
        super().__init__()
        self.iterations, self.rule = iterations, rule
        self.strength = nn.Parameter(torch.ones(()))

    def forward(self, logits: torch.Tensor, variational: torch.Tensor) -> torch.Tensor:
        skeleton = class_skeletons(variational.float(), self.iterations, self.rule)
        return logits + self.strength**2 * variational * largest_near(skeleton)


class SimplePointUNet(nn.Module):
    """A U-Net with two heads and the simple-point correction between them and the answer.

    channels         as for the U-Net
    dimensions       2 or 3
    iterations       1 to 20 sweeps of the soft skeleton
    rule             as of `SimplePointCorrection`
    skeleton_weight  of the CSP skeleton loss, with as many sweeps, on the variational logits themselves: the term that
                     the paper's recipe adds to teach them, where otherwise they learn through the answer only. With
                     several classes the published code takes the answer instead, this network does not. 0: no such term
    """

    learns_without_labels = False

    def __init__(
        self,
        channels_in,
        channels_out,
        *,
        channels=(32, 64, 128),
        dimensions=2,
        iterations=5,
        rule="exact",
        skeleton_weight=0.0,
    ):
        super().__init__()
        if not 1 <= iterations <= 20:
            raise InvalidInput(f"iterations is {iterations}; give 1 to 20.")
        if rule not in RULES or (rule, dimensions) == ("published", 3):
            raise InvalidInput(f"rule is {rule!r} in {dimensions} dimensions; give exact, or in 2 published.")
        if skeleton_weight < 0:
            raise InvalidInput(f"skeleton_weight is {skeleton_weight}; give at least 0.")
        self.unet = UNet(channels_in, 2 * channels_out, channels=channels, dimensions=dimensions)
        self.correction = SimplePointCorrection(iterations, rule)
        self.skeleton_weight = skeleton_weight
        self.dimensions, self.multiple = dimensions, max(self.unet.multiple, 2)

    @property
    def receptive_field(self) -> int:
        """As of the U-Net, plus what a skeleton pixel and its protection may depend on.

        A sweep looks as many pixels further as it has subfields, 4 or 8: along the first axis each changes the
        neighbours of the next.
        """
        return self.unet.receptive_field + 2 * (REACH + 2**self.dimensions * self.correction.iterations)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, channels_in, ...) to logits (N, channels_out, ...); sides must be multiples of `multiple`."""
        return self.correction(*self.unet(image).chunk(2, 1))

    def learn(
        self, image: torch.Tensor, target: torch.Tensor, *, ignore: int | None, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and where it has a weight the term {skeleton} of the variational logits."""
        logits, variational = self.unet(image).chunk(2, 1)
        answer = self.correction(logits, variational)
        if not self.skeleton_weight:
            return answer, {}
        options = {"iterations": self.correction.iterations, "rule": self.correction.rule}
        loss = csp_skeleton_loss(variational.float(), target, ignore=ignore, **options)
        return answer, {"skeleton": self.skeleton_weight * loss}
