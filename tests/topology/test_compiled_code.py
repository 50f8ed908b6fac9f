"""Kernels work where the package cannot be written, and use the compiled code that lies beside the sources."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.topology.masks import ROOT
from topology import compiled_code

CALL = """
import json, sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from topology import components
euler = components.euler_characteristic(np.ones((4, 5)))
kernels = [components._euler, components._combined_runs]
print(json.dumps([euler, str(kernels[0]._cache.cache_path), sum(sum(k.stats.cache_misses.values()) for k in kernels)]))
"""


@pytest.fixture
def package(tmp_path):
    """A folder with a copy of the package's sources, without compiled code."""
    shutil.copytree(ROOT / "topology", tmp_path / "site" / "topology", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "site"


def _environment(tmp_path, **changes):
    left = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))}
    return left | {"HOME": "/proc/none", "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", **changes}


def _call(package, environment, *, read_only):
    """[Euler number of a full mask, folder of the compiled code, kernels that had to be compiled], in a new process."""
    command = [sys.executable, "-c", CALL]
    if read_only:
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@"'
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(package), *command]
        probe = subprocess.run([*command[:6], str(package), "true"], check=False, capture_output=True, text=True)
        if probe.returncode:
            pytest.skip(f"a folder cannot be mounted read-only here: {probe.stderr.strip()}")
    answer = subprocess.run(command, check=False, cwd=package, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_kernels_run_where_neither_package_nor_home_can_be_written(package, tmp_path):
    environment = _environment(tmp_path)
    euler, folder, compiled = _call(package, environment, read_only=True)
    assert euler == 1 and compiled > 0
    assert Path(folder).is_relative_to(tmp_path) and not Path(folder).is_relative_to(package)
    assert Path(folder).parent.stat().st_mode & 0o777 == 0o700
    assert _call(package, environment, read_only=True) == [1, folder, 0]


def test_read_only_package_uses_the_compiled_code_beside_its_sources(package, tmp_path):
    environment = _environment(tmp_path)
    _, beside, _ = _call(package, environment, read_only=False)
    assert Path(beside) == package / "topology" / "__pycache__"
    euler, folder, compiled = _call(package, environment, read_only=True)
    assert (euler, compiled) == (1, 0) and folder != beside


def test_compiled_code_of_changed_sources_is_not_used(package, tmp_path):
    environment = _environment(tmp_path)
    _call(package, environment, read_only=False)
    source = package / "topology" / "components.py"
    source.write_text(
        source.read_text().replace("return across - line if closed", "return across - line + 7 if closed")
    )
    euler, _, compiled = _call(package, environment, read_only=True)
    assert euler == 8 and compiled > 0


def test_a_folder_that_others_can_write_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"toposerve-kernels-{os.geteuid()}").mkdir(mode=0o777)
    (tmp_path / f"toposerve-kernels-{os.geteuid()}").chmod(0o777)
    folder = compiled_code._writable_folder.__wrapped__("/proc/none")
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700


def test_compiled_code_is_read_in_place_where_nothing_can_be_written(monkeypatch):
    def refuse(*_):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(compiled_code, "_writable_folder", refuse)
    source = compiled_code.HERE / "bits.py"
    locator = compiled_code.ReadOnlyPackage.from_function(_call, str(source))
    assert Path(locator.get_cache_path()) == compiled_code.HERE / "__pycache__"


def test_functions_of_other_packages_keep_numbas_own_choice():
    assert compiled_code.ReadOnlyPackage.from_function(_call, __file__) is None
