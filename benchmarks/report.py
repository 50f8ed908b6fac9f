"""CPU time of topology report, margins and repair beside their prediction.

    python benchmarks/report.py [--rounds 5] [--large] [--json FILE]

The prediction is that of the U-Net of 32/64/128 channels on 512 x 512, with random weights: no figure depends on them.
*Usual* masks cut a smooth random map at one half, as vessels and cells do; *noise* is the worst there is, every pixel
for itself. --large adds masks of 4096 x 4096, each in a process of its own, with the memory that the report takes
beyond its mask.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

SIDE, LARGE = 512, 4096
CLASSES = ("background", "vessel")


def usual(side: int) -> np.ndarray:
    """A smooth map of probabilities."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(0).standard_normal((side, side), dtype=np.float32), 3)
    return (1 / (1 + np.exp(-3 * field / field.std()))).astype(np.float32)


def noise(side: int) -> np.ndarray:
    """Every pixel for itself."""
    return np.random.default_rng(0).random((side, side), dtype=np.float32)


def dots(side: int) -> np.ndarray:
    """Noise of which one pixel in ten is foreground: the most components."""
    return noise(side) * np.float32(1 / 1.8)


MAPS = {"usual": usual, "noise": noise, "dots": dots}


def cpu_ms(work: Callable[[], Any], rounds: int) -> float:
    """Least CPU milliseconds of a call, the first left out."""
    work()
    least = np.inf
    for _ in range(rounds):
        started = time.process_time()
        work()
        least = min(least, time.process_time() - started)
    return least * 1000


def prediction_ms(rounds: int) -> float:
    """The U-Net on one image by ONNX Runtime in one thread."""
    import onnxruntime
    import torch

    from models.export import write_onnx
    from models.networks import build

    torch.manual_seed(0)
    network = build({"name": "unet", "dimensions": 2, "channels": [32, 64, 128]}, channels_in=1, channels_out=1).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unet.onnx"
        write_onnx(network, 1, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, 1, SIDE, SIDE), dtype=np.float32)
    return cpu_ms(lambda: session.run(None, {"image": image}), rounds)


def beside(rounds: int) -> dict[str, Any]:
    """CPU milliseconds at 512 x 512."""
    from app.errors import RepairFailed
    from app.serving import answers, repair
    from app.serving.pipeline import Segmentation

    found: dict[str, Any] = {"prediction": prediction_ms(rounds)}
    for name, drawn in MAPS.items():
        values = drawn(SIDE)
        labels = (values > 0.5).astype(np.uint8)
        answer = Segmentation(labels, values[None], CLASSES, 0.5, None, 1, {})

        def margins(answer: Segmentation = answer) -> None:
            answers.judged(
                answers.topology(answer.labels, CLASSES, None),
                answer,
                answer.labels,
                margins=True,
                expected={},
                edits=None,
            )

        found[name] = {
            "report": cpu_ms(lambda answer=answer: answers.topology(answer.labels, CLASSES, None), rounds),
            "report with margins": cpu_ms(margins, rounds),
        }
        try:
            made = repair.repaired(answer, {"vessel": {"beta0": 1, "beta1": 0}})
            found[name] |= {
                "repair to one component": cpu_ms(
                    lambda answer=answer: repair.repaired(answer, {"vessel": {"beta0": 1, "beta1": 0}}), 1
                ),
                "edits": len(made.edits["vessel"]),
            }
        except RepairFailed:
            started = time.process_time()
            try:
                repair.repaired(answer, {"vessel": {"beta0": 1, "beta1": 0}})
            except RepairFailed:
                found[name] |= {"repair refused after": (time.process_time() - started) * 1000}
    return found


def alone(name: str) -> dict[str, float]:
    """The report at 4096 x 4096 in this process: CPU seconds, and MiB beyond the mask."""
    from app.serving import answers

    answers.topology(np.eye(8, dtype=np.uint8), CLASSES, None)
    labels = np.zeros((LARGE, LARGE), np.uint8)
    for top in range(0, LARGE, SIDE):
        for left in range(0, LARGE, SIDE):  # block by block, so that drawing takes less memory than what is measured
            labels[top : top + SIDE, left : left + SIDE] = np.roll(MAPS[name](SIDE), top + left, axis=1) > 0.5
    before, started = resident_mib("VmRSS"), time.process_time()
    answers.topology(labels, CLASSES, None)
    return {"seconds": time.process_time() - started, "mib": resident_mib("VmHWM") - before}


def resident_mib(field: str) -> float:
    """Memory of this process, now (VmRSS) or at most (VmHWM); the peak that getrusage tells would be the parent's."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def tell(found: dict[str, Any]) -> None:
    prediction = found["prediction"]
    print(
        f"Prediction of 512 x 512: {prediction:.0f} ms\n\n| map | work | CPU ms | part of the prediction"
        " |\n|---|---|---|---|"
    )
    for name in MAPS:
        for work, spent in found[name].items():
            if work != "edits":
                told = f" ({found[name]['edits']} edits)" if work.startswith("repair to") else ""
                print(f"| {name} | {work}{told} | {spent:.1f} | {spent / prediction:.1%} |")
    for name, figures in found.get("large", {}).items():
        print(f"\n4096 x 4096, {name}: {figures['seconds']:.2f} s, {figures['mib']:.0f} MiB beyond the mask")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="also 4096 x 4096")
    parser.add_argument("--alone", choices=MAPS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(alone(arguments.alone)))
        return
    found = beside(arguments.rounds)
    if arguments.large:
        found["large"] = {
            name: json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--alone", name], check=True, capture_output=True, text=True
                ).stdout.splitlines()[-1]
            )
            for name in MAPS
        }
    tell(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
