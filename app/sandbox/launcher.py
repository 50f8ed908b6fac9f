"""Sets the limits of the process that it runs in and becomes another program.

    python launcher.py [--parent PID --parent-ends SIGNAL] [--memory BYTES] -- PROGRAM ARGUMENTS...

It is run by its path and imports the standard library only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def end_with(parent: int, number: int) -> None:
    """Ask Linux to send a signal when the parent ends, however it ends; elsewhere an orphan runs on."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def main() -> None:
    """Set the limits and become the program."""
    parser = argparse.ArgumentParser(prog="launcher.py")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--parent-ends", type=int)
    parser.add_argument("--memory", type=int)
    parser.add_argument("program", nargs="+")
    given = parser.parse_args()
    if given.parent:
        end_with(given.parent, given.parent_ends)
    if given.memory:
        resource.setrlimit(resource.RLIMIT_AS, (given.memory, given.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.execvp(given.program[0], given.program)


if __name__ == "__main__":
    main()
