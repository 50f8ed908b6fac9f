"""What each loss costs beside one training step of a U-Net, in the same run.

    OMP_NUM_THREADS=1 python benchmarks/losses.py                      # both sizes, every loss
    OMP_NUM_THREADS=1 python benchmarks/losses.py --only dice --size plane

Forward and backward. On a CPU: process CPU time with one thread, best of several; memory is the extra resident peak.
With --device cuda: wall time between synchronisations; memory is what torch allocated at most.
Inputs are soft, noisy, broken predictions of drawn vessel trees, so that there is much topology to look at. Seeded.
"""

import argparse
import ctypes
import gc
import resource
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from models.losses import LOSSES, RULE_LOSSES
from models.losses.neighbours import worst_neighbour
from models.losses.persistence import landscapes
from models.losses.pixels import probabilities
from models.networks import build

SIZES = {"plane": (4, (256, 256)), "volume": (1, (64, 64, 64))}
CHANNELS = [32, 64, 128]
VARIANTS = {"betti_prior": {}, "persistence_hard_pixels": {}, "topo_loss": {"window": None}}


def draw_trees(rng, sides, walkers=12):
    """0/1 map of wandering tubes two or three pixels thick."""
    canvas = np.zeros(sides)
    for _ in range(walkers):
        place, heading = rng.uniform(0, sides), rng.standard_normal(len(sides))
        for _ in range(2 * max(sides)):
            heading = heading / np.linalg.norm(heading) + 0.25 * rng.standard_normal(len(sides))
            place = (place + heading / np.linalg.norm(heading)) % np.array(sides)
            canvas[tuple(place.astype(int))] = 1
    return gaussian_filter(canvas, 1.0) > (0.12 if len(sides) == 2 else 0.05)


def sample(batch, sides, device, seed=0):
    """Logits (batch, 1, ...) that see the trees through noise and gaps, and the trees (batch, ...)."""
    rng = np.random.default_rng(seed)
    truth = np.stack([draw_trees(rng, sides) for _ in range(batch)])
    blur = [gaussian_filter(y.astype(float), 1.0) * 8 - 3 for y in truth]
    noise = [gaussian_filter(rng.standard_normal(sides), 1.0) * (4 if len(sides) == 2 else 8) for _ in truth]
    logits = torch.tensor(np.stack(blur) + np.stack(noise), dtype=torch.float32)[:, None]
    return logits.to(device), torch.tensor(truth.astype(np.int64)).to(device)


def clock(device):
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def resident():
    """(now, peak since the last reset) in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))


def forget_peak(device):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(
        0
    )  # give back what is free, or a second run of the same work would seem to need nothing
    Path("/proc/self/clear_refs").write_text("5")
    return resident()[0]


def peak(device):
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident()[1]


def cost(work, device, repeats):
    """(best seconds, extra MB) of `work`, warmed up once."""
    work()
    gc.collect()
    before, seconds = forget_peak(device), []
    for _ in range(repeats):
        began = clock(device)
        work()
        seconds.append(clock(device) - began)
    return min(seconds), max(peak(device) - before, 0.0)


def step_of(batch, sides, device):
    """One training step of the U-Net on these images."""
    network = build({"channels": CHANNELS, "dimensions": len(sides)}, channels_in=1, channels_out=1).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    logits, target = sample(batch, sides, device)

    def work():
        optimizer.zero_grad(set_to_none=True)
        LOSSES["cross_entropy"](network(logits), target).mean().backward()
        optimizer.step()

    return work


def work_of(loss, logits, target, options):
    def work():
        leaf = logits.detach().requires_grad_()
        loss(leaf, target, **options).mean().backward()

    return work


def neighbour_penalty(logits, target):
    """SCNP around cross-entropy and Dice, replaced."""
    worst = worst_neighbour(logits, target)
    return LOSSES["cross_entropy"](worst, target) + LOSSES["dice"](worst, target)


def landscape_features(logits, target):
    """The landscapes that `LandscapeLayer` reads (PLLay), components and loops, of the first 128 pixels a side."""
    return landscapes(probabilities(logits)[(..., *(slice(128),) * (logits.ndim - 2))])


@cache
def heads(dimensions):
    """The probabilistic DMT with untrained heads."""
    return build({"name": "unet_pdmt", "channels": CHANNELS, "dimensions": dimensions}, channels_in=1, channels_out=1)


def probabilistic_dmt(logits, target):
    """What `unet_pdmt` adds to a step of its U-Net: both heads, the sampled structure and the divergence."""
    network = heads(logits.ndim - 2).to(logits.device)
    deepest = torch.ones(
        len(logits), CHANNELS[-1], *(side // network.multiple for side in logits.shape[2:]), device=logits.device
    )
    return sum(network.terms(logits.detach(), [deepest], logits, target).values())


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="*", help="names of losses")
    options.add_argument("--size", choices=SIZES, help="one size only")
    options.add_argument("--device", default="cpu")
    options = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    losses = {
        "neighbour_penalty": neighbour_penalty,
        **{name: loss for name, loss in LOSSES.items() if name not in RULE_LOSSES},
        "landscape_features": landscape_features,
        "probabilistic_dmt": probabilistic_dmt,
    }
    print(
        f"torch {torch.__version__}, {options.device}, one thread, address space limit"
        f" {resource.getrlimit(resource.RLIMIT_AS)[0]}"
    )
    for name, (batch, sides) in SIZES.items():
        if options.size not in (None, name):
            continue
        step, memory = cost(step_of(batch, sides, options.device), options.device, 3)
        shape = f"{batch} x 1 x {' x '.join(map(str, sides))}"
        print(
            f"\n{shape}: one U-Net step {1000 * step:.0f} ms, {memory:.0f} MB\n\n| loss | of a step | ms an image |"
            " extra MB |\n|---|---|---|---|"
        )
        logits, target = sample(batch, sides, options.device)
        for loss in options.only or losses:
            seconds, memory = cost(work_of(losses[loss], logits, target, VARIANTS.get(loss, {})), options.device, 5)
            print(
                f"| {loss} | {100 * seconds / step:.2f} % | {1000 * seconds / batch:.2f} | {memory:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
