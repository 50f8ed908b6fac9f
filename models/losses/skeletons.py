"""Losses that compare skeletons: they see a break in a thin tube as large as the tube, not as one pixel."""

import numpy as np
import torch

from models.losses.pixels import foreground_pair, per_class_sum
from models.losses.thinning import thin
from models.losses.windows import dilate, dilate_back, dilation_stages, erode, erode_back
from topology.skeleton import skeletonize


class _SoftSkeleton(torch.autograd.Function):
    """1 - product over peelings of (1 - what the opening removes); keeps the peeled images and works the rest out again."""

    @staticmethod
    def forward(ctx, image, iterations):
        images = [image]
        rest = torch.ones_like(image)
        rests = []
        for _ in range(iterations + 1):
            images.append(erode(images[-1]))
            rests.append(rest)
            rest = rest * (1 - _removed(images[-2], dilate(images[-1])))
            if not images[-1].any():
                break  # all is peeled, as happens early with a mask; what follows removes nothing
        ctx.save_for_backward(*images, *rests)
        return 1 - rest

    @staticmethod
    def backward(ctx, gradient):
        levels = (len(ctx.saved_tensors) - 1) // 2
        images, rests = ctx.saved_tensors[: levels + 1], ctx.saved_tensors[levels + 1 :]
        after, deeper = gradient, torch.zeros_like(gradient)  # d/d(rest) with its sign turned; d/d(image one peeling deeper)
        for level in reversed(range(levels)):
            stages = dilation_stages(images[level + 1])
            removed = _removed(images[level], stages[-1])
            to_removed = after * rests[level] * removed.sign()
            after = after * (1 - removed)
            deeper = deeper - dilate_back(stages, to_removed)
            deeper = erode_back(images[level], deeper).add_(to_removed)
        return deeper, None


def _removed(image, opened):
    """What the opening takes away, >= 0."""
    return torch.relu(image - opened)


def soft_skeleton(image, iterations):
    """What openings remove while the image is peeled: a soft skeleton in [0, 1], same shape.

    image       (N, K, ...) in [0, 1]
    iterations  peeling steps, at least the largest radius in pixels
    It does not keep Betti numbers: on a noisy map it falls into many pieces.
    Source: Shit et al., CVPR 2021, algorithm 1, in closed form: their s + relu(d - s d) keeps s in [0, 1], so 1 - s is a product.
    """
    return _SoftSkeleton.apply(image, iterations)


def soft_cldice(logits, target, *, iterations=10, smooth=1.0, ignore=None):
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


def skeletons(masks):
    """Exact topology-preserving skeleton of every mask: (N, K, ...) bool tensor to the same, on the same device.

    The compiled kernel on a CPU, whole-array steps anywhere else, so that no mask leaves its device; the skeletons are equal.
    """
    if masks.device.type != "cpu":
        return thin(masks)
    arrays = masks.numpy()
    thinned = np.stack([skeletonize(mask) for mask in arrays.reshape(-1, *arrays.shape[2:])])
    return torch.from_numpy(thinned.reshape(arrays.shape))


def skeleton_recall(logits, target, *, radius=2, smooth=1e-5, ignore=None):
    """1 - part of a tube around the target's skeleton that is predicted; mean over foreground classes, (N,), each in [0, 1].

    radius  0 to 20: growth of the skeleton in pixels, cut to the target, so that a shift by a pixel costs little
    smooth  > 0; added to numerator and denominator, so that a class without skeleton costs nothing
    Rewards recall only: use it beside an overlap loss.
    Source: Kirchhoff et al., ECCV 2024; skeletons per class (theirs is of all classes merged, which loses the line between two that touch)
    and by our thinning, which keeps volumes of even width.
    """
    prob, member, _ = foreground_pair(logits, target, ignore)
    tube = skeletons(member).to(prob.dtype)
    for _ in range(radius):
        tube = -erode(-tube)
    tube = tube * member
    recall = (per_class_sum(prob * tube) + smooth) / (per_class_sum(tube) + smooth)
    return (1 - recall).mean(1)
