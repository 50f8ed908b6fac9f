"""Trains, exports and serves every loss, wrapper and network of the catalogue.

    python benchmarks/catalogue.py --data ../shared/data/isbi12 --foreground 0 [--steps 50] [--only dice topograph]

A service is started; the folder becomes a dataset; then one training job after the other, cross-entropy and Dice with
the loss beside them, 8/16/32 channels, patches of 128, seed 0; each model then segments a held-out image. The table
says what each term was in the first and in the last tenth of the steps, what the whole validation images look like, and
how far the exported model is from the trained one. Fifty steps say that a row works, not what it is good for: that is
docs/losses.md.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from app.demo.folder import archive, hold_out, labelled_pairs
from app.demo.story import service
from models.losses import LOSSES, RULE_LOSSES
from models.networks import NETWORKS
from toposerve_client import Client

BASE = ("cross_entropy", "dice")
OPTIONS = {
    "betti_prior": {"priors": [{"classes": [1], "betti": [1, 20]}]},
    "unet_pdmt": {"structure_from_step": 0},
}
MEASURES = ("dice", "cldice", "beta0_error", "beta1_error")


def rows(steps):
    """Name -> the parts of the specification that make it."""
    for name in LOSSES:
        if name in RULE_LOSSES:  # for several classes, which these masks have not
            continue
        terms = [{"name": each} for each in BASE if each != name] + [{"name": name, **OPTIONS.get(name, {})}]
        yield name, {"loss": {"terms": terms}}
    for mode in ("add", "replace"):
        yield (
            f"neighbour_penalty, {mode}",
            {"loss": {"terms": [{"name": each} for each in BASE], "neighbour_penalty": {"window": 3, "mode": mode}}},
        )
    for name in NETWORKS:
        yield f"network {name}", {"network": {"name": name, **OPTIONS.get(name, {})}}


def specification(parts, steps):
    network = {"name": "unet", "dimensions": 2, "channels": [8, 16, 32], **parts.get("network", {})}
    return {
        "kind": "train",
        "dataset": "catalogue",
        "model": "catalogue",
        "patch": [128, 128],
        "batch": 4,
        "steps": steps,
        "seed": 0,
        "validate_every": steps,
        "optimizer": {"name": "adamw", "lr": 0.002},
        "loss": {"terms": [{"name": each} for each in BASE]},
        **parts,
        "network": network,
    }


def run(client, name, parts, steps, image):
    """One row of the table; SystemExit when the job does not succeed."""
    began = time.monotonic()
    seen = {}

    def keep(event):
        for term, value in (event.data.get("terms") or {}).items() if event.name == "progress" else ():
            seen.setdefault(term, []).append(value)

    job = client.jobs.wait(client.jobs.submit(specification(parts, steps)), on_event=keep, check=False)
    if job["state"] != "succeeded":
        raise SystemExit(f"{name}: {job['state']}, {job['error']}")
    made = job["result"]
    card = client.models.get("catalogue", made["version"])
    assert client.predict(f"catalogue:{made['version']}", image).mask.ndim == 2
    return {
        "terms": seen,
        "metrics": card["metrics"],
        "verification": card["manifest"]["verification"],
        "seconds": time.monotonic() - began,
    }


def tell(name, row):
    term = name if name in row["terms"] else next((each for each in row["terms"] if "/" in each), BASE[0])
    values = row["terms"].get(term, [float("nan")])
    part = max(1, len(values) // 10)
    first, last = sum(values[:part]) / part, sum(values[-part:]) / part
    figures = " | ".join(
        "-" if row["metrics"].get(each) is None else f"{row['metrics'][each]:.3g}" for each in MEASURES
    )
    differs, seconds = f"{row['verification']['max_difference']:.1e}", f"{row['seconds']:.0f}"
    print(f"| {name} | {term} | {first:.3g} | {last:.3g} | {figures} | {differs} | {seconds} |", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--foreground", type=int, help="mask value of the structure; default: 255")
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--pairs", type=int, default=10, help="images to train on and validate with")
    options.add_argument("--only", nargs="*")
    options.add_argument("--json", type=Path)
    options = options.parse_args()
    found, console = {}, Console(file=sys.stderr)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "service.json").write_text("{}")
        with service(folder, console, keep=False) as address, Client(address) as client:
            train, held = hold_out(labelled_pairs(options.data))
            label_map = None if options.foreground is None else {"foreground": options.foreground}
            pairs = archive(train[: options.pairs], folder / "catalogue.zip")
            client.datasets.upload("catalogue", pairs, label_map=label_map)
            print(
                f"| row | term | first | last | {' | '.join(MEASURES)} | export differs by | seconds"
                " |\n|---|---|---|---|---|---|---|---|---|---|"
            )
            for name, parts in rows(options.steps):
                if options.only is None or name in options.only:
                    found[name] = run(client, name, parts, options.steps, held[0].image)
                    tell(name, found[name])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
