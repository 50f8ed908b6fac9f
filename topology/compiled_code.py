"""Where compiled kernels are kept when the package's own folder cannot be written."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba.core.caching import CacheImpl, InTreeCacheLocator, UserWideCacheLocator

HERE = Path(__file__).parent


class ReadOnlyPackage(InTreeCacheLocator):
    """numba's answer to "where is the compiled code of this function?" for a package whose folder cannot be written.

    In the user's cache folder if that can be written, else in a folder of the user's among the temporary files.
    Compiled code that an install step left beside the sources is copied there first, so that nothing is compiled anew;
    what it lacks, as on another processor, is compiled and kept there. Where nothing can be written at all, compiled
    code is read beside the sources, and a kernel that is not there raises OSError when it is first called.
    """

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> ReadOnlyPackage | None:
        """The locator of a function of this package, None for any other."""
        if Path(py_file).parent != HERE:
            return None
        locator = cls(py_func, py_file)
        with suppress(FileNotFoundError):  # no folder for temporary files
            folder = _writable_folder(UserWideCacheLocator(py_func, py_file).get_cache_path())
            locator._cache_path = str(_with_compiled_code(Path(py_file), folder))
        return locator


@cache
def _with_compiled_code(source: Path, within: Path) -> Path:
    """The folder for one source file as it is now, with what lies compiled beside it."""
    folder = within / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    for compiled in sorted(source.parent.joinpath("__pycache__").glob(f"{source.stem}.*.nb[ci]")):
        if not (folder / compiled.name).exists():
            # At once or not at all: other processes do the same, or read it.
            handle, part = tempfile.mkstemp(dir=folder)
            os.close(handle)
            shutil.copyfile(compiled, part)
            Path(part).replace(folder / compiled.name)
    return folder


@cache
def _writable_folder(of_user: str) -> Path:
    """The given folder, or one among the temporary files that nobody else can write: compiled code is trusted."""
    with suppress(OSError):
        Path(of_user).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=of_user).close()
        return Path(of_user)
    folder = Path(tempfile.gettempdir()) / f"toposerve-kernels-{os.geteuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if folder.is_dir() and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077:
        return folder
    folder = Path(tempfile.mkdtemp(prefix="toposerve-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def register() -> None:
    """Let numba ask `ReadOnlyPackage` when it cannot write beside the sources."""
    locators = CacheImpl._locator_classes
    if ReadOnlyPackage not in locators:
        locators.insert(locators.index(InTreeCacheLocator) + 1, ReadOnlyPackage)
