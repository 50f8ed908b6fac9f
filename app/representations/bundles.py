"""A model version as a MONAI bundle: ONNX, metadata, and a configuration that runs it.

Source: MONAI bundle specification (docs/source/mb_specification.rst). The network stays ONNX: `configs/inference.json`
runs it with onnxruntime under MONAI's own transforms and sliding window, by `python -m monai.bundle run`. The service
reads the same archive back: what the metadata has no place for is in `manifest.json` and under `toposerve`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from app.imaging.archive import Outbox, entry
from app.serving.contract import (
    ClippedScaling,
    DatasetScaling,
    ImageScaling,
    Manifest,
    MinMaxScaling,
    PercentileScaling,
)

MONAI = "1.5"
"""The version of MONAI that the configuration was tried with, unless the network was trained with another."""
KEYS = {"keys": "image"}


def bundle(name: str, manifest: Manifest, onnx_bytes: int, pieces: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
    """The zip archive, piece by piece.

    name    of the folder that everything lies in
    pieces  the bytes of the ONNX file
    """
    outbox = Outbox()
    texts = {
        "configs/metadata.json": metadata(name, manifest),
        "configs/inference.json": inference(manifest),
        "manifest.json": manifest.model_dump(mode="json", exclude_none=False),
    }
    with zipfile.ZipFile(outbox, "w") as archive:
        for path, content in texts.items():
            archive.writestr(entry(f"{name}/{path}", 0, zipfile.ZIP_DEFLATED), json.dumps(content, indent=2))
        archive.writestr(entry(f"{name}/docs/README.md", 0, zipfile.ZIP_DEFLATED), readme(name, manifest))
        with archive.open(entry(f"{name}/models/model.onnx", onnx_bytes), "w") as file:
            for piece in pieces():
                file.write(piece)
                yield outbox.take()
    yield outbox.take()


def metadata(name: str, manifest: Manifest) -> dict[str, Any]:
    """`configs/metadata.json`, with every key that the specification wants."""
    software, free = manifest.software, f"{manifest.multiple}*n" if manifest.multiple > 1 else "n"
    shape = manifest.tile if manifest.sides == "tile" else [free] * manifest.dimensions
    sides: dict[str, Any] = {"spatial_shape": shape, "is_patch_data": True, "dtype": "float32"}
    single = manifest.outputs == 1
    names = manifest.classes[1:] if single else manifest.classes
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "any",
        "num_channels": manifest.channels,
        "value_range": [],
        "channel_def": {str(number): f"channel {number}" for number in range(manifest.channels)},
    }
    answer = {
        "type": "image",
        "format": "segmentation",
        "num_channels": manifest.outputs,
        "value_range": [0, 1],
        "channel_def": {str(number): class_name for number, class_name in enumerate(names)},
    }
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": name.rpartition("-")[2],
        "changelog": {name.rpartition("-")[2]: "exported by toposerve"},
        "monai_version": software.get("monai", MONAI),
        "pytorch_version": software.get("torch", "not needed"),
        "numpy_version": software.get("numpy", "any"),
        "required_packages_version": {"onnxruntime": software.get("onnxruntime", "any")},
        "optional_packages_version": {},
        "task": "segmentation",
        "description": f"{name}: {', '.join(manifest.classes[1:])}",
        "authors": "",
        "copyright": "",
        "network_data_format": {"inputs": {manifest.input: image | sides}, "outputs": {"pred": answer | sides}},
        "toposerve": {"metrics": manifest.metrics, "threshold": manifest.threshold, "step": manifest.step},
    }


def inference(manifest: Manifest) -> dict[str, Any]:
    """`configs/inference.json`: `python -m monai.bundle run --config_file configs/inference.json --image PATH`."""
    backwards = [0, *range(manifest.dimensions, 0, -1)]  # MONAI has columns first, the network planes or rows
    single = manifest.outputs == 1
    applied = {"sigmoid": "torch.sigmoid(@answer)", "softmax": "torch.softmax(@answer, 0)"}[manifest.activation]
    labels = f"(@probability > {manifest.threshold!r})" if single else "@probability.argmax(0, keepdim=True)"
    loaded = "@preprocessing.transforms[0]({'image': @image})['image']"
    # The inferer hands over one patch at a time; a network of a fixed batch gets it as often as it takes patches.
    asked = f"patch.repeat_interleave({manifest.batch}, 0).numpy()" if manifest.batch else "patch.numpy()"
    placed: list[dict[str, Any]] = []
    if manifest.orientation is not None:
        placed.append({"_target_": "Orientationd", **KEYS, "axcodes": manifest.orientation})
    if manifest.spacing_mm is not None:
        placed.append({"_target_": "Spacingd", **KEYS, "pixdim": manifest.spacing_mm[::-1]})
    return {
        "imports": ["$import torch", "$import onnxruntime", "$from monai.data import MetaTensor"],
        "bundle_root": ".",
        "image": "image.nii.gz",
        "output_dir": "$@bundle_root + '/eval'",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", **KEYS, "ensure_channel_first": True},
                *placed,
                {"_target_": "Transposed", **KEYS, "indices": backwards},
                *_scaled(manifest),
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": manifest.tile,
            "overlap": manifest.overlap,
            "mode": "gaussian",
            "padding_mode": "replicate",
        },
        "session": "$onnxruntime.InferenceSession(@bundle_root + '/models/model.onnx')",
        "network": (
            f"$lambda patch: torch.from_numpy(@session.run(['{manifest.output}'],"
            f" {{'{manifest.input}': {asked}}})[0][: len(patch)])"
        ),
        "loaded": f"${loaded}",
        "sample": "$@preprocessing({'image': @image})['image'].as_tensor()[None]",
        "answer": "$@inferer(@sample, @network)[0]",
        "probability": f"${applied}" if manifest.answers == "logits" else "$@answer",
        "labels": f"${labels}.to(torch.uint8).permute({backwards})",
        "mask": "$MetaTensor(@labels, meta=@loaded.meta)",
        "saver": {
            "_target_": "SaveImage",
            "output_dir": "@output_dir",
            "output_postfix": "mask",
            "output_dtype": "uint8",
            "resample": False,
        },
        "run": ["$@saver(@mask)"],
    }


def _scaled(manifest: Manifest) -> list[dict[str, Any]]:
    """The transforms that scale as in training."""
    scaling = manifest.scaling
    match scaling:
        case ImageScaling():
            return [{"_target_": "NormalizeIntensityd", **KEYS, "channel_wise": True}]
        case MinMaxScaling():
            return [{"_target_": "ScaleIntensityd", **KEYS, "channel_wise": True}]
        case PercentileScaling():
            bounds = {"lower": scaling.low, "upper": scaling.high, "b_min": 0.0, "b_max": 1.0, "clip": True}
            return [{"_target_": "ScaleIntensityRangePercentilesd", **KEYS, **bounds, "channel_wise": True}]
        case DatasetScaling() | ClippedScaling():
            figures = {"subtrahend": scaling.mean, "divisor": scaling.std, "channel_wise": True}
            normal: dict[str, Any] = {"_target_": "NormalizeIntensityd", **KEYS, **figures}
            if isinstance(scaling, DatasetScaling):
                return [normal]
            ones = ", 1" * manifest.dimensions
            low, high = (f"torch.tensor({bound}).reshape(-1{ones})" for bound in (scaling.low, scaling.high))
            clip = f"$lambda x: torch.minimum(torch.maximum(x, {low}), {high})"
            return [{"_target_": "Lambdad", **KEYS, "func": clip}, normal]


def readme(name: str, manifest: Manifest) -> str:
    """`docs/README.md`."""
    kind = "images" if manifest.dimensions == 2 else "volumes"
    return f"""# {name}

Segments {", ".join(manifest.classes[1:])} in {kind} of {manifest.channels} channels. Exported by toposerve.

    pip install monai onnxruntime nibabel
    python -m monai.bundle run --config_file configs/inference.json --image image.nii.gz

The mask lies in `eval/`. `manifest.json` has every fact that is needed to serve the network elsewhere. MONAI joins
tiles by its own weights, so its masks may differ from the service's by a few pixels near seams. Answers are not turned
back where the manifest names an orientation or a pixel size.
"""
