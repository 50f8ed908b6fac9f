"""Network output shapes, receptive fields and the simple-point layer."""

import pytest
import torch

from models.errors import InvalidInput
from models.losses.simple_points import csp_skeleton
from models.networks import build
from models.networks.simple_points import SimplePointCorrection


@pytest.mark.parametrize("dimensions, channels", [(2, [4]), (2, [4, 6]), (2, [3, 4, 5, 6]), (3, [3, 4])])
def test_output_has_the_size_of_the_input(dimensions, channels):
    network = build({"name": "unet", "dimensions": dimensions, "channels": channels}, channels_in=2, channels_out=3)
    sides = [network.multiple * (3 + axis) for axis in range(dimensions)]
    assert network.multiple == 2 ** (len(channels) - 1)
    assert network(torch.zeros(2, 2, *sides)).shape == (2, 3, *sides)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("channels", [[3], [3, 3], [3, 3, 3]])
def test_output_depends_only_on_the_receptive_field(channels, residual):
    torch.manual_seed(0)
    network = build({"channels": channels, "residual": residual}, channels_in=1, channels_out=1).double().eval()
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


def test_inference_does_not_depend_on_the_batch():
    network = build({"channels": [4, 6]}, channels_in=1, channels_out=1).eval()
    batch = torch.randn(3, 1, 16, 16)
    assert torch.allclose(network(batch)[1:2], network(batch[1:2]), atol=1e-6)


OPTIONS = [
    {"residual": residual, "normalisation": normalisation}
    for residual in (False, True)
    for normalisation in ("batch", "instance", "group")
]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_the_unet_change_its_answer_and_keep_its_sides(options, dimensions):
    def answer(**changes):
        torch.manual_seed(0)
        made = build({"channels": [4, 6], "dimensions": dimensions, **changes}, channels_in=1, channels_out=2)
        for parameter in made.parameters():
            parameter.data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
        return made(image)

    image = torch.randn(2, 1, *[8] * dimensions, generator=torch.Generator().manual_seed(0))
    assert answer(**options).shape == (2, 2, *[8] * dimensions)
    others = [answer(**each) for each in OPTIONS if each != options]
    assert all((answer(**options) - other).abs().max() > 1e-3 for other in others)
    assert torch.equal(answer(**options), answer(**options))


def test_only_batch_normalisation_has_a_receptive_field():
    made = [build({"channels": [4, 6], **each}, channels_in=1, channels_out=1) for each in OPTIONS]
    assert [each.receptive_field is None for each in made] == [False, True, True] * 2
    assert list(made[0].state_dict()) == list(build({"channels": [4, 6]}, channels_in=1, channels_out=1).state_dict())
    with pytest.raises(InvalidInput, match="choose one of batch, instance, group"):
        build({"normalisation": "layer"}, channels_in=1, channels_out=1)


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


def test_the_simple_point_layer_protects_a_line_in_space():
    variational = torch.full((1, 1, 20, 21, 22), -9.0)
    variational[..., 10, 10, 2:20] = 9.0
    lifted = SimplePointCorrection(iterations=2)(torch.zeros_like(variational), variational)
    assert torch.allclose(lifted[..., 10, 10, 2:20], torch.tensor(9.0), atol=0.01)
    assert lifted[..., :2, :, :].abs().max() < 0.01 and lifted[..., 8, 10, 10] < -8.9


@pytest.mark.parametrize("sides, iterations", [((48, 8), 3), ((8, 40), 2), ((44, 4, 4), 2), ((4, 44, 4), 1)])
def test_sweep_receptive_field_equals_its_subfields(sides, iterations):
    """White noise, where one changed value goes as far as anything can; the first axis is the worst one."""
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.7 * torch.rand(200 if len(sides) == 2 else 60, 1, *sides, generator=generator, dtype=torch.float64)
    other, axis = image.clone(), max(range(len(sides)), key=sides.__getitem__)
    middle = tuple(side // 2 for side in sides)
    other[(..., *middle)] = 1 - other[(..., *middle)]
    changed = (csp_skeleton(image, iterations) != csp_skeleton(other, iterations)).nonzero()[:, 2 + axis] - middle[axis]
    assert 1 < changed.abs().max() <= 2 ** len(sides) * iterations


@pytest.mark.parametrize("classes, sides", [(1, (16, 18)), (3, (16, 18)), (1, (8, 10, 12)), (3, (8, 10, 12))])
def test_the_simple_point_network_learns_through_its_layer(classes, sides):
    network = build(
        {"name": "unet_tcsp", "channels": [4, 6], "iterations": 2, "dimensions": len(sides)},
        channels_in=1,
        channels_out=classes,
    )
    logits = network(torch.randn(2, 1, *sides))
    assert logits.shape == (2, classes, *sides)
    logits.square().sum().backward()
    assert network.correction.strength.grad.abs() > 0 and all(p.grad is not None for p in network.parameters())
