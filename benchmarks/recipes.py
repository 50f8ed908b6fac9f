"""Compares the topology of one U-Net trained under several losses.

    python benchmarks/recipes.py --data ../shared/data/isbi12 --foreground 0

The last fifth of the images, in order of names, is for validation. Seconds a step depend on the machine and on what
else it does; the other figures depend on the data and the seed alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from app.demo.folder import hold_out, labelled_pairs

BASE = [{"name": "cross_entropy"}, {"name": "dice"}]


def recipes(steps):
    """Name -> the loss of a specification."""
    return {
        "cross-entropy + Dice": {"terms": BASE},
        "the same, neighbour_penalty window 3, added": {
            "terms": BASE,
            "neighbour_penalty": {"window": 3, "mode": "add"},
        },
        "the same + 0.5 soft_cldice": {"terms": [*BASE, {"name": "soft_cldice", "weight": 0.5}]},
        "the same + 0.5 skeleton_hard_pixels, second half": {
            "terms": [*BASE, {"name": "skeleton_hard_pixels", "weight": 0.5, "from_step": steps // 2}]
        },
    }


def small_spec(loss, *, steps, seed):
    """The specification of a U-Net 8/16/32 that one thread trains in a minute or two, and validates at the end."""
    return {
        "network": {"name": "unet", "dimensions": 2, "channels": [8, 16, 32]},
        "loss": loss,
        "patch": [128, 128],
        "batch": 4,
        "steps": steps,
        "optimizer": {"name": "adamw", "lr": 0.002},
        "validate_every": steps,
        "checkpoint_every": steps,
        "seed": seed,
        "threads": 1,
    }


def lay_out(source, folder, foreground):
    """Write the labelled images of a folder as a dataset of two classes; the last fifth is to validate."""
    pairs = labelled_pairs(source)
    _, held_out = hold_out(pairs)
    items = []
    for place, pair in enumerate(pairs):
        image = np.asarray(Image.open(pair.image))
        image = image[None] if image.ndim == 2 else np.moveaxis(image[..., :3], -1, 0)
        label = np.asarray(Image.open(pair.mask)) == foreground
        for kind, array in (("images", image), ("labels", label.astype(np.uint8))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            np.save(folder / kind / f"{place}.npy", array)
        split = "val" if pair in held_out else "train"
        facts = {"id": pair.image.name, "image": f"images/{place}.npy", "label": f"labels/{place}.npy", "split": split}
        items.append(facts)
    facts = {
        "classes": ["background", "structure"],
        "ignore": None,
        "channels": len(image),
        "dimensions": 2,
        "items": items,
    }
    (folder / "dataset.json").write_text(json.dumps(facts))


def run(spec, data, out):
    """(figures of the best weights, seconds a step) of one training in a process of its own."""
    out.mkdir()
    (out / "spec.json").write_text(json.dumps(spec))
    child = subprocess.run(
        [sys.executable, "-m", "models", "train", "--spec", out / "spec.json", "--data", data, "--out", out],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    events = [json.loads(line) for line in child.stdout.splitlines()]
    return events[-1]["metrics"], [e for e in events if e["event"] == "step"][-1]["seconds_per_step"]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/, PNG")
    options.add_argument("--foreground", type=int, default=255, help="mask value of the structure")
    options.add_argument("--steps", type=int, default=1200)
    options.add_argument("--seed", type=int, default=0)
    options = options.parse_args()
    spec = {
        "network": {"name": "unet", "dimensions": 2, "channels": [16, 32, 64]},
        "patch": [128, 128],
        "batch": 4,
        "steps": options.steps,
        "optimizer": {"name": "adamw", "lr": 0.002},
        "validate_every": max(1, options.steps // 5),
        "seed": options.seed,
    }
    print("| loss | Dice | clDice | Betti-0 error | Betti-1 error | ms a step |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        lay_out(options.data, Path(scratch) / "data", options.foreground)
        for number, (name, loss) in enumerate(recipes(options.steps).items()):
            figures, seconds = run({**spec, "loss": loss}, Path(scratch) / "data", Path(scratch) / str(number))
            print(
                f"| {name} | {figures['dice']:.3f} | {figures['cldice']:.3f} | {figures['beta0_error']:.1f} |"
                f" {figures['beta1_error']:.1f} | {1000 * seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
