"""Child processes with walls, for what strangers send: decoders and networks run there, where they can only fail.

A child gets no secret of the service in its environment, one thread, and limits that it sets itself before it looks at
a byte.
"""

from __future__ import annotations

import os
import resource

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH")
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def environment() -> dict[str, str]:
    """What a child may know of ours: where programs are, no database, no key.

    Each thread more would cost address space.
    """
    return {name: os.environ[name] for name in KEPT if name in os.environ} | ALONE


def wall_in(memory_bytes: int) -> None:
    """Bound the address space of this process and keep it from writing core files."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def more_processor(seconds: int) -> None:
    """Let this process use that much processor time from now on; then the kernel ends it (SIGXCPU)."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent.ru_utime + spent.ru_stime) + 1 + seconds, hard))
