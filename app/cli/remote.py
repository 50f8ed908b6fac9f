"""The commands that ask a running service: upload, train, jobs, cancel, promote, predict."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from app.cli.options import DEFAULT_URL, Key, Url, client_of, console, errors, refuse, show_table

COMPARED_FIGURES = ("dice", "cldice", "beta0_error", "beta1_error")
SHOWN_FIGURES = ("dice", "cldice", "iou", "beta0_error", "beta1_error", "beta2_error", "betti_matching_error", "hd95")
"""Figures of a model that a table in a terminal has room for."""
COUNTS = {"beta0": "components", "beta1": "holes", "beta2": "cavities", "euler": "Euler characteristic"}
EXTENSIONS = {"image/png": ".png", "application/gzip": ".nii.gz"}
SpecFile = Annotated[Path, typer.Argument(help="What to run as JSON (see /docs); - reads standard input.")]
Follow = Annotated[bool, typer.Option(help="Show progress until the job ends.")]


def upload(
    name: Annotated[str, typer.Argument(help="What the dataset is called.")],
    source: Annotated[Path, typer.Argument(help="A zip, or a folder with images/ and masks/.", exists=True)],
    label_map: Annotated[
        str | None, typer.Option(help="What the values of the masks mean, as JSON: '{\"vessel\": 255}'.")
    ] = None,
    new_version: Annotated[bool, typer.Option("--new-version", help="The dataset exists; add a version.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Store labelled images as a dataset and say what was found in them."""
    labels = None if label_map is None else _json(label_map, "--label-map")
    with client_of(url, key) as client:
        version = client.datasets.upload(name, source, label_map=labels, new_version=new_version)
        console.print(
            f"dataset [bold]{name}@{version['version']}[/]: {version['statistics']['pairs']} pairs, classes"
            f" {', '.join(version['classes'])}  {client.url}/datasets/{name}",
            highlight=False,
            soft_wrap=True,
        )
        for warning in version["warnings"]:
            console.print(f"  {warning['detail']}", style="yellow", highlight=False, markup=False)


def train(spec: SpecFile, url: Url = DEFAULT_URL, key: Key = None, follow: Follow = True) -> None:
    """Submit a training job, follow it, and end with a table of what its model scored."""
    body = _spec(spec)
    with client_of(url, key) as client:
        job = _submitted(client, {"kind": "train"} | body)
        if follow:
            _follow(client, job["id"], str(body.get("model", "train")))


def compare(spec: SpecFile, url: Url = DEFAULT_URL, key: Key = None, follow: Follow = True) -> None:
    """Train with several losses, and say which of them differ from the first beyond chance."""
    from app.progress import follow_job

    body = _spec(spec)
    with client_of(url, key) as client:
        job = _submitted(client, {"kind": "compare"} | body)
        if follow:
            ended = follow_job(client, job["id"], "compare", console)
            _print_comparison(client.jobs.comparison(job["id"]))
            if ended["state"] != "succeeded":
                raise typer.Exit(1)


def _spec(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(sys.stdin.read() if str(path) == "-" else path.read_text())
    except (OSError, ValueError) as error:
        refuse(f"Cannot read {path}: {error}", "unreadable", 2)
    if not isinstance(body, dict):
        refuse(f"{path} holds no JSON object. Write the spec of a job.", "unreadable", 2)
    return body


def _submitted(client: Any, body: dict[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = client.jobs.submit(body)
    console.print(f"job {job['id']}  {client.url}/jobs/{job['id']}", highlight=False, soft_wrap=True)
    return job


def _print_comparison(said: dict[str, Any]) -> None:
    """The figures of every candidate, its difference from the baseline, and the verdict."""
    table = Table(
        "candidate", "trained", *COMPARED_FIGURES, "Betti error", "difference", "95 % interval", "p", box=None
    )
    for row in said["candidates"]:
        figures = row["figures"]
        means = (figures.get(name, {}).get("spread", {}).get("mean") for name in (*COMPARED_FIGURES, "betti_error"))
        contrast = (figures.get("betti_error") or {}).get("contrast")
        apart = ("", "", "")
        if contrast is not None:
            ends = (contrast["low"], contrast["high"])
            interval = "" if None in ends else f"{ends[0]:+.3g} to {ends[1]:+.3g}"
            apart = (f"{contrast['mean']:+.3g}", interval, f"{contrast['p_holm']:.2g}")
        table.add_row(
            row["name"],
            f"{row['measured']} of {row['trainings']}",
            *("" if mean is None else f"{mean:.4g}" for mean in means),
            *apart,
        )
    show_table(table)
    for row in said["candidates"]:
        for reason in row["failures"]:
            console.print(f"{row['name']}: {reason}", style="yellow", highlight=False, markup=False)
    for note in said["notes"]:
        console.print(note, style="yellow", highlight=False, markup=False)
    console.print(said["verdict"], highlight=False, markup=False, soft_wrap=True)


def jobs(
    job: Annotated[str | None, typer.Argument(help="The id of a job; without it the newest jobs are listed.")] = None,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state: running, failed ...")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind: train, evaluate ...")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Jobs listed at most.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", help="Show the progress of the job until it ends.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List jobs, or show one."""
    from itertools import islice

    with client_of(url, key) as client:
        if job is not None and follow:
            _follow(client, job, f"job {job[:8]}")
            return
        shown = islice(client.jobs.list(state=state, kind=kind), limit) if job is None else [client.jobs.get(job)]
        table = Table("job", "what", "state", "done", "since", "note", box=None)
        for each in shown:
            table.add_row(*_line(each))
        show_table(table)


def cancel(
    job: Annotated[str, typer.Argument(help="The id of a job.")],
    keep: Annotated[
        bool, typer.Option("--keep", help="Stop and keep its checkpoint, from which it can go on.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Stop a job."""
    with client_of(url, key) as client:
        console.print(f"job {job} is {client.jobs.cancel(job, keep=keep)['state']}.", highlight=False)


def promote(
    model: Annotated[str, typer.Argument(help="The version: name:3.")],
    alias: Annotated[str, typer.Argument(help="The alias that shall point to it.")] = "champion",
    gate: Annotated[
        list[str] | None, typer.Option(help="A bound that its figures must keep: min_dice=0.8; may be repeated.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Point an alias to a version of a model."""
    name, _, number = model.rpartition(":")
    if not name or not number.isdecimal():
        refuse(f"{model} is no version of a model. Write name:3.", "invalid", 2)
    bounds = dict(_bound(text) for text in gate or ())
    with client_of(url, key) as client:
        moved = client.aliases.move(name, alias, int(number), gate=bounds)
        console.print(f"{name}@{alias} is {name}:{moved['version']}.", highlight=False)


def predict(
    model: Annotated[str, typer.Argument(help="name, name@alias or name:version.")],
    images: Annotated[list[Path], typer.Argument(help="Images to segment.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")] = Path(),
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Probability above which a pixel is foreground.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Segment images, write a mask for each and print its topology.

    A mask is named after its image, x.mask.png; images of one name are told apart by their folders, then by their
    endings.
    """
    from rich.progress import track

    from toposerve_client import Refused

    table = Table("image", "class", *COUNTS.values(), "mask", box=None)
    failures = 0
    named = mask_names(images)
    with client_of(url, key) as client:
        for path, name in track(named.items(), "predicting", console=errors, disable=len(named) < 2):
            try:
                answer = client.predict_file(model, path, threshold=threshold)
            except Refused as refused:
                failures += 1
                console.print(f"[red]{path}[/]: {refused}", highlight=False)
                continue
            mask = out / f"{name}.mask{EXTENSIONS[answer.media_type]}"
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask.write_bytes(answer.content)
            for found in answer.report["topology"]:
                numbers = ["" if found.get(count) is None else str(found[count]) for count in COUNTS]
                table.add_row(str(path), found["class_name"], *numbers, str(mask))
    show_table(table)
    if failures:
        raise typer.Exit(1)


def mask_names(images: Sequence[Path]) -> dict[Path, str]:
    """Image -> what its mask is called, all different: its name without ending; where two are equal, with the folders
    below the one that holds all images; where those are equal, too, with the ending. An image given twice is one.
    """
    files = {path.resolve(): path for path in reversed(images)}
    files = {path: files[path] for path in dict.fromkeys(path.resolve() for path in images)}
    folder = os.path.commonpath([path.parent for path in files])
    below = {path: path.relative_to(folder) for path in files}
    choices = (
        {path: _stem(path.name) for path in files},
        {path: str(below[path].with_name(_stem(path.name))) for path in files},
        {path: str(below[path]) for path in files},
    )
    names = next(each for each in choices if len(set(each.values())) == len(files))
    return {files[path]: name for path, name in names.items()}


def _stem(name: str) -> str:
    return Path(name.removesuffix(".gz")).stem


def _follow(client: Any, job_id: str, title: str) -> None:
    """Show a job until it ends, then what it found; the command fails when the job has."""
    from app.progress import follow_job

    ended = follow_job(client, job_id, title, console)
    if ended["state"] != "succeeded":
        raise typer.Exit(1)
    _print_figures(client.jobs.table(job_id))


def _print_figures(rows: Sequence[dict[str, Any]]) -> None:
    columns = [
        name for name in dict.fromkeys(name for row in rows for name in row) if name in ("model", *SHOWN_FIGURES)
    ]
    if not columns:
        return
    table = Table(*columns, box=None)
    for row in rows:
        cells = (row.get(name) for name in columns)
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    show_table(table)


def _line(job: dict[str, Any]) -> Sequence[str]:
    spec, progress = job["spec"], job["progress"]
    subject = " on ".join(str(spec[name]) for name in ("model", "dataset") if spec.get(name))
    note = job["error"]["detail"] if job["error"] else ""
    if job["state"] == "queued" and progress["queue_position"]:
        note = f"number {progress['queue_position']} in the queue"
    since = datetime.fromisoformat(job["created_at"]).astimezone()
    return (
        job["id"],
        f"{job['kind']} {subject}",
        job["state"],
        f"{progress['fraction']:.0%}",
        f"{since:%Y-%m-%d %H:%M}",
        note,
    )


def _json(text: str, option: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        refuse(f"{option} is not JSON ({error}).", "invalid", 2)


def _bound(text: str) -> tuple[str, Any]:
    """A bound as `min_dice=0.8`."""
    name, equals, value = text.partition("=")
    if not equals:
        refuse(f"{text} is no bound. Write --gate min_dice=0.8.", "invalid", 2)
    return name, value if name == "dataset" else _json(value, f"--gate {name}")
