"""ONNX export equals the trained network at every size, or is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from app.serving.trial import judge
from models import checkpoints
from models.errors import ExportRefused, InvalidInput
from models.events import Events
from models.export import ExportedNetwork, export, load_network, pad_to_multiple
from models.losses import LOSSES, RULE_LOSSES
from models.train import train


def trained(spec, data, out):
    with out.with_suffix(".events").open("w") as stream:
        train(spec, data, out, events=Events(stream))
    return out / "best.safetensors"


@pytest.fixture(scope="module")
def exported(world, tmp_path_factory):
    """Folder with the weights, the model and the manifest of a U-Net of three levels."""
    out = tmp_path_factory.mktemp("exported") / "run"
    spec = {
        "network": {"name": "unet", "dimensions": 2, "channels": [3, 4, 5]},
        "patch": [32, 32],
        "batch": 2,
        "steps": 5,
        "best_metric": "dice",
        "threads": 1,
        "variants": ["fp16", "int8"],
    }
    weights = trained(spec, world, out)
    export(weights, world, out)
    return out


def test_exported_model_passes_the_import_check(exported):
    content, manifest = (exported / "model.onnx").read_bytes(), json.loads((exported / "manifest.json").read_text())
    assert judge(content, manifest, "manifest.json").model_dump(exclude_unset=True) == manifest | {
        "weights_sha256": None,
        "verification": None,
        "variants": {},
    }


def test_requested_variants_are_made_or_refused_with_a_reason(exported):
    made = json.loads((exported / "manifest.json").read_text())["variants"]
    assert set(made) == {"fp16", "int8"} and made["fp16"]["refused"] is None
    for name, told in made.items():
        path = exported / f"model.{name}.onnx"
        assert path.exists() == (told["refused"] is None) and told["verification"]["items"] == 1
        assert told["onnx_sha256"] == (checkpoints.file_sha256(path) if path.exists() else None)


@pytest.mark.parametrize("batch, sides", [(1, (4, 4)), (1, (48, 56)), (3, (37, 61)), (2, (129, 5)), (5, (1, 1))])
def test_onnx_output_equals_torch_at_every_batch_and_size(exported, batch, sides):
    network, _ = load_network(exported / "best.safetensors")
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    image = np.random.default_rng(0).standard_normal((1, *sides)).astype(np.float32)
    padded = np.stack([pad_to_multiple(image, network.multiple)] * batch)
    (answer,) = session.run(["probability"], {"image": padded})
    with torch.no_grad():
        assert np.abs(answer - ExportedNetwork(network)(torch.from_numpy(padded))[0].numpy()).max() < 1e-5


def test_manifest_has_every_field_serving_needs(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["format"] == "toposerve-manifest/1" and manifest["classes"] == ["background", "vessel"]
    assert (manifest["activation"], manifest["multiple"], manifest["threshold"]) == ("sigmoid", 4, 0.5)
    assert manifest["scaling"] == {"kind": "image"} and manifest["spec"]["network"]["channels"] == [3, 4, 5]
    assert manifest["onnx_sha256"] == checkpoints.file_sha256(exported / "model.onnx")
    assert manifest["weights_sha256"] == checkpoints.file_sha256(exported / "best.safetensors")
    check = manifest["verification"]
    assert (
        check["items"] == 1
        and 0 <= check["max_difference"] <= check["tolerance"] == 1e-4
        and check["mask_disagreements"] == 0
    )


def test_exported_model_is_one_valid_file_with_named_axes(exported):
    model = onnx.load(str(exported / "model.onnx"), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        1,
        "h",
        "w",
    ]
    assert [o.version for o in model.opset_import if o.domain == ""] == [18]


def test_export_that_differs_too_much_is_refused_and_removed(exported, world, tmp_path):
    with pytest.raises(ExportRefused, match=r"differs from the trained one by .* is allowed"):
        export(exported / "best.safetensors", world, tmp_path, tolerance=-1.0)
    assert not list(tmp_path.iterdir())


def test_wrong_output_of_the_exported_model_is_detected(exported, world, tmp_path, monkeypatch):
    """The comparison looks at the file, not at the exporter's word: one changed weight in it is enough."""
    import models.export as module

    write = module.write_onnx

    def write_and_damage(network, channels, path):
        write(network, channels, path)
        model = onnx.load(str(path))
        weights = next(t for t in model.graph.initializer if len(t.dims) == 4)
        weights.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) + np.float32(0.01), weights.name)
        )
        onnx.save(model, str(path))

    monkeypatch.setattr(module, "write_onnx", write_and_damage)
    with pytest.raises(ExportRefused):
        export(exported / "best.safetensors", world, tmp_path)


def test_multiclass_export_ends_in_a_softmax(make_dataset, spec, tmp_path):
    data = make_dataset(classes=("background", "left", "right"), channels=3)
    weights = trained({**spec, "steps": 2, "scaling": "dataset"}, data, tmp_path / "run")
    facts = export(weights, data, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (
        manifest["activation"] == "softmax"
        and len(manifest["scaling"]["mean"]) == 3
        and facts["verification"]["mask_disagreements"] == 0
    )


def test_simple_point_network_trains_with_all_losses_and_is_exported(world, spec, tmp_path):
    terms = [{"name": name, "weight": 0.01} for name in LOSSES if name not in RULE_LOSSES]
    network = {"name": "unet_tcsp", "channels": [3, 4], "iterations": 1}
    weights = trained({**spec, "network": network, "loss": {"terms": terms}, "steps": 3}, world, tmp_path / "run")
    told = [json.loads(line) for line in (tmp_path / "run.events").read_text().splitlines()]
    assert set(next(event for event in told if event["event"] == "step")["terms"]) == set(LOSSES) - RULE_LOSSES
    check = export(weights, world, tmp_path / "out")["verification"]
    assert check["max_difference"] < 1e-4 and check["mask_disagreements"] == 0


def test_volume_export_has_three_dynamic_axes(make_dataset, spec, tmp_path):
    data = make_dataset(sides=(9, 18, 29), count=2)
    network = {"name": "unet", "dimensions": 3, "channels": [2, 3]}
    weights = trained({**spec, "network": network, "patch": [8, 16, 16], "steps": 1}, data, tmp_path / "run")
    assert export(weights, data, tmp_path / "out")["verification"]["max_difference"] < 1e-4


def test_invalid_weights_file_cannot_be_exported(exported, world, make_dataset, tmp_path):
    last = max((exported / "checkpoints").iterdir())
    with pytest.raises(InvalidInput, match="is a checkpoint"):
        export(last, world, tmp_path)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes((exported / "best.safetensors").read_bytes()[:-3])
    with pytest.raises(InvalidInput, match="damaged"):
        export(bad, world, tmp_path)
    with pytest.raises(InvalidInput, match="read 1 channels"):
        export(exported / "best.safetensors", make_dataset(channels=2), tmp_path)


WRITE = """
import sys, torch
from models.export import write_onnx
from models.networks import build
torch.manual_seed(0)
network = build({"name": "unet", "dimensions": 2, "channels": [2, 3]}, channels_in=1, channels_out=1).eval()
write_onnx(network, 1, sys.argv[1])
"""


def test_same_weights_are_exported_to_the_same_bytes_by_any_process(tmp_path):
    """Sets of texts have another order in each process."""
    written = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.onnx"
        subprocess.run(
            [sys.executable, "-c", WRITE, str(path)],
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
        )
        written.append(path.read_bytes())
    assert written[0] == written[1] and b"ExportedProgram" not in written[0]
