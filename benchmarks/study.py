"""Which loss helps on which set: one comparison for each, asked of a running service.

    OMP_NUM_THREADS=1 TOPOSERVE_TRAIN_THREADS=1 toposerve up --open --data-dir study
    python -m benchmarks.study --data ../shared/data --out study.json

The shortlist of `recipe: auto` on three folds and three seeds: a U-Net 16/32/64, 1000 steps with cross-entropy and
Dice, then 400 with each candidate and, for the baseline, with nothing added. What was asked is kept in the file, so a
study that was stopped goes on where it was: a comparison that failed or was stopped is resumed, one that has succeeded
is read again. The answers are kept beside the ids; `--table` prints them in Markdown and asks nothing. `--workers` of
`toposerve up`, or several workers on one Postgres, share the trainings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from app.comparison.recipes import SHORTLIST
from toposerve_client import Client, Refused

SETS: dict[str, dict[str, int]] = {
    "isbi12": {"background": 255, "membrane": 0},
    "chase_db1": {"background": 0, "vessel": 255},
}
"""Folder -> what the values of its masks mean."""
FIGURES = ("dice", "cldice", "beta0_error", "beta1_error", "betti_error", "betti_matching_error", "adapted_rand_error")


def spec_of(name: str, *, steps: int, first: int, folds: int, seeds: int) -> dict[str, Any]:
    """The comparison of a set."""
    return {
        "kind": "compare",
        "dataset": name,
        "training": {
            "network": {"channels": [16, 32, 64]},
            "patch": [128, 128],
            "batch": 4,
            "steps": steps,
            "optimizer": {"name": "adamw", "lr": 0.0005},
            "folds": folds,
        },
        "pretraining": {"steps": first, "optimizer": {"name": "adamw", "lr": 0.002}},
        "losses": [each.model_dump(mode="json") for each in SHORTLIST],
        "seeds": list(range(seeds)),
    }


def study(client: Client, data: Path, out: Path, names: list[str], **size: int) -> dict[str, Any]:
    """Run what the file does not hold yet, and keep each answer as soon as it is there."""
    known: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for name in names:
        spec = spec_of(name, **size)
        asked = known.get(name, {})
        if asked.get("spec") != spec:
            try:
                client.datasets.upload(name, data / name, label_map=SETS[name])
            except Refused as refused:
                if refused.code != "conflict":
                    raise
            asked = {"spec": spec, "job": client.jobs.submit(spec)["id"]}
            _keep(out, known | {name: asked})
        elif client.jobs.get(asked["job"])["state"] in ("failed", "cancelled", "interrupted"):
            client.jobs.resume(asked["job"])
        known[name] = asked
    for name in names:
        asked = known[name]
        client.jobs.wait(asked["job"], progress=name, check=False)
        asked["answer"] = client.jobs.comparison(asked["job"])
        _keep(out, known)
    return known


def _keep(out: Path, known: dict[str, Any]) -> None:
    draft = out.with_suffix(".draft")
    draft.write_text(json.dumps(known, indent=1) + "\n")
    draft.replace(out)


def table_of(known: dict[str, Any]) -> str:
    """The answers as Markdown: means, and the difference in Betti error with its interval and corrected p."""
    lines = []
    for name, asked in known.items():
        if (answer := asked.get("answer")) is None:
            continue
        lines += [f"**{name}**, {answer['images']} images. {answer['verdict']}", ""]
        lines += [f"| loss | trainings | {' | '.join(FIGURES)} | difference | 95 % interval | p |"]
        lines += ["|---" * (len(FIGURES) + 5) + "|"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in answer["candidates"]] + [""]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    figures = row["figures"]
    means = [f"{figures[name]['spread']['mean']:.4g}" if name in figures else "" for name in FIGURES]
    contrast = (figures.get("betti_error") or {}).get("contrast")
    apart = ["", "", ""]
    if contrast is not None:
        ends = (contrast["low"], contrast["high"])
        interval = "" if None in ends else f"{ends[0]:+.3g} to {ends[1]:+.3g}"
        apart = [f"{contrast['mean']:+.3g}", interval, f"{contrast['p_holm']:.2g}"]
    return [row["name"], f"{row['measured']} of {row['trainings']}", *means, *apart]


def main(arguments: list[str] | None = None) -> None:
    """Read the options, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description="Which loss helps on which set.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sets")
    parser.add_argument("--out", type=Path, default=Path("study.json"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--url", default=None, help="of the service; TOPOSERVE_URL unless given")
    parser.add_argument("--steps", type=int, default=400, help="of each candidate")
    parser.add_argument("--first", type=int, default=1000, help="steps of the shared start")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what the file holds, and ask nothing")
    given = parser.parse_args(arguments)
    if given.table:
        print(table_of(json.loads(given.out.read_text())))
        return
    size = {"steps": given.steps, "first": given.first, "folds": given.folds, "seeds": given.seeds}
    with Client(given.url) as client:
        print(table_of(study(client, given.data, given.out, given.sets, **size)))


if __name__ == "__main__":
    main()
