"""Maxima and minima over windows of three pixels a side, forwards and backwards, without indices.

torch's pooling keeps the index of every maximum, which on a CPU costs ten times the maximum itself. Here a window is two comparisons
along each axis, and the way back compares again. Of two equal values the first takes the whole gradient. The border has no
neighbours outside.
"""

import torch


def three(image, axis, pick=torch.maximum):
    """The largest (or smallest, `pick`) of each pixel and its two neighbours along an axis; no gradient of its own."""
    length = image.shape[axis]
    if length == 1:
        return image
    pairs = pick(image.narrow(axis, 0, length - 1), image.narrow(axis, 1, length - 1))
    inner = pick(pairs.narrow(axis, 0, length - 2), pairs.narrow(axis, 1, length - 2))
    return torch.cat([pairs.narrow(axis, 0, 1), inner, pairs.narrow(axis, length - 2, 1)], axis)


def _first_wins(first, second):
    """1.0 where the first value is at least the second, in their dtype: a product is faster than a selection."""
    return torch.ge(first, second, out=torch.empty_like(first))


def three_back(image, gradient, axis):
    """Gradient of `three(image, axis)` with maxima; for minima pass the negated image."""
    length = image.shape[axis]
    if length == 1:
        return gradient
    before, after = image.narrow(axis, 0, length - 1), image.narrow(axis, 1, length - 1)
    pairs = torch.maximum(before, after)
    to_pairs = torch.zeros_like(pairs)
    inner = gradient.narrow(axis, 1, length - 2)
    share = inner * _first_wins(pairs.narrow(axis, 0, length - 2), pairs.narrow(axis, 1, length - 2))
    to_pairs.narrow(axis, 0, length - 2).add_(share)
    to_pairs.narrow(axis, 1, length - 2).add_(inner).sub_(share)
    to_pairs.narrow(axis, 0, 1).add_(gradient.narrow(axis, 0, 1))
    to_pairs.narrow(axis, length - 2, 1).add_(gradient.narrow(axis, length - 1, 1))
    share = to_pairs * _first_wins(before, after)
    answer = torch.zeros_like(image)
    answer.narrow(axis, 0, length - 1).add_(share)
    answer.narrow(axis, 1, length - 1).add_(to_pairs).sub_(share)
    return answer


def dilation_stages(image):
    """The image, and its maximum over each further axis; the last one is the maximum over the 3x3(x3) cube."""
    stages = [image]
    for axis in range(2, image.ndim):
        stages.append(three(stages[-1], axis))
    return stages


def dilate(image):
    """Maximum over the 3x3(x3) cube."""
    return dilation_stages(image)[-1]


def dilate_back(stages, gradient):
    """Gradient of `dilate` for the image whose `dilation_stages` are given."""
    for axis in range(len(stages), 1, -1):
        gradient = three_back(stages[axis - 2], gradient, axis)
    return gradient


def erode(image):
    """Minimum over the cross of the pixel and its 4 (6) neighbours."""
    answer = three(image, 2, torch.minimum)
    for axis in range(3, image.ndim):
        answer = torch.minimum(answer, three(image, axis, torch.minimum))
    return answer


def erode_back(image, gradient):
    """Gradient of `erode`."""
    image = -image
    lines = [three(image, axis) for axis in range(2, image.ndim)]
    answer = None
    for axis in range(image.ndim - 1, 1, -1):
        rest = lines[0]
        for line in lines[1 : axis - 2]:
            rest = torch.maximum(rest, line)
        share = gradient if axis == 2 else gradient * (1 - _first_wins(rest, lines[axis - 2]))
        part = three_back(image, share, axis)
        answer = part if answer is None else answer.add_(part)
        gradient = gradient - share
    return answer


class _Dilation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image):
        ctx.save_for_backward(image)
        return dilate(image)

    @staticmethod
    def backward(ctx, gradient):
        return dilate_back(dilation_stages(ctx.saved_tensors[0]), gradient)


def window_maximum(image, window):
    """Maximum over a cube of `window` (odd) pixels a side, differentiable."""
    for _ in range(window // 2):
        image = _Dilation.apply(image)
    return image
