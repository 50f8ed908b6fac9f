"""The networks: shapes, and how far a pixel sees."""

from pathlib import Path

import pytest
import torch

from models.errors import InvalidInput
from models.networks import build
from models.networks.simple_points import SimplePointCorrection


@pytest.mark.parametrize("dimensions, channels", [(2, [4]), (2, [4, 6]), (2, [3, 4, 5, 6]), (3, [3, 4])])
def test_sides_are_kept(dimensions, channels):
    network = build({"name": "unet", "dimensions": dimensions, "channels": channels}, channels_in=2, channels_out=3)
    sides = [network.multiple * (3 + axis) for axis in range(dimensions)]
    assert network.multiple == 2 ** (len(channels) - 1)
    assert network(torch.zeros(2, 2, *sides)).shape == (2, 3, *sides)


@pytest.mark.parametrize("channels", [[3], [3, 3], [3, 3, 3]])
def test_a_pixel_sees_its_receptive_field_and_nothing_beyond(channels):
    torch.manual_seed(0)
    network = build({"channels": channels}, channels_in=1, channels_out=1).double().eval()
    for parameter in network.parameters():
        parameter.data = parameter.data.abs() + 0.1  # nothing cancels and nothing is rectified away
    side = 4 * network.multiple * ((network.receptive_field // network.multiple // 4) + 1)
    reach = 0
    for offset in range(network.multiple):
        image = torch.rand(1, 1, 2 * side, 2 * side, dtype=torch.double, requires_grad=True)
        network(image)[0, 0, side + offset, side + offset].backward()
        rows = image.grad[0, 0].abs().sum(1).nonzero().flatten() - side - offset
        reach = max(reach, rows.abs().max().item())
    assert network.receptive_field // 2 - network.multiple < reach <= network.receptive_field // 2


def test_once_trained_a_sample_does_not_depend_on_the_batch_it_travels_in():
    network = build({"channels": [4, 6]}, channels_in=1, channels_out=1).eval()
    batch = torch.randn(3, 1, 16, 16)
    assert torch.allclose(network(batch)[1:2], network(batch[1:2]), atol=1e-6)


@pytest.mark.parametrize("network", [{"channels": []}, {"channels": [0, 2]}, {"dimensions": 4}])
def test_an_impossible_network_is_refused(network):
    with pytest.raises(InvalidInput):
        build(network, channels_in=1, channels_out=1)


def test_the_simple_point_layer_lifts_logits_near_the_skeleton_and_only_there():
    correction = SimplePointCorrection(iterations=3)
    variational = torch.full((1, 1, 40, 40), -9.0)
    variational[..., 20, 4:20] = 9.0
    lifted = correction(torch.zeros(1, 1, 40, 40), variational)
    assert torch.allclose(lifted[..., 20, 4:20], torch.tensor(9.0), atol=0.01)
    assert lifted[..., :12, :].abs().max() < 0.01  # more than seven pixels away nothing is protected
    assert lifted[..., 15, 10] < -8.9  # beside the line, where the variational map says no, the answer is lowered


@pytest.mark.parametrize("classes", [1, 3])
def test_the_simple_point_network_learns_through_its_layer(classes):
    network = build({"name": "unet_tcsp", "channels": [4, 6], "iterations": 2}, channels_in=1, channels_out=classes)
    logits = network(torch.randn(2, 1, 16, 18))
    assert logits.shape == (2, classes, 16, 18)
    logits.square().sum().backward()
    assert network.correction.strength.grad.abs() > 0 and all(p.grad is not None for p in network.parameters())


def test_the_example_of_the_landscape_layer_runs_and_teaches_the_map():
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    (example,) = [block.split("```")[0] for block in page.split("```python\n")[1:] if "LandscapeLayer" in block]
    names = {}
    torch.manual_seed(0)
    exec(example, names)
    taught = names["prob"].grad.flatten(1).count_nonzero(1)
    assert (taught > 10).all() and (taught < names["prob"][0].numel()).all() and names["layer"].linear.weight.grad.any()
