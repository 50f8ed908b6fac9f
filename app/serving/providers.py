"""Chooses the execution providers of ONNX Runtime, and the GPU of each model.

Pure functions of what is there, so that every machine can be tested on any. TensorRT is used only where a setting names
it: it builds an engine for each range of sizes, which takes minutes, and rounds as it likes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

Provider = Literal["tensorrt", "cuda", "cpu"]
Choice = tuple[str, dict[str, str]]
"""The name that ONNX Runtime has for a provider, and its options."""
NAMES: dict[Provider, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


def attempts(order: Sequence[Provider], available: Sequence[str], device: int) -> list[list[Choice]]:
    """The lists of providers to open a session with, the best first, each shorter by the one that did not work; the
    last is the CPU alone.

    order      as the setting has it; the CPU is always the last resort
    available  what this build of ONNX Runtime says it has, which does not mean that it works
    device     the GPU to use
    """
    chosen = [
        (NAMES[name], _options(name, device))
        for name in dict.fromkeys(order)
        if name != "cpu" and NAMES[name] in available
    ]
    chosen.append((NAMES["cpu"], {}))
    return [chosen[start:] for start in range(len(chosen))]


def _options(name: Provider, device: int) -> dict[str, str]:
    if name == "cuda":
        return {"device_id": str(device), "use_tf32": "0"}  # TF32 rounds to 10 bits, which is enough to move a mask
    return {"device_id": str(device)}


def place(model: str, wanted: Mapping[str, int], loaded_bytes: Mapping[int, int], gpus: int) -> int:
    """The GPU of a model: the one that the setting names when it exists, else the one with the fewest bytes of
    networks; 0 where there is none.
    """
    if model in wanted and wanted[model] < gpus:
        return wanted[model]
    return min(range(gpus), key=lambda device: (loaded_bytes.get(device, 0), device), default=0)


def count_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs that this process may use."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() and each.strip() != "-1"])
    return len([path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])
