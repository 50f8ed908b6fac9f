"""Runs `toposerve demo`: upload, train, compare and predict, over HTTP.

A service is started on a free port; a labelled set is uploaded; a network is trained, and then for a while longer with
each of a few losses, so that they differ in the loss only; each is exported and measured on whole held-out images; the
best becomes `@champion`; it then segments held-out images and a fundus photograph, and one table says what came out and
which differences are more than chance.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from app import sandbox
from app.demo.folder import FilePair, archive, hold_out, labelled_pairs
from app.progress import follow_job
from toposerve_client import Client, ToposerveError

RECIPE: dict[str, Any] = {
    "network": {"name": "unet", "dimensions": 2, "channels": [16, 32, 64]},
    "batch": 4,
    "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 0.0001},
    "checkpoint_every": 300,
}
"""What both networks share."""

PATCH = 128
"""Side of the training patches in pixels; less where the images are smaller."""

STEPS = 1200
"""Of each network; the README says how long all take."""

SHARED = 0.75
"""Part of the steps that all networks have in common."""

FINE = {"name": "adamw", "lr": 0.0005, "weight_decay": 0.0001}
"""The optimizer of the other steps."""

BASE = [{"name": "cross_entropy"}, {"name": "dice"}]
LOSSES: dict[str, dict[str, Any]] = {
    "CE + Dice, control": {"terms": BASE},
    "+ soft clDice": {"terms": [*BASE, {"name": "soft_cldice", "weight": 0.5}]},
    "+ SCNP": {"terms": BASE, "neighbour_penalty": {"window": "auto"}},
}
"""The losses of the last steps, the first for comparison. The second is what `recipe: topology` names."""

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a supervisor, and a terminal that is closed."""

MEASURES = {
    "dice": "Dice",
    "cldice": "clDice",
    "beta0_error": "Betti-0 error",
    "beta1_error": "Betti-1 error",
    "betti_matching_error": "matching error",
}
"""What is shown, and its words. The matching error counts features that have no partner in the same place."""
REPORTED = ("beta0", "beta1", "euler", "skeleton_length", "length_unit", "branch_points", "end_points", "branches")
SYNTHETIC = 40, 24
"""Synthetic scenes to train on and to hold out."""


def run(
    console: Console,
    *,
    data: Path | None,
    foreground: int | None,
    steps: int | None,
    seed: int,
    keep: bool,
    json_file: Path | None,
    data_dir: Path,
) -> dict[str, Any]:
    """Run the demo, print what it does, and return its figures.

    Raises ToposerveError when the service says no, and SystemExit when a job fails.
    """
    began = time.monotonic()
    _end_in_order_on_signals()
    name = data.resolve().name if data else "vessels"
    _empty(data_dir)
    with service(data_dir, console, keep=keep) as address, Client(address) as client:
        train_pairs, held_pairs = hold_out(labelled_pairs(data)) if data else _synthetic(data_dir / "synthetic", seed)
        label_map = {"foreground": foreground} if foreground is not None else None
        versions = {}
        for dataset, pairs in ((name, train_pairs), (f"{name}-held-out", held_pairs)):
            versions[dataset] = client.datasets.upload(
                dataset, archive(pairs, data_dir / f"{dataset}.zip"), label_map=label_map
            )
            _print_dataset(console, dataset, versions[dataset])
        models = _models(client, console, name, steps or STEPS, {"seed": seed, "patch": _patch(versions[name])})
        champion = best(models)
        client.aliases.move(name, "champion", int(champion["name"].rpartition(":")[2]))
        predictions = [_predict(client, name, pair.image)["id"] for pair in held_pairs[:3]]
        photograph = _photograph(client, console, name, data_dir)
        figures = {
            "models": models,
            "photograph": photograph,
            "champion": champion["name"],
            "seconds": round(time.monotonic() - began, 1),
        }
        _print_figures(console, figures)
        _print_pages(console, client, name, figures, predictions, keep=keep)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def best(models: list[dict[str, Any]]) -> dict[str, Any]:
    """The model with the smallest Betti error (dimensions 0 and 1 together) among those within 0.02 of the best
    Dice.
    """
    enough = max(model["dice"] for model in models) - 0.02
    return min(
        (model for model in models if model["dice"] >= enough),
        key=lambda model: (model["beta0_error"] + model["beta1_error"], -model["cldice"]),
    )


def _patch(version: dict[str, Any]) -> list[int]:
    """Patches that fit into the smallest image, with sides that the network can halve twice."""
    sides = [int(side) for shape in version["statistics"]["shapes"] for side in shape.split(" x ")]
    side = min(PATCH, min(sides) // 4 * 4)
    return [side, side]


def _models(client: Client, console: Console, name: str, steps: int, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """What each loss makes of the same start, measured, and how it differs from the first."""
    first = max(1, round(SHARED * steps))
    start = _train(
        client, console, name, "the start of all", changes | {"steps": first, "loss": LOSSES[next(iter(LOSSES))]}
    )
    changes = changes | {"steps": max(1, steps - first), "start_from": start["name"], "optimizer": FINE}
    models: list[dict[str, Any]] = []
    for title, loss in LOSSES.items():
        made = _train(client, console, name, title, changes | {"loss": loss})
        models.append(made | _measured(client, console, name, made["name"]))
        models[-1]["differences"] = _differences(client, models[0]["name"], made["name"]) if models[1:] else {}
    return models


def _train(client: Client, console: Console, name: str, title: str, changes: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    spec = {"kind": "train", "dataset": name, "model": name, **RECIPE, **changes}
    trained = _finish(client, console, client.jobs.submit(spec)["id"], title)["result"]
    seconds = round(time.monotonic() - began, 1)
    return {"name": f"{trained['model']}:{trained['version']}", "loss": title, "seconds": seconds}


def _measured(client: Client, console: Console, name: str, model: str) -> dict[str, float]:
    evaluation = {"kind": "evaluate", "model": model, "dataset": f"{name}-held-out"}
    means = _finish(client, console, client.jobs.submit(evaluation)["id"], f"measure {model}")["result"]["means"]
    return {measure: means[measure] for measure in MEASURES}


def _differences(client: Client, control: str, model: str) -> dict[str, dict[str, Any]]:
    """Mean and 95 % interval of the differences between two versions over the held-out images, by measure."""
    return {
        row["metric"]: {name: row[name] for name in ("images", "difference", "low", "high")}
        for row in client.models.compare(control, model)
        if row["metric"] in MEASURES
    }


def _finish(client: Client, console: Console, job_id: str, title: str) -> dict[str, Any]:
    job = follow_job(client, job_id, title, console)
    if job["state"] != "succeeded":
        raise SystemExit(1)
    return job


def _predict(client: Client, name: str, path: Path) -> dict[str, Any]:
    return client.predict_file(f"{name}@champion", path, store=True).report


def _photograph(client: Client, console: Console, name: str, data_dir: Path) -> dict[str, Any]:
    """Segment the fundus photograph that scikit-image ships: 1411 x 1411, so it is cut into tiles."""
    from skimage import data

    path = data_dir / "retina.png"
    Image.fromarray(data.retina()).save(path)
    with console.status("segmenting the fundus photograph"):
        answer = _predict(client, name, path)
    report = answer["topology"][0]
    return {"id": answer["id"], "rows": answer["shape"][0], "columns": answer["shape"][1]} | {
        name: report[name] for name in REPORTED
    }


def _synthetic(folder: Path, seed: int) -> tuple[list[FilePair], list[FilePair]]:
    from app.demo.vessels import vessel_tree

    train, held = SYNTHETIC
    pairs = []
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(train + held):
        scene = vessel_tree(seed * 1000 + index)
        pair = FilePair(folder / "images" / f"tree-{index:03d}.png", folder / "masks" / f"tree-{index:03d}.png")
        Image.fromarray(scene.image).save(pair.image)
        Image.fromarray(np.where(scene.mask, 255, 0).astype(np.uint8)).save(pair.mask)
        pairs.append(pair)
    return pairs[:train], pairs[train:]


# The service --------------------------------------------------------------------------------------------------------


def _empty(data_dir: Path) -> None:
    """Remove an earlier demo, and nothing else: a folder that is not one of ours is refused."""
    if data_dir.exists() and any(data_dir.iterdir()) and not (data_dir / "service.json").exists():
        raise SystemExit(f"{data_dir} exists and is not the folder of an earlier demo. Choose another --data-dir.")
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir(parents=True)
    (data_dir / "service.json").write_text("{}")  # marks the folder as ours before anything can fail


def _end_in_order_on_signals() -> None:
    """Let the first of these signals unwind the demo, which stops its service; further ones do not disturb that."""

    def end(number: int, _frame: object) -> None:
        for each in ENDING_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in ENDING_SIGNALS:
        signal.signal(each, end)


@contextmanager
def service(data_dir: Path, console: Console, *, keep: bool) -> Iterator[str]:
    """The embedded service on a free port, stopped at the end unless it is to be kept."""
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "up",
        "--open",
        "--port",
        "0",
        "--host",
        "127.0.0.1",
        "--data-dir",
        str(data_dir),
    ]
    with (data_dir / "service.log").open("wb") as log:
        # Ctrl-C and what ends this process end the service too, unless it shall be kept.
        at_the_end = None if keep else signal.SIGTERM
        process = sandbox.start(command, when_parent_ends=at_the_end, stdout=log, stderr=subprocess.STDOUT)
    finished = False
    try:
        with console.status("starting the service"):
            address = _wait_until_ready(process, data_dir)
        console.print(f"service at [bold]{address}[/]  (log: {data_dir / 'service.log'})", highlight=False)
        yield address
        finished = True
    finally:
        if not (keep and finished):
            process.terminate()
            process.wait_or_kill(30)


def _wait_until_ready(process: sandbox.Process, data_dir: Path, *, timeout_s: float = 60) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        address = json.loads((data_dir / "service.json").read_text()).get("url")
        if address:
            try:
                with Client(address, timeout_s=5, retries=0) as client:
                    client.request("GET", "/readyz")
                return str(address)
            except ToposerveError:
                pass
        time.sleep(0.1)
    tail = (data_dir / "service.log").read_text(errors="replace")[-2000:]
    raise SystemExit(f"The service did not become ready within {timeout_s:.0f} s. The end of its log:\n{tail}")


# What is printed ---------------------------------------------------------------------------------------------------


def _print_dataset(console: Console, name: str, version: dict[str, Any]) -> None:
    statistics = version["statistics"]
    console.print(
        f"dataset [bold]{name}@{version['version']}[/]: {statistics['pairs']} pairs, classes"
        f" {', '.join(version['classes'])}",
        highlight=False,
    )
    if version["warnings"]:
        first = version["warnings"][0]["detail"]
        console.print(
            f"  {len(version['warnings'])} notes about its labels, the first: {first}", style="yellow", highlight=False
        )


def _print_figures(console: Console, figures: dict[str, Any]) -> None:
    table = Table(
        title="means over whole held-out images; * is @champion", title_justify="left", box=None, pad_edge=False
    )
    for column in ("model", "loss"):
        table.add_column(column, no_wrap=True)
    for column in ("Dice", "clDice", "Betti-0\nerror", "Betti-1\nerror", "matching\nerror"):
        table.add_column(column, justify="right")
    for model in figures["models"]:
        mark = " *" if model["name"] == figures["champion"] else ""
        numbers = (
            f"{model['dice']:.4f}",
            f"{model['cldice']:.4f}",
            f"{model['beta0_error']:.1f}",
            f"{model['beta1_error']:.1f}",
            f"{model['betti_matching_error']:.1f}",
        )
        table.add_row(model["name"] + mark, model["loss"], *numbers)
    console.print()
    console.print(table)
    for sentence in verdicts(figures["models"]):
        console.print(sentence, highlight=False, soft_wrap=True)
    photograph = figures["photograph"]
    console.print(
        f"\nfundus photograph, {photograph['rows']} x {photograph['columns']} pixels: {photograph['beta0']} components,"
        f" {photograph['beta1']} holes, Euler characteristic {photograph['euler']}, skeleton"
        f" {photograph['skeleton_length']:.0f} px, {photograph['branch_points']} branch points",
        highlight=False,
    )


def verdicts(models: list[dict[str, Any]]) -> list[str]:
    """A sentence for each loss but the first: what differs from the first beyond chance, each figure by itself."""
    told = []
    for model in models[1:]:
        sure = [
            f"{MEASURES[name]} {each['difference']:+.3g} ({each['low']:+.3g} to {each['high']:+.3g})"
            for name, each in model["differences"].items()
            if each["low"] is not None and not each["low"] <= 0 <= each["high"]
        ]
        images = max((each["images"] for each in model["differences"].values()), default=0)
        said = ", ".join(sure) if sure else "nothing"
        told.append(f"{model['loss']} beside the control, beyond the chance of {images} images: {said}.")
    return told


def _print_pages(
    console: Console, client: Client, name: str, figures: dict[str, Any], predictions: list[str], *, keep: bool
) -> None:
    control, *others = figures["models"]
    shown = next((model for model in others if model["name"] == figures["champion"]), others[0])
    first, second = (model["name"].rpartition(":")[2] for model in (control, shown))
    pages = {
        "the photograph": f"/predictions/{figures['photograph']['id']}",
        "a held-out image": f"/predictions/{predictions[0]}",
        "the two models": f"/compare?a={name}:{first}&b={name}:{second}",
    }
    console.print(f"\nall of it took {figures['seconds'] / 60:.1f} minutes; open in a browser:", highlight=False)
    for what, path in pages.items():
        console.print(f"  {what:18} {client.url}{path}", highlight=False, soft_wrap=True)
    if not keep:
        console.print("  (the service stops now; --keep leaves it running)", style="dim")
