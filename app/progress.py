"""Shows a running job on the command line, as a bar or as lines."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from app.client import Client


def follow_job(client: Client, job_id: str, title: str, console: Console) -> dict[str, Any]:
    """Show a job until it ends and return it."""
    with _Bar(console, title) as bar:
        for event, data in client.follow(job_id):
            if event == "progress":
                bar.progress(data)
            elif event == "metric":
                bar.metrics(data)
            elif event == "state" and data.get("reason"):
                bar.say(data["reason"])
    job = client.job(job_id)
    if job["state"] != "succeeded":
        why = job["error"]["detail"] if job["error"] else "no reason recorded"
        console.print(f"[bold red]{title}: {job['state']}[/]  {why}", highlight=False)
    return job


class _Bar:
    def __init__(self, console: Console, title: str):
        self._console, self._title, self._last = console, title, -1
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=1.0, facts="waiting for a worker")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def progress(self, data: dict[str, Any]) -> None:
        """One progress event: step, loss, time left."""
        fraction = data.get("fraction") or 0.0
        facts = _facts(data)
        self._bar.update(self._task, completed=fraction, facts=facts)
        tenth = int(fraction * 10)
        if not self._console.is_terminal and tenth > self._last:
            self._last = tenth
            self._console.print(f"{self._title}  {fraction:4.0%}  {facts}", highlight=False)

    def metrics(self, data: dict[str, Any]) -> None:
        """One validation."""
        shown = [
            f"{name} {value:.3g}"
            for name, value in data.get("metrics", {}).items()
            if name in ("dice", "cldice", "beta0_error", "beta1_error")
        ]
        self.say(f"step {data.get('step')}: " + ", ".join(shown))

    def say(self, sentence: str) -> None:
        """A line above the bar."""
        self._console.print(f"{self._title}  {sentence}", highlight=False, style="dim")


def _facts(data: dict[str, Any]) -> str:
    parts = [str(data["phase"])] if data.get("phase") else []
    if data.get("steps"):
        parts.append(f"step {data.get('step') or 0}/{data['steps']}")
    if data.get("loss") is not None:
        parts.append(f"loss {data['loss']:.3f}")
    if data.get("eta_s") is not None:
        minutes, seconds = divmod(round(data["eta_s"]), 60)
        parts.append(f"ETA {minutes}:{seconds:02d}")
    return "  ".join(parts)
