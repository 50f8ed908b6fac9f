"""Losses that compare skeletons, such as clDice.

To them a break in a thin tube is as large as the tube, not one pixel.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from models.losses.pixels import checked, foreground_pair, per_class_sum
from models.losses.thinning import thin
from models.losses.windows import dilate_back, dilation_stages, erode, erode_back
from topology.parallel import side_by_side
from topology.skeleton import skeletonize, zhang_suen


class _SoftSkeleton(torch.autograd.Function):
    """1 - product over peelings of (1 - what the opening removes); keeps the peeled images and works the rest out
    again.
    """

    @staticmethod
    def forward(ctx, image, iterations):
        teaches, kept = ctx.needs_input_grad[0], []
        rest, room, removed = torch.ones_like(image), _room(image), torch.empty_like(image)
        for _ in range(iterations + 1):
            if teaches:
                kept += [image, rest.clone()]
            peeled = erode(image)
            rest.mul_(_kept_by_opening(image, dilation_stages(peeled, room)[-1], removed))
            image = peeled
            if not teaches and not image.any():
                break  # all of a mask is peeled early; what follows removes nothing
        if teaches:
            ctx.save_for_backward(*kept, image)
        return rest.neg_().add_(1)

    @staticmethod
    def backward(ctx, gradient):
        images, rests = ctx.saved_tensors[::2], ctx.saved_tensors[1::2]
        after, deeper = (
            gradient.clone(),
            torch.zeros_like(gradient),
        )  # d/d(rest) with its sign turned; d/d(image one peeling deeper)
        room, (to_removed, work, spare, share) = _room(gradient), (torch.empty_like(gradient) for _ in range(4))
        for level in reversed(range(len(rests))):
            stages = dilation_stages(images[level + 1], room)
            torch.mul(after, rests[level], out=to_removed).mul_(torch.gt(images[level], stages[-1], out=share))
            after.mul_(_kept_by_opening(images[level], stages[-1], work))
            to_peeled, spare = dilate_back(stages, work.copy_(to_removed), spare=spare, share=share)
            deeper.sub_(to_peeled)
            work = erode_back(images[level], images[level + 1], deeper, out=to_peeled, share=share).add_(to_removed)
            deeper, work = work, deeper
        return deeper, None


def _room(image):
    """Tensors for `dilation_stages` to write to."""
    return [torch.empty_like(image) for _ in range(2, image.ndim)]


def _kept_by_opening(image, opened, out):
    """1 - what the opening takes away, in [0, 1]."""
    return torch.sub(image, opened, out=out).relu_().neg_().add_(1)


def soft_skeleton(image: torch.Tensor, iterations: int) -> torch.Tensor:
    """What openings remove while the image is peeled: a soft skeleton in [0, 1], same shape.

    image       (N, K, ...) in [0, 1]
    iterations  peeling steps, at least the largest radius in pixels
    It does not keep Betti numbers: on a noisy map it falls into many pieces. Source: Shit et al., CVPR 2021, algorithm
    1, in closed form: their s + relu(d - s d) keeps s in [0, 1], so 1 - s is a product.
    """
    return _SoftSkeleton.apply(image, iterations)


@checked
def soft_cldice(
    logits: torch.Tensor, target: torch.Tensor, *, iterations: int = 10, smooth: float = 1.0, ignore: int | None = None
) -> torch.Tensor:
    """1 - harmonic mean of how much of each soft skeleton lies in the other mask; mean over foreground classes, (N,).

    iterations  1 to 50 peeling steps, at least the largest radius in pixels
    smooth      > 0; added to numerator and denominator of both ratios
    Unlabelled pixels are background in both maps. Mix with `dice`, which sees what skeletons do not: width.
    Source: Shit et al., CVPR 2021, per sample and class where the published code sums over the whole batch.
    """
    prob, member, known = foreground_pair(logits, target, ignore)
    prob = torch.where(known, prob, 0)
    member = member.to(prob.dtype)
    skeleton, true_skeleton = soft_skeleton(prob, iterations), soft_skeleton(member, iterations)
    precision = (per_class_sum(skeleton * member) + smooth) / (per_class_sum(skeleton) + smooth)
    sensitivity = (per_class_sum(true_skeleton * prob) + smooth) / (per_class_sum(true_skeleton) + smooth)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean(1)


def skeletons(masks: torch.Tensor, thinning: Literal["zhang_suen", "exact"] = "exact") -> torch.Tensor:
    """Skeleton of every mask: (N, K, ...) bool tensor to the same, on the same device.

    thinning  "exact": with the topology of the mask; "zhang_suen": Zhang and Suen's in the plane, exact in space
    The compiled kernel on a CPU, whole-array steps anywhere else, so that no mask leaves its device; the skeletons are
    equal.
    """
    if masks.device.type != "cpu":
        return thin(masks, zhang_suen=thinning == "zhang_suen")
    arrays = masks.numpy()
    thinner = zhang_suen if thinning == "zhang_suen" and masks.ndim == 4 else skeletonize
    thinned = np.stack(side_by_side(thinner, arrays.reshape(-1, *arrays.shape[2:])))
    return torch.from_numpy(thinned.reshape(arrays.shape))


@checked
def skeleton_recall(
    logits: torch.Tensor, target: torch.Tensor, *, radius: int = 2, smooth: float = 1e-05, ignore: int | None = None
) -> torch.Tensor:
    """1 - part of a tube around the target's skeleton that is predicted; mean over foreground classes, (N,), each in
    [0, 1].

    radius  0 to 20: growth of the skeleton in pixels, cut to the target, so that a shift by a pixel costs little
    smooth  > 0; added to numerator and denominator, so that a class without skeleton costs nothing
    Rewards recall only: use it beside an overlap loss. Source: Kirchhoff et al., ECCV 2024; skeletons per class (theirs
    is of all classes merged, which loses the line between two that touch) and by our thinning, which keeps volumes of
    even width.
    """
    prob, member, _ = foreground_pair(logits, target, ignore)
    tube = skeletons(member).to(prob.dtype)
    for _ in range(radius):
        tube = -erode(-tube)
    tube = tube * member
    recall = (per_class_sum(prob * tube) + smooth) / (per_class_sum(tube) + smooth)
    return (1 - recall).mean(1)
