"""Which drawn errors each loss repairs when it is descended alone on a logit map, and how many steps it needs.

    OMP_NUM_THREADS=1 python benchmarks/repairs.py

A break, a false bridge, a false hole, an island: each with soft values, one error a map. Adam, 0.1 a step, at most 200 steps; repaired means that no
wrong region is left whose correction would change a Betti number.
"""

import argparse
import time

import torch

from models.losses import LOSSES
from models.losses.neighbours import worst_neighbour
from topology.regions import region_graph

STEPS, RATE = 200, 0.1
SIDE = 24
DAMAGES = ("break", "bridge", "hole", "island")


def drawing():
    """(1, 24, 24) target: two bars and a block."""
    target = torch.zeros(1, SIDE, SIDE, dtype=torch.long)
    target[:, 3:6, 2:22] = target[:, 9:12, 2:22] = target[:, 15:22, 4:14] = 1
    return target


def damaged(damage):
    """(1, 1, 24, 24) logits that see the drawing but for one error."""
    logits = drawing().unsqueeze(1).float() * 4 - 2
    rows = torch.linspace(-0.05, 0.05, SIDE)  # no two pixels alike, so that no order of equal values decides
    logits = logits + rows[:, None] + 0.7 * rows[None]
    if damage == "break":
        logits[..., 3:6, 10:13] = logits[..., 3:6, 10:13] * 0.4 - 1.7
    elif damage == "bridge":
        logits[..., 6:9, 10:13] = logits[..., 6:9, 10:13] * 0.4 + 1.7
    elif damage == "hole":
        logits[..., 17:20, 8:11] = logits[..., 17:20, 8:11] * 0.4 - 1.7
    elif damage == "island":
        logits[..., 17:20, 18:21] = logits[..., 17:20, 18:21] * 0.4 + 1.7
    return logits


def is_right(logits, target):
    return not region_graph(logits[0, 0].detach().numpy() > 0, target[0].numpy() > 0).critical.any()


def repair(loss, damage, **options):
    """Steps until the error is gone, or None."""
    target, logits = drawing(), damaged(damage).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=RATE)
    assert not is_right(logits, target)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss(logits, target, **options).sum().backward()
        optimizer.step()
        if is_right(logits, target):
            return step
    return None


def scnp(logits, target):
    """Cross-entropy on the logits of the worst neighbours."""
    return LOSSES["cross_entropy"](worst_neighbour(logits, target), target)


OPTIONS = {"betti_prior": {"priors": [{"classes": [1], "betti": [3, 0]}]}, "topology_layer": {"skip": 2}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*")
    chosen = parser.parse_args().only
    torch.set_num_threads(1)
    losses = {"neighbour_penalty": scnp, **LOSSES}
    print(f"| loss | {' | '.join(DAMAGES)} | ms a step |\n|---|{'---|' * (len(DAMAGES) + 1)}")
    for name in chosen or losses:
        began, total, cells = time.process_time(), 0, []
        for damage in DAMAGES:
            steps = repair(losses[name], damage, **OPTIONS.get(name, {}))
            total += steps or STEPS
            cells.append("-" if steps is None else str(steps))
        print(f"| {name} | {' | '.join(cells)} | {1000 * (time.process_time() - began) / total:.1f} |", flush=True)


if __name__ == "__main__":
    main()
