"""Losses that compare skeletons: they see a break in a thin tube as large as the tube, not as one pixel."""

import numpy as np
import torch
import torch.nn.functional as F

from models.losses.pixels import foreground_pair, per_class_sum
from topology.skeleton import skeletonize

MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}


def _pool_lines(image, axes):
    """Maximum over three neighbours along each of the given image axes at once; the border repeats nothing."""
    dimensions = image.ndim - 2
    kernel = [3 if axis in axes else 1 for axis in range(dimensions)]
    return MAX_POOL[dimensions](image, kernel, 1, [side // 2 for side in kernel])


def _erode(image):
    """Minimum over the cross of the pixel and its 4 (6) neighbours."""
    lines = [-_pool_lines(-image, {axis}) for axis in range(image.ndim - 2)]
    smallest = lines[0]
    for line in lines[1:]:
        smallest = torch.minimum(smallest, line)
    return smallest


def _dilate(image):
    """Maximum over the 3x3(x3) cube."""
    return _pool_lines(image, set(range(image.ndim - 2)))


def soft_skeleton(image, iterations):
    """What openings remove while the image is peeled: a soft skeleton in [0, 1], same shape.

    image       (N, K, ...) in [0, 1]
    iterations  peeling steps, at least the largest radius in pixels
    It does not keep Betti numbers: on a noisy map it falls into many pieces.
    Source: Shit et al., CVPR 2021, algorithm 1.
    """
    eroded = _erode(image)
    skeleton = F.relu(image - _dilate(eroded))
    for _ in range(iterations):
        image, eroded = eroded, _erode(eroded)
        removed = F.relu(image - _dilate(eroded))
        skeleton = skeleton + F.relu(removed - skeleton * removed)
    return skeleton


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
    """Exact topology-preserving skeleton of every mask: (N, K, ...) bool tensor to the same, on the same device."""
    arrays = masks.detach().cpu().numpy()
    thinned = np.stack([skeletonize(mask) for mask in arrays.reshape(-1, *arrays.shape[2:])])
    return torch.from_numpy(thinned.reshape(arrays.shape)).to(masks.device)


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
        tube = -_erode(-tube)
    tube = tube * member
    recall = (per_class_sum(prob * tube) + smooth) / (per_class_sum(tube) + smooth)
    return (1 - recall).mean(1)
