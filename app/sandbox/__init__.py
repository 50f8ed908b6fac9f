"""Child processes with limits: decoders, trials of foreign networks, trainings and exports.

A process in the sandbox has the environment variables of `ALLOWED` and no other, a process group of its own, a memory
limit where one is given, no core files, and it ends with the process that started it:

    with sandbox.start([sys.executable, "-m", "models", "train", ...], memory_bytes=4 * GiB) as process:
        ...
        status = process.wait_or_kill(10)

`launcher.py` is the program that sets the limits in the new process and then becomes the program that was asked for:
setting them between fork and exec would run Python in a copy of a process whose other threads hold locks.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any

ALLOWED = frozenset(
    [
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "XDG_CACHE_HOME"),
        *("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUBLAS_WORKSPACE_CONFIG"),
        *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    ]
)
"""Variables that a process in the sandbox may have: where programs, caches and temporary files are, language and time
zone, threads and GPUs. No address, no credential, no setting of the service.
"""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LAUNCHER = str(Path(__file__).with_name("launcher.py"))


def environment(*, threads: int | None = None, gpu: bool = True) -> dict[str, str]:
    """The environment of a process in the sandbox.

    threads  of each numerical library; None leaves it to them. Each thread costs address space.
    gpu      False hides every CUDA device
    """
    allowed = {name: value for name, value in os.environ.items() if name in ALLOWED}
    if threads is not None:
        allowed |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    return allowed if gpu else allowed | {"CUDA_VISIBLE_DEVICES": ""}


class Process(subprocess.Popen[Any]):
    """A process in the sandbox; signals reach its whole group, and leaving the block kills what is left of it."""

    def send_signal(self, sig: int) -> None:
        """To the process and all that it started, also when it has ended itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, sig)

    def wait_or_kill(self, timeout_s: float) -> int:
        """The exit status, negative for a signal; a process that lives on after the timeout is killed."""
        try:
            return self.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        super().__exit__(kind, error, traceback)


def start(
    command: Sequence[str],
    *,
    memory_bytes: int | None = None,
    threads: int | None = None,
    gpu: bool = True,
    when_parent_ends: signal.Signals | None = signal.SIGKILL,
    stdin: Any = subprocess.DEVNULL,
    stdout: Any = subprocess.DEVNULL,
    stderr: Any = subprocess.DEVNULL,
    **popen: Any,
) -> Process:
    """Start a program in the sandbox.

    memory_bytes      limit of its address space; None for no limit
    threads, gpu      as in `environment`
    when_parent_ends  the signal that it gets when this process ends, however that ends; None lets it live on. On Linux
                      only: elsewhere it lives on.
    popen             as for subprocess.Popen
    """
    limits = ["--memory", str(memory_bytes)] if memory_bytes else []
    limits += ["--parent", str(os.getpid()), "--parent-ends", str(int(when_parent_ends))] if when_parent_ends else []
    # -I -S: no variable and no installed package changes what the launcher does.
    launched = [sys.executable, "-I", "-S", LAUNCHER, *limits, "--", *command]
    popen |= {"stdin": stdin, "stdout": stdout, "stderr": stderr, "start_new_session": True}
    process = partial(Process, launched, env=environment(threads=threads, gpu=gpu), **popen)
    return _starter().submit(process).result()


@cache
def _starter() -> ThreadPoolExecutor:
    """The thread that starts every process: to Linux the parent of a process is the thread that started it, so that has
    to be one which lives as long as this process does.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="sandbox starter")


os.register_at_fork(after_in_child=_starter.cache_clear)  # a fork has none of its parent's threads


def limit_processor_time(seconds: int) -> None:
    """Let this process use that much processor time from now on; then the kernel ends it by SIGXCPU."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent.ru_utime + spent.ru_stime) + 1 + seconds, hard))
