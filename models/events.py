"""Events of a run, one JSON object per line on standard output."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

STEP_INTERVAL_S = 0.5  # a step event every half second is enough for a progress bar and cheap to store


def _finite(value):
    """JSON has no NaN and no infinity; a figure that does not exist is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Events:
    """Writes events, one line each, flushed.

    stream  text stream; None: standard output
    clock   seconds, monotonic; only the distance between steps is used
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._last_step = -math.inf

    def __call__(self, event: str, **facts: Any) -> None:
        self._stream.write(json.dumps({"event": event, **_finite(facts)}, allow_nan=False) + "\n")
        self._stream.flush()

    def step(self, *, last: bool, **facts: Any) -> None:
        """A step event, unless one was written less than half a second ago; the last step is always written."""
        now = self._clock()
        if last or now - self._last_step >= STEP_INTERVAL_S:
            self._last_step = now
            self("step", **facts)

    def log(self, message: str, level: str = "info") -> None:
        self("log", level=level, message=message)


def own_stdout() -> TextIO:
    """A stream on the real standard output, which from then on carries events only.

    Whatever libraries print, in Python or below it, goes to standard error.
    """
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream
