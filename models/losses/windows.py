"""Maxima and minima over windows of three pixels a side, forwards and backwards, without indices.

torch's pooling keeps the index of every maximum, which on a CPU costs ten times the maximum itself. Here every
neighbour is one comparison in place, and the way back asks each in turn whether it equals the answer: the pixel itself
first, and of equal values the first takes the whole gradient. The border has no neighbours outside.

Fresh memory costs more than the arithmetic on it, so loops hand in tensors to write to (`out`, `share`, `spare`).
"""

from collections.abc import Callable, Iterable

import torch


def _sides(image, axis):
    """The pixels that have a neighbour after them along an axis, and those that have one before them."""
    length = image.shape[axis]
    return image.narrow(axis, 0, length - 1), image.narrow(axis, 1, length - 1)


def extreme(
    image: torch.Tensor,
    axes: Iterable[int],
    pick: Callable[..., torch.Tensor] = torch.maximum,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The largest (or smallest, `pick`) of each pixel and its two neighbours along each of some axes; no gradient of
    its own.
    """
    answer = image.clone() if out is None else out.copy_(image)
    for axis in axes:
        for neighbour, here in zip(_sides(image, axis)[::-1], _sides(answer, axis), strict=True):
            pick(here, neighbour, out=here)
    return answer


def extreme_back(
    image: torch.Tensor,
    answer: torch.Tensor,
    gradient: torch.Tensor,
    axes: Iterable[int],
    *,
    out: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    """Gradient of `answer = extreme(image, axes)`, maxima and minima alike, in `out`;
    uses `gradient` and `share` up.
    """
    torch.eq(image, answer, out=share)  # a product with 0 or 1 is faster than a selection
    torch.mul(gradient, share, out=out)
    gradient.sub_(out)
    for axis in axes:
        parts = zip(
            _sides(image, axis)[::-1],
            _sides(out, axis)[::-1],
            _sides(answer, axis),
            _sides(gradient, axis),
            _sides(share, axis),
            strict=True,
        )
        for neighbour, to_neighbour, here, rest, part in parts:
            torch.eq(neighbour, here, out=part)
            to_neighbour.add_(part.mul_(rest))
            rest.sub_(part)
    return out


def dilation_stages(image: torch.Tensor, out: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """The image, and its maximum over each further axis; the last one is the maximum over the 3x3(x3) cube."""
    stages = [image]
    for axis in range(2, image.ndim):
        stages.append(extreme(stages[-1], [axis], out=None if out is None else out[axis - 2]))
    return stages


def dilate_back(
    stages: list[torch.Tensor], gradient: torch.Tensor, *, spare: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the last one of `dilation_stages`, and a tensor that is free again; uses all three others up."""
    for axis in range(len(stages), 1, -1):
        extreme_back(stages[axis - 2], stages[axis - 1], gradient, [axis], out=spare, share=share)
        gradient, spare = spare, gradient
    return gradient, spare


def erode(image: torch.Tensor) -> torch.Tensor:
    """Minimum over the cross of the pixel and its 4 (6) neighbours."""
    return extreme(image, range(2, image.ndim), torch.minimum)


def erode_back(
    image: torch.Tensor, eroded: torch.Tensor, gradient: torch.Tensor, *, out: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """Gradient of `eroded = erode(image)` in `out`; uses `gradient` and `share` up."""
    return extreme_back(image, eroded, gradient, range(2, image.ndim), out=out, share=share)


class _Dilation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image):
        ctx.save_for_backward(image)
        return dilation_stages(image)[-1]

    @staticmethod
    def backward(ctx, gradient):
        spare, share = torch.empty_like(gradient), torch.empty_like(gradient)
        return dilate_back(dilation_stages(ctx.saved_tensors[0]), gradient.clone(), spare=spare, share=share)[0]


def window_maximum(image: torch.Tensor, window: int) -> torch.Tensor:
    """Maximum over a cube of `window` (odd) pixels a side, differentiable."""
    for _ in range(window // 2):
        image = _Dilation.apply(image)
    return image
