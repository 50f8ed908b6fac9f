"""A program that dies with the worker that started it and has a wall around its memory.

    python -m workers.cage --parent PID [--memory BYTES] -- PROGRAM ARGUMENTS...

The limits are set in the new process, which then becomes the program. Setting them between fork and exec inside the
worker would run Python in a copy of a process whose other threads hold locks.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with(parent: int) -> None:
    """Ask Linux for SIGKILL when the parent ends, however it ends; elsewhere an orphan runs on, and its writes are
    fenced anyway.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def main() -> None:
    """Set the limits and become the program."""
    parser = argparse.ArgumentParser(prog="python -m workers.cage")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--memory", type=int)
    parser.add_argument("program", nargs="+")
    arguments = parser.parse_args()
    die_with(arguments.parent)
    if arguments.memory:
        resource.setrlimit(resource.RLIMIT_AS, (arguments.memory, arguments.memory))
    os.execvp(arguments.program[0], arguments.program)


if __name__ == "__main__":
    main()
