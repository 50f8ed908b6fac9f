"""How much longer a training step is with a loss, beside a stand-in network.

    python -m benchmarks.step                                # 4 x 256 x 256, a network of 16 ms
    python -m benchmarks.step --size volume                  # 1 x 64 x 64 x 64, a network of 240 ms
    python -m benchmarks.step --only betti_matching --rounds 20

The stand-in sleeps for a third of the time before the loss and for two thirds after it, as forward and backward on a
GPU do, so the table holds for a device of that speed whose losses run on this processor. Patches are drawn by the
sampler of trainings, augmented, in its thread; they hold the logits that the stand-in answers: drawn vessel trees
seen through noise and gaps. Steps with and without a loss take turns, cross-entropy and Dice in both. Medians: wall
time, and processor time that the loss adds, which says something on a busy machine too: two free cores need at least
half of it.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.losses import sample
from models.ahead import DrawnAhead
from models.data import Item
from models.losses.combine import Objective
from models.sampling import PatchSampler
from topology.parallel import cores

SIZES = {"plane": (4, (256, 256), 0.016, 384), "volume": (1, (64, 64, 64), 0.240, 80)}
"""Name -> batch, patch, seconds of the network, side of the images that patches are drawn from."""
ASKED = {
    "skeleton_hard_pixels": 1.06,
    "persistence_hard_pixels": 1.2,
    "topo_loss": 1.3,
    "topograph": 1.3,
    "dense_matching": 1.4,
    "betti_matching": 1.7,
    "homotopy_warping": None,
    "sat_loss": None,
    "cbdice": None,
}
"""Loss -> most times the step without it, asked for on two cores in the plane."""
BASE = [{"name": "cross_entropy"}, {"name": "dice"}]


def write_items(folder, side, axes, count=4):
    """Items whose images are logits and whose labels are what these see."""
    logits, truth = sample(count, (side,) * axes, "cpu")
    items = []
    for number in range(count):
        image, label = folder / f"{number}-image.npy", folder / f"{number}-label.npy"
        np.save(image, logits[number].numpy())
        np.save(label, truth[number].numpy().astype(np.uint8))
        items.append(Item(str(number), image, label, None, str(number), None))
    return items


def step(batches, number, objective, seconds):
    """Wall and processor seconds of one step."""
    began, processor = time.perf_counter(), time.process_time()
    images, labels, _ = batches(number)
    logits = torch.from_numpy(images).requires_grad_()
    time.sleep(seconds / 3)
    losses, _ = objective(logits, torch.from_numpy(labels), step=number)
    losses.mean().backward()
    time.sleep(2 * seconds / 3)
    return time.perf_counter() - began, time.process_time() - processor


def measure(items, size, names, rounds):
    """{name: medians with and without it, wall and processor seconds}; both take turns on the same batches."""
    batch, patch, seconds, _ = SIZES[size]
    scaling = {"kind": "dataset", "mean": [0.0], "std": [1.0]}
    sampler = PatchSampler(items, patch=patch, batch=batch, scaling=scaling, augment=True, seed=0)
    base, found = Objective({"terms": BASE}), {}
    for name in names:
        objective = Objective({"terms": [*BASE, {"name": name}]})
        batches, times = DrawnAhead(sampler.draw, last=2 * rounds + 4), ([], [])
        for number in range(1, 2 * rounds + 5):
            spent = step(batches, number, objective if number % 2 else base, seconds)
            if number > 4:  # the first compile and warm
                times[(number + 1) % 2].append(spent)
        batches.close()
        found[name] = [np.median(each, axis=0) for each in times]
    return found


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="plane")
    parser.add_argument("--only", nargs="*", choices=ASKED, default=list(ASKED), metavar="LOSS")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    _, patch, seconds, side = SIZES[options.size]
    print(f"{cores()} cores, load {os.getloadavg()[0]:.1f}, torch threads {torch.get_num_threads()},", end=" ")
    print(f"network {1000 * seconds:.0f} ms\n")
    print("| loss | without, ms | with, ms | times | asked | processor, ms more |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        items = write_items(Path(folder), side, len(patch))
        for name in options.only:
            (longer, more), (plain, less) = measure(items, options.size, [name], options.rounds)[name]
            asked = ASKED[name] if options.size == "plane" else None
            cells = (f"{1000 * plain:.1f}", f"{1000 * longer:.1f}", f"{longer / plain:.2f}x")
            cells = (*cells, "-" if asked is None else f"{asked}x", f"{1000 * (more - less):.1f}")
            print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
