"""Shows a running job on the command line, as a bar or as lines."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from toposerve_client import Client, Event
from toposerve_client.progress import facts


def follow_job(client: Client, job_id: str, title: str, console: Console) -> dict[str, Any]:
    """Show a job until it ends and return it."""
    with _Bar(console, title) as bar:
        job = client.jobs.wait(job_id, on_event=bar.show, check=False)
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

    def show(self, event: Event) -> None:
        """What happened to the job."""
        if event.name == "progress":
            self.progress(event)
        elif event.name == "metric":
            self.metrics(event.data)
        elif event.name == "state" and event.data.get("reason"):
            self.say(event.data["reason"])

    def progress(self, event: Event) -> None:
        """One progress event: step, loss, time left."""
        fraction, shown = event.data.get("fraction") or 0.0, facts(event)
        self._bar.update(self._task, completed=fraction, facts=shown)
        tenth = int(fraction * 10)
        if not self._console.is_terminal and tenth > self._last:
            self._last = tenth
            self._console.print(f"{self._title}  {fraction:4.0%}  {shown}", highlight=False)

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
