"""Exports a trained network to ONNX, with a manifest for serving.

The model is compared with torch on the run's own validation images before it gets its name; above the tolerance it is
refused.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import checkpoints, variants
from models.data import common_spacing, read_dataset
from models.errors import ExportRefused, InvalidInput
from models.evaluate import TILE, activate, masks
from models.networks import Network, build, explain, extra_outputs
from models.scaling import scale

FORMAT = "toposerve-manifest/1"
OPSET = 18
COMPARED = 8
"""Images that are compared with torch; more would tell no more."""
OVERLAP = 0.25


class ExportedNetwork(nn.Module):
    """The network with its activation: scaled image in, probability and the network's extra outputs out."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, *extra = explain(self.network, image)
        return activate(logits), *extra


def load_network(path: str | Path) -> tuple[Network, dict[str, Any]]:
    """(network in evaluation mode, facts of the run) from a weights file."""
    tensors, facts = checkpoints.load(path)
    if facts.get("kind") != "weights":
        raise InvalidInput(f"{path} is a checkpoint; export needs a weights file, such as best.safetensors of the run.")
    outputs = 1 if len(facts["classes"]) == 2 else len(facts["classes"])
    network = build(facts["spec"]["network"], channels_in=facts["channels"], channels_out=outputs)
    network.load_state_dict(checkpoints.without_prefix("model", tensors))
    return network.eval(), facts


def write_onnx(network: Network, channels: int, path: Path) -> None:
    """Write the network with dynamic batch and sides; the file passes the checker of ONNX."""
    import onnx

    sides = [4 * network.multiple + network.multiple * axis for axis in range(network.dimensions)]
    names = "dhw"[-network.dimensions :]
    dynamic = {0: torch.export.Dim("batch", min=1, max=4096)}
    for axis, name in enumerate(names, start=2):
        cells = torch.export.Dim(f"{name}_cells", min=1, max=2**16)
        dynamic[axis] = cells if network.multiple == 1 else network.multiple * cells
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter warns about its own internals, which a caller can do nothing about
        program = torch.onnx.export(
            ExportedNetwork(network),
            (torch.zeros(2, channels, *sides),),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=["image"],
            output_names=["probability", *extra_outputs(network)],
            dynamic_shapes=(dynamic,),
        )
        assert program is not None  # None is what the exporter before dynamo returns
        program.save(str(path), external_data=False)
    _name_axes(path, names)
    onnx.checker.check_model(str(path), full_check=True)


def _name_axes(path, names):
    """Give the dynamic axes of input and output the names a reader expects, in place of the exporter's expressions."""
    import onnx

    model = onnx.load(str(path))
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape.dim
        for axis, name in {0: "batch", **dict(enumerate(names, start=2))}.items():
            if axis < len(shape):  # an extra output has no sides
                shape[axis].dim_param = name
    for messages in (model, model.graph):  # what the exporter says of its own run has an order that changes
        kept = [each for each in messages.metadata_props if not each.key.startswith("pkg.torch.export.")]
        del messages.metadata_props[:]
        messages.metadata_props.extend(kept)
    del model.graph.value_info[:]  # inferred shapes that still speak of the old names
    onnx.save(model, str(path))


def pad_to_multiple(image: np.ndarray, multiple: int) -> np.ndarray:
    """(C, ...) filled up to a multiple by repeating the last pixel of each axis, as serving does."""
    return np.pad(image, [(0, 0)] + [(0, -side % multiple) for side in image.shape[1:]], mode="edge")


def compare(network: Network, path: Path, images: Sequence[np.ndarray], threshold: float) -> dict[str, int | float]:
    """How far the ONNX model is from torch on these scaled images (C, ...): {"items", "max_difference",
    "mask_disagreements"}.

    The difference is the largest of any output, the network's extra ones included.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answer, largest, disagreements = ExportedNetwork(network), 0.0, 0
    for image in images:
        batch = pad_to_multiple(image, network.multiple)[None]
        with torch.no_grad():
            ours = [output.numpy()[0] for output in answer(torch.from_numpy(batch))]
        theirs = [output[0] for output in session.run(None, {"image": batch})]
        largest = max(largest, *(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)))
        disagreements += int((masks(ours[0], threshold) != masks(theirs[0], threshold)).any(0).sum())
    return {"items": len(images), "max_difference": largest, "mask_disagreements": disagreements}


def _chosen_items(dataset, facts):
    """Validation items of the run; when the folder has none of them, its first items."""
    chosen = [item for item in dataset.items if item.id in set(facts["val_items"])]
    return (chosen or list(dataset.items))[:COMPARED]


def export(weights: str | Path, data: str | Path, out: str | Path, *, tolerance: float = 1e-4) -> dict[str, Any]:
    """Write model.onnx and manifest.json into `out`; returns {"onnx", "manifest", "onnx_sha256", "verification"}.

    weights    best.safetensors of a run
    data       the run's dataset folder
    tolerance  largest allowed difference of a probability between ONNX Runtime and torch
    Refuses (ExportRefused) a model that differs by more; then nothing is left under either name.
    """
    network, facts = load_network(weights)
    dataset, out = read_dataset(data), Path(out)
    if (dataset.channels, dataset.dimensions) != (facts["channels"], facts["dimensions"]):
        raise InvalidInput(
            f"The weights read {facts['channels']} channels in {facts['dimensions']} dimensions, the data have"
            f" {dataset.channels} in {dataset.dimensions}. Export with the data of the run."
        )
    out.mkdir(parents=True, exist_ok=True)
    draft = out / ".model.onnx"
    try:
        write_onnx(network, facts["channels"], draft)
        images = [scale(item.image(), facts["scaling"]) for item in _chosen_items(dataset, facts)]
        verification = {**compare(network, draft, images, facts["spec"]["threshold"]), "tolerance": tolerance}
        if not verification["max_difference"] <= tolerance:
            raise ExportRefused(
                f"The exported model differs from the trained one by {verification['max_difference']:.3g} on"
                f" {len(images)} validation images; {tolerance:.3g} is allowed. It was not written; report the"
                " specification of this run."
            )
        sha256 = checkpoints.file_sha256(draft)
        draft.replace(out / "model.onnx")
    finally:
        draft.unlink(missing_ok=True)
    manifest = _manifest(network, facts, sha256, checkpoints.file_sha256(weights), verification)
    manifest |= {"orientation": dataset.orientation, "spacing_mm": common_spacing(dataset.items)}
    manifest["variants"] = _variants(network, facts, dataset, images, out)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return {"onnx": "model.onnx", "manifest": "manifest.json", "onnx_sha256": sha256, "verification": verification}


def _variants(network, facts, dataset, images, out):
    """The variants that the run asked for, made and judged on the images that the export was; calibrated on others
    where there are any.
    """
    names = facts["spec"].get("variants") or []
    if not names:
        return {}
    others = [item for item in dataset.items if item.id not in set(facts["val_items"])] or list(dataset.items)
    calibration = (
        scale(item.image(), facts["scaling"])
        for item in others[:: max(1, len(others) // variants.CALIBRATED)][: variants.CALIBRATED]
    )
    padded, calibrating = (
        [pad_to_multiple(image, network.multiple)[None] for image in each] for each in (images, calibration)
    )
    return variants.make(names, out / "model.onnx", out, padded, calibrating, facts["spec"]["threshold"])


def _manifest(network, facts, onnx_sha256, weights_sha256, verification):
    import onnx

    return {
        "format": FORMAT,
        "task": "segmentation",
        "dimensions": facts["dimensions"],
        "channels": facts["channels"],
        "classes": facts["classes"],
        "activation": "sigmoid" if len(facts["classes"]) == 2 else "softmax",
        "threshold": facts["spec"]["threshold"],
        "scaling": facts["scaling"],
        "multiple": network.multiple,
        "padding": "edge",
        "tile": [TILE[facts["dimensions"]]] * facts["dimensions"],
        "overlap": OVERLAP,
        "receptive_field": network.receptive_field,
        "opset": OPSET,
        "input": "image",
        "output": "probability",
        "extra_outputs": extra_outputs(network),
        "onnx_sha256": onnx_sha256,
        "weights_sha256": weights_sha256,
        "verification": verification,
        "spec": facts["spec"],
        "step": facts["step"],
        "metrics": facts["metrics"],
        "software": {"torch": torch.__version__, "onnx": onnx.__version__},
    }
