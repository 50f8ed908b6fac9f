"""One line that says how far a job is, written again and again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from toposerve_client.jobs import Event

WIDTH = 30
"""Characters of the bar."""


class Bar:
    """Shows the events of a job on standard error: a bar in a terminal or notebook, else a line for each tenth."""

    def __init__(self, title: str, stream: TextIO | None = None):
        self._title, self._stream = title, stream or sys.stderr
        self._again = self._stream.isatty() or "ipykernel" in sys.modules
        self._tenth, self._open = -1, False

    def __call__(self, event: Event) -> None:
        """Show what happened."""
        if event.name == "progress":
            fraction = float(event.data.get("fraction") or 0.0)
            if self._again:
                done = round(WIDTH * fraction)
                self._write(
                    f"\r{self._title} |{'#' * done}{'.' * (WIDTH - done)}| {fraction:4.0%} {facts(event)}\x1b[K"
                )
            elif int(fraction * 10) > self._tenth:
                self._tenth = int(fraction * 10)
                self._write(f"{self._title} {fraction:4.0%} {facts(event)}\n")
        elif event.name == "state":
            reason = f": {event.data['reason']}" if event.data.get("reason") else ""
            begin = "\n" if self._open else ""
            self._write(f"{begin}{self._title} {event.data['state']}{reason}\n")

    def _write(self, text: str) -> None:
        self._open = not text.endswith("\n")
        self._stream.write(text)
        self._stream.flush()


def facts(event: Event) -> str:
    """Phase, step, loss and time left of a progress event."""
    data = event.data
    parts = [str(data["phase"])] if data.get("phase") else []
    if data.get("steps"):
        parts.append(f"step {data.get('step') or 0}/{data['steps']}")
    if data.get("loss") is not None:
        parts.append(f"loss {data['loss']:.3f}")
    if data.get("eta_s") is not None:
        minutes, seconds = divmod(round(data["eta_s"]), 60)
        parts.append(f"ETA {minutes}:{seconds:02d}")
    return "  ".join(parts)
