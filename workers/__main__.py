"""`python -m workers`: a worker without a broker, which polls the table of jobs.

One thread for each lane (`--lanes train,quick`).

SIGTERM (or Ctrl-C) ends it within seconds: a training writes a checkpoint and goes back to the queue.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Sequence

from app import logs
from app.job_kinds import LANES
from app.settings import Settings, get_settings
from workers.work import MODELS
from workers.worker import Worker


def lanes_of(text: str) -> tuple[str, ...]:
    """The lanes that a comma-separated list names."""
    lanes = tuple(dict.fromkeys(filter(None, text.split(","))))
    unknown = [lane for lane in lanes if lane not in LANES]
    if unknown or not lanes:
        raise argparse.ArgumentTypeError(
            f"{text!r} names {', '.join(unknown) or 'no lane'}; the lanes are {', '.join(LANES)}"
        )
    return lanes


def serve(
    settings: Settings, lanes: Sequence[str], *, models: tuple[str, ...] = MODELS, parent: int | None = None
) -> None:
    """Work until SIGTERM, or until the process `parent` that started this one is gone."""
    worker = Worker(settings, lanes, models=models)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    worker.start()
    threads = [threading.Thread(target=worker.serve, args=(lane,), name=f"lane {lane}") for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(timeout=0.5)
            if parent is not None and os.getppid() != parent:
                worker.stop()
    worker.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="Run queued jobs.")
    parser.add_argument(
        "--lanes",
        type=lanes_of,
        default=LANES,
        help="which queues to serve, such as train,quick (default: both)",
    )
    parser.add_argument("--parent", type=int, help="end when this process, which started the worker, has ended")
    given = parser.parse_args()
    settings = get_settings()
    logs.set_up(settings)
    serve(settings, given.lanes, parent=given.parent)


if __name__ == "__main__":
    main()
