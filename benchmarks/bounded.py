"""Measures the processor time that a process of its own costs a network.

    python benchmarks/bounded.py [--rounds 200]

T, S and M are the networks of `benchmarks/serving.py`: one convolution on 256 x 256, a U-Net of 8/16/32 channels on
256 x 256, one of 32/64/128 on 512 x 512; random weights, one thread. The figure is processor time of both processes
for a run, the mean over all rounds, so that what else the machine does is not measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np


def main() -> None:
    """Print one line for each network."""
    from app.serving.bounded import BoundedNetwork, Bounds
    from app.serving.contract import Manifest
    from app.serving.load import Load
    from app.serving.pipeline import Stop
    from app.serving.runtime import Network
    from app.settings import GiB
    from benchmarks.serving import networks

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        made = networks(Path(folder))
    for name, each in made.items():
        manifest = Manifest.model_validate(each["manifest"])
        here = Network(each["onnx"], manifest, Load(), threads=1)
        child = BoundedNetwork(each["onnx"], manifest, Load(), Bounds(4 * GiB, 60), threads=1)
        side = 512 if name == "M" else 256
        batch = np.random.default_rng(0).standard_normal((1, 1, side, side), dtype=np.float32)
        for run in (here, child):
            run(batch, Stop())
        spent_s = dict.fromkeys(("here", "child"), 0.0)
        for _ in range(rounds):
            for place, run in (("here", here), ("child", child)):
                before = processor_s(child.pid)
                run(batch, Stop())
                spent_s[place] += processor_s(child.pid) - before
        alone_ms, more_ms = (1000 * s / rounds for s in (spent_s["here"], spent_s["child"] - spent_s["here"]))
        print(f"{name}: {alone_ms:.2f} ms here, {more_ms:+.2f} ms in a child ({more_ms / alone_ms:+.1%})", flush=True)


def processor_s(pid: int | None) -> float:
    """Processor time of this process and of a child, to the nanosecond, which schedstat counts and stat does not."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return time.process_time() + sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


if __name__ == "__main__":
    main()
