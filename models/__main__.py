"""`python -m models train | export | probe`: the command line of training and export.

Events, one JSON object per line, go to standard output; everything else goes to standard error. Exit status: 0 done; 3
stopped by SIGTERM after writing a checkpoint; 2 the specification or the data cannot be used; 1 anything else.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from models.errors import RunError, Stopped, is_full
from models.events import Events, own_stdout


class StopSignal:
    """Remembers that SIGTERM (or SIGINT, from a keyboard) has come."""

    def __init__(self):
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        self.received = True

    def __call__(self):
        return self.received


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m models`."""
    root = argparse.ArgumentParser(prog="python -m models", description="Train a network, or export one to ONNX.")
    commands = root.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train by a specification on a folder of labelled images")
    train.add_argument(
        "--spec", type=Path, required=True, metavar="FILE", help="JSON; models/spec.py names its fields and defaults"
    )
    train.add_argument("--resume", type=Path, metavar="FILE", help="a checkpoint of the same run")
    train.add_argument("--start-from", type=Path, metavar="FILE", help="weights of another run of the same network")
    export = commands.add_parser("export", help="write a checked ONNX model and its manifest")
    export.add_argument("--weights", type=Path, required=True, metavar="FILE", help="best.safetensors of a run")
    export.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest allowed difference of a probability (default %(default)s)",
    )
    probe = commands.add_parser("probe", help="measure how hard each term of a loss pulls, without learning")
    probe.add_argument("--spec", type=Path, required=True, metavar="FILE", help="as of train")
    probe.add_argument("--start-from", type=Path, metavar="FILE", help="weights of a run of the same network")
    probe.add_argument("--batches", type=int, default=10, metavar="N", help="how many (default %(default)s)")
    for command in (train, export, probe):
        command.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="holds dataset.json")
    for command in (train, export):
        command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made when missing")
    return root


def run(arguments: argparse.Namespace, events: Events, stopping: Callable[[], bool]) -> None:
    """Do what the command says; torch is loaded here, after signals are looked after."""
    if arguments.command == "train":
        from models.spec import load_spec
        from models.train import train

        train(
            load_spec(arguments.spec),
            arguments.data,
            arguments.out,
            events=events,
            resume=arguments.resume,
            start_from=arguments.start_from,
            stopping=stopping,
        )
    elif arguments.command == "probe":
        from models.probe import probe
        from models.spec import load_spec

        found = probe(
            load_spec(arguments.spec),
            arguments.data,
            events=events,
            batches=arguments.batches,
            start_from=arguments.start_from,
        )
        events("done", **found)
    else:
        from models.export import export

        facts = export(arguments.weights, arguments.data, arguments.out, tolerance=arguments.tolerance)
        events("done", **facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of one command."""
    stopping = StopSignal()
    arguments = parser().parse_args(argv)
    events = Events(own_stdout())
    try:
        run(arguments, events, stopping)
        return 0
    except Stopped as stopped:
        return stopped.exit_status
    except RunError as error:
        events("error", code=error.code, message=str(error))
        return error.exit_status
    except MemoryError:
        traceback.print_exc()
        events(
            "error",
            code="resource_exhausted",
            message=(
                "The images or the network do not fit in memory. Use smaller or fewer images, or a smaller network."
            ),
        )
        return 1
    except Exception as error:
        traceback.print_exc()
        if is_full(error):
            events("error", code="storage_full", message="There is no room on the disk. Make room and resume.")
        else:
            events("error", code="internal", message=f"The run failed unexpectedly: {type(error).__name__}: {error}")
        return 1


def leave(status: int) -> NoReturn:
    """End this process at once: an interpreter that loaded torch needs seconds to take itself apart, and every file
    has been written and closed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
