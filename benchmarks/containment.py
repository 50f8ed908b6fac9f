"""Violations of a rule between classes with the term `inside` and without it.

    OMP_NUM_THREADS=1 python -m benchmarks.containment --data ../shared/data --out containment.jsonl

Two sets of real images: axons inside myelin (axon_sem, 7 images) and the cavity of the left ventricle inside its
muscle (sunnybrook_lv, 31 slices). U-Net 8/16/32, one thread; the last fifth of the images, in order of names, is
measured as whole images after the last step. Violations are places where the likeliest classes break the rule, mean
over those images. Every run is a line of the file; those that it holds already are not repeated.
"""

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
import torch
from PIL import Image

from benchmarks.recipes import BASE, small_spec
from models.data import read_dataset
from models.evaluate import evaluate
from models.events import Events
from models.export import load_network
from models.train import train
from topology.containment import Rule

SETS = {
    "axon_sem": (["background", "myelin", "axon"], Rule("inside", 2, (1,))),
    "sunnybrook_lv": (["background", "cavity", "muscle"], Rule("inside", 1, (2,))),
}
"""Folder -> the classes of its masks, and what lies inside what."""
ROWS = ((0.0, 0.0), (0.5, 0.0), (0.05, 0.0), (0.5, 0.5), (0.05, 0.5))
"""Weight of the term, and the part of the steps before it counts."""
FIGURES = ("rule_violations", "dice", "beta0_error", "beta1_error")


def read(path):
    """(rows, columns) array of a DICOM file or of a picture."""
    return pydicom.dcmread(path).pixel_array if path.suffix == ".dcm" else np.asarray(Image.open(path))


def lay_out(source, folder, classes):
    """Write the labelled images of a set as a dataset; the last fifth is to validate."""
    labelled = sorted((source / "masks").glob("*.png"))
    items = []
    for place, mask in enumerate(labelled):
        image = next((source / "images").glob(f"{mask.stem}.*"))
        for kind, array in (("images", read(image)[None]), ("labels", read(mask).astype(np.uint8))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            np.save(folder / kind / f"{place}.npy", array)
        split = "val" if place >= len(labelled) - max(1, len(labelled) // 5) else "train"
        items.append({"id": mask.stem, "image": f"images/{place}.npy", "label": f"labels/{place}.npy", "split": split})
    facts = {"classes": classes, "ignore": None, "channels": 1, "dimensions": 2, "items": items}
    (folder / "dataset.json").write_text(json.dumps(facts))


def measure(folder, rule, weight, late, seed, steps):
    """The figures of one training, and the CPU seconds it took."""
    pairs = [{"subject": rule.subject, "others": list(rule.others)}]
    term = {"name": rule.kind, "weight": weight, "from_step": int(late * steps), "pairs": pairs}
    added = [{**term, "balance": "gradient"}] if weight else []
    spec = small_spec({"terms": [*BASE, *added]}, steps=steps, seed=seed)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        train(spec, folder, Path(out), events=Events(io.StringIO()))
        network, facts = load_network(Path(out) / "best.safetensors")
    dataset = read_dataset(folder)
    held_out = [item for item in dataset.items if item.split == "val"]
    means, per_class, _ = evaluate(network, held_out, dataset, scaling=facts["scaling"], threshold=0.5, rules=[rule])
    means["rule_violations"] = per_class[dataset.classes[rule.subject]]["rule_violations"]
    return {**{name: means[name] for name in FIGURES}, "seconds": round(time.process_time() - began, 1)}


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sets")
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--out", type=Path, required=True, help="file of JSON lines, made or continued")
    options = options.parse_args()
    torch.set_num_threads(1)
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    print("| set | weight of `inside` | from | violations | Dice | Betti-0 error | Betti-1 error | by seed |")
    print("|---" * 8 + "|")
    for name, (classes, rule) in SETS.items():
        with tempfile.TemporaryDirectory() as scratch:
            lay_out(options.data / name, Path(scratch), classes)
            for weight, late in ROWS:
                runs = []
                for seed in options.seeds:
                    key = {"data": name, "weight": weight, "late": late, "seed": seed, "steps": options.steps}
                    run = next((run for run in known if key.items() <= run.items()), None)
                    if run is None:
                        run = {**key, **measure(Path(scratch), rule, weight, late, seed, options.steps)}
                        with options.out.open("a") as file:
                            file.write(json.dumps(run) + "\n")
                    runs.append(run)
                mean = {figure: np.mean([run[figure] for run in runs]) for figure in FIGURES}
                seeds = ", ".join(f"{run['rule_violations']:.0f}" for run in runs)
                print(
                    f"| {name} | {weight or 'none'} | {int(late * options.steps)} |"
                    f" {mean['rule_violations']:.1f} | {mean['dice']:.3f} |"
                    f" {mean['beta0_error']:.1f} | {mean['beta1_error']:.1f} | {seeds} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
