"""Networks of MONAI: sizes, receptive fields, deep supervision, training and export."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from app.job_kinds import JobSpec
from app.schemas.jobs import TRAIN_EXAMPLE
from models.errors import InvalidInput
from models.export import export
from models.losses.overlap import cross_entropy, dice
from models.networks import build, learn
from tests.models.training_runs import run

NAMES = ("dynunet", "segresnet", "attention_unet")


def network(name, *, channels=(2, 4, 8), outputs=1, **options):
    torch.manual_seed(0)
    return build({"name": name, "channels": list(channels), **options}, channels_in=1, channels_out=outputs)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_output_has_the_size_of_the_input_in_training_and_after(name, dimensions):
    made = network(name, dimensions=dimensions, outputs=3)
    image = torch.zeros(2, 1, *[made.multiple * (2 + axis) for axis in range(dimensions)])
    assert made.multiple == 4
    assert made(image).shape == made.eval()(image).shape == (2, 3, *image.shape[2:])


@pytest.mark.parametrize("options", [{"name": "dynunet"}, {"name": "dynunet", "residual": True}, {"name": "segresnet"}])
def test_output_depends_on_the_receptive_field_only(options):
    made = network(**options).double().eval()
    field = made.receptive_field
    side = 2 * (field // 4 + 2) * 2
    image = torch.rand(1, 1, side, side, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(made(image)[0, 0, side // 2, side // 2], image)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten() - side // 2
    assert 3 < rows.abs().max().item() <= field // 2
    assert network("attention_unet").receptive_field is None  # it normalises over the tile


def test_deep_supervision_adds_the_losses_of_deeper_levels():
    made = network("dynunet", channels=(2, 4, 4, 4), deep_supervision=2)
    image, target = torch.randn(2, 1, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
    target[:, 4:8] = 1
    logits, own = learn(made, image, target)
    answers = made.get_submodule("body")(image).unbind(1)
    costs = [cross_entropy(each, target) + dice(each, target) for each in answers]
    assert len(answers) == 3 and torch.equal(logits, answers[0])
    assert torch.allclose(own["network/deep_supervision"], costs[1] / 2 + costs[2] / 4)
    own["network/deep_supervision"].sum().backward()
    assert learn(network("dynunet", deep_supervision=0), image, target)[1] == {}


@pytest.mark.parametrize(
    "options",
    [
        *({"name": name} for name in NAMES),
        {"name": "unet", "residual": True, "normalisation": "instance"},
        {"name": "unet", "normalisation": "group"},
    ],
)
def test_network_is_trained_exported_and_equal_in_onnx(world, spec, tmp_path, options):
    change = {"network": {"dimensions": 2, "channels": [2, 4, 8], **options}, "steps": 2, "validate_every": 2}
    events = run({**spec, **change}, world, tmp_path / "run")
    assert events[-1]["event"] == "done"
    facts = export(tmp_path / "run/best.safetensors", world, tmp_path / "out")
    assert facts["verification"]["max_difference"] < 1e-4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "segresnet", "channels": [8, 12]}, "double"),
        ({"name": "dynunet", "channels": [8, 16]}, "3 or more"),
        ({"name": "attention_unet", "channels": [8]}, "2 or more"),
    ],
)
def test_levels_that_a_borrowed_network_has_not_are_refused_by_job_and_trainer(options, words):
    with pytest.raises(InvalidInput, match=words):
        build(options, channels_in=1, channels_out=1)
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(JobSpec).validate_python(TRAIN_EXAMPLE | {"network": options})
