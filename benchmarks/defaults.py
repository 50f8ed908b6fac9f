"""Each loss at its defaults, beside cross-entropy and Dice, from scratch: none may ruin.

    OMP_NUM_THREADS=1 python -m benchmarks.defaults --data ../shared/data/isbi12 --foreground 0 --out defaults.jsonl
    OMP_NUM_THREADS=1 python -m benchmarks.defaults --data ../shared/data/chase_db1 --steps 200 --out defaults.jsonl

One thread. The last fifth of the images, in order of names, is measured as whole images after the last step; what is
printed are means over them and over the seeds. A row fails whose Dice or clDice is more than 0.01 below that of
cross-entropy and Dice; the exit status is then 1. Every run is a line of the file; those that it holds already, with
the same weights and metrics, are not repeated, so a benchmark that was stopped goes on where it was. Seeds are 0 and 2,
because from seed 1 so small a network learns nothing of the vessels with cross-entropy and Dice alone.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.recipes import BASE, lay_out, small_spec
from models.events import Events
from models.losses import LOSSES, RULE_LOSSES, usual
from models.losses.combine import MODES
from models.train import train
from topology.metrics import EXACT

BASELINE = "cross_entropy + dice"
ALLOWED = 0.01
"""How far below the baseline Dice and clDice may be."""
FIGURES = ("dice", "cldice", "beta0_error", "beta1_error")


def rows():
    """Name -> the loss of a specification, with the default weights written out, so that a new default is a new row."""
    without = RULE_LOSSES | {term["name"] for term in BASE}  # rules need several classes, which these masks have not
    added = {
        name: {"terms": [*BASE, {"name": name, "weight": usual(name).weight, "balance": usual(name).balance}]}
        for name in LOSSES
        if name not in without
    }
    penalties = {
        f"neighbour_penalty, {mode}": {"terms": BASE, "neighbour_penalty": {"window": 3, "mode": mode}}
        for mode in MODES
    }
    return {BASELINE: {"terms": BASE}, **added, **penalties}


def measure(loss, data, seed, steps):
    """The figures of one training, and the CPU seconds it took."""
    spec = small_spec(loss, steps=steps, seed=seed)
    began, lines = time.process_time(), io.StringIO()
    with tempfile.TemporaryDirectory() as out:
        train(spec, data, Path(out), events=Events(lines))
    metrics = json.loads(lines.getvalue().splitlines()[-1])["metrics"]
    return {**{name: metrics[name] for name in FIGURES}, "seconds": round(time.process_time() - began, 1)}


def read(path):
    """The runs of a file of an earlier call."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(names, runs):
    """The lines of the table, and the names of the rows that fail."""
    means = {
        name: {figure: sum(run[figure] for run in runs[name]) / len(runs[name]) for figure in FIGURES} for name in names
    }
    lines, failed = ["| loss | Dice | clDice | Betti-0 error | Betti-1 error | |", "|---|---|---|---|---|---|"], []
    for name, mean in means.items():
        gained = [mean[figure] - means[BASELINE][figure] for figure in ("dice", "cldice")]
        if min(gained) < -ALLOWED:
            failed.append(name)
        lines.append(
            f"| {name} | {mean['dice']:.3f} ({gained[0]:+.3f}) | {mean['cldice']:.3f} ({gained[1]:+.3f}) |"
            f" {mean['beta0_error']:.0f} | {mean['beta1_error']:.0f} | {'fails' if name in failed else ''} |"
        )
    return lines, failed


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    options.add_argument("--foreground", type=int, default=255, help="mask value of the structure")
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 2])
    options.add_argument("--only", nargs="*", help="names of rows beside the baseline")
    options.add_argument("--out", type=Path, required=True, help="file of JSON lines, made or continued")
    options = options.parse_args()
    torch.set_num_threads(1)
    chosen = {name: loss for name, loss in rows().items() if not options.only or name in (BASELINE, *options.only)}
    known, runs = read(options.out), {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as scratch:
        lay_out(options.data, Path(scratch), options.foreground)
        for seed in options.seeds:
            for name, loss in chosen.items():
                key = {"data": options.data.name, "seed": seed, "steps": options.steps, "row": name, "loss": loss}
                key["metrics"] = EXACT.digest()
                run = next((run for run in known if key.items() <= run.items()), None)
                if run is None:
                    run = {**key, **measure(loss, Path(scratch), seed, options.steps)}
                    with options.out.open("a") as file:
                        file.write(json.dumps(run) + "\n")
                runs[name].append(run)
    lines, failed = table(chosen, runs)
    print("\n".join(lines))
    if failed:
        sys.exit(f"More than {ALLOWED} below {BASELINE}: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
