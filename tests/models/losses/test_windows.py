"""Window maxima and minima and their gradients compared with their definition."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from models.losses.windows import dilation_stages, erode, extreme, extreme_back, window_maximum

SIDES = [(7, 6), (1, 8), (5, 1, 4), (4, 5, 3)]


def steps(axes):
    """(0, ..., 0), then each axis' step forwards and backwards."""
    yield (0,) * axes
    for axis, sign in itertools.product(range(axes), (1, -1)):
        yield tuple(sign * (k == axis) for k in range(axes))


def slow_back(image, answer, gradient):
    """Of the pixel itself and its neighbours, the first that equals the answer takes the whole gradient."""
    total = np.zeros_like(gradient)
    for place in np.ndindex(image.shape):
        for step in steps(image.ndim):
            there = tuple(np.add(place, step))
            if all(0 <= k < side for k, side in zip(there, image.shape, strict=True)) and image[there] == answer[place]:
                total[there] += gradient[place]
                break
    return total


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("pick", [torch.maximum, torch.minimum])
def test_gradient_of_tied_values_goes_to_the_first(sides, pick):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 3, (1, 1, *sides), generator=generator).double()
    gradient = torch.randint(1, 9, image.shape, generator=generator).double()
    axes = range(2, image.ndim)
    answer = extreme(image, axes, pick)
    cross = ndimage.generate_binary_structure(len(sides), 1)
    filtered = (ndimage.maximum_filter if pick is torch.maximum else ndimage.minimum_filter)(
        image[0, 0].numpy(), footprint=cross, mode="nearest"
    )
    assert np.array_equal(answer[0, 0].numpy(), filtered)
    back = extreme_back(
        image, answer, gradient.clone(), axes, out=torch.empty_like(image), share=torch.empty_like(image)
    )
    assert np.array_equal(
        back[0, 0].numpy(), slow_back(*(tensor[0, 0].numpy() for tensor in (image, answer, gradient)))
    )


@pytest.mark.parametrize("sides", SIDES)
def test_dilation_and_erosion_equal_scipy(sides):
    image = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(1))
    cross = ndimage.generate_binary_structure(len(sides), 1)
    eroded, dilated = erode(image), dilation_stages(image)[-1]
    for place in np.ndindex(2, 3):
        one = image[place].numpy()
        assert np.array_equal(eroded[place].numpy(), ndimage.minimum_filter(one, footprint=cross, mode="nearest"))
        assert np.array_equal(dilated[place].numpy(), ndimage.maximum_filter(one, size=3, mode="nearest"))


@pytest.mark.parametrize("sides, window", [((7, 6), 3), ((9, 8), 5), ((4, 5, 3), 3), ((1, 8), 3)])
def test_window_maximum_has_the_gradient_of_torch_pooling(sides, window):
    image = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight = torch.rand(image.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pooling = torch.nn.functional.max_pool2d if len(sides) == 2 else torch.nn.functional.max_pool3d
    gradients = []
    for maximum in (window_maximum, lambda image, window: pooling(image, window, 1, window // 2)):
        leaf = image.clone().requires_grad_()
        (maximum(leaf, window) * weight).sum().backward()
        gradients.append(leaf.grad)
    assert torch.allclose(*gradients)
