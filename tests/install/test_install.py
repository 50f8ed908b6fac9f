"""The pins, the wheel and the gateway on every Python that pyproject.toml promises.

These tests ask a package index. Where none answers they are skipped, and never in CI.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.gateway import Gateway
from tests.services import ROOT, Process, free_port, wait_for
from tests.serving import networks

PROJECT, CLIENT = (
    tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, ROOT / "client")
)
CONSTRAINTS = ROOT / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PINNED = f"--constraint={CONSTRAINTS}"
PACKAGES = ("app", "migrations", "models", "topology", "workers")
TORCH = ("torch", "monai")
"""What needs torch's companions, which not every index holds for every Python."""
COMPANION = re.compile(r"(nvidia|cuda|triton|setuptools)\b")
UNREACHABLE = "after connection broken by"


def pip(*arguments: str, python: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run our pip in a Python, which need not have one, and keep what it says."""
    return said_by(sys.executable, "-m", "pip", f"--python={python}", *arguments)


def said_by(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program and keep its answer, whatever its exit status."""
    return subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | variables)


@pytest.fixture(scope="session")
def package_index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package index answers; skipped without one, and failed in CI."""
    folder = tmp_path_factory.mktemp("reachable")
    asked = pip("download", "--retries=1", "--no-deps", "--no-cache-dir", f"--dest={folder}", pinned("iniconfig"))
    if asked.returncode and UNREACHABLE in asked.stderr and "CI" not in os.environ:
        pytest.skip("no package index answers: " + asked.stderr.strip().splitlines()[-1])
    assert asked.returncode == 0, asked.stderr


def wheel_of(folder: Path, packages: Sequence[str], source: Path) -> Path:
    """The wheel of a folder of this tree, built from a copy so that no build folder is left in it."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(folder / name, source)
    for package in packages:
        shutil.copytree(folder / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    built = pip("wheel", "--quiet", "--no-deps", f"--wheel-dir={source / 'dist'}", str(source))
    assert built.returncode == 0, built.stderr
    return next((source / "dist").glob("*.whl"))


@pytest.fixture(scope="session")
def wheel(package_index: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the service."""
    return wheel_of(ROOT, PACKAGES, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def client_wheel(package_index: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the client."""
    return wheel_of(ROOT / "client", ["toposerve_client"], tmp_path_factory.mktemp("client"))


def pinned(name: str) -> str:
    """The line of constraints.txt that pins a package."""
    return next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith(f"{name}=="))


def requirements(version: str) -> list[str]:
    """Everything that pyproject.toml asks of an index for a Python, extras included, and what the client asks for."""
    extras = (one for extra in PROJECT["optional-dependencies"].values() for one in extra)
    asked = [*PROJECT["dependencies"], *extras, *CLIENT["dependencies"]]
    wanted = [one for one in map(Requirement, asked) if one.name != CLIENT["name"]]
    held = [one for one in wanted if one.marker is None or one.marker.evaluate({"python_version": version})]
    return [str(one).partition(";")[0].strip() for one in held]


def needs_torch(requirement: str) -> bool:
    """Whether a requirement is torch or brings it."""
    return Requirement(requirement).name in TORCH


def resolved(version: str, folder: Path, wanted: list[str], *options: str) -> tuple[set[str], str]:
    """Names of what pip would install for a Python of this version, and what it said when there is no answer.

    pip reads environment markers with the Python it runs in, so a version that is at hand resolves for itself.
    """
    own = python_at_hand(version)
    foreign = [] if own else [f"--python-version={version}", f"--target={folder / 'target'}"]
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    asked = pip(
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--only-binary=:all:",
        f"--report={report}",
        *foreign,
        *options,
        *wanted,
        python=own or sys.executable,
    )
    if asked.returncode:
        return set(), asked.stderr
    return {canonicalize_name(one["metadata"]["name"]) for one in json.loads(report.read_text())["install"]}, ""


def python_at_hand(version: str) -> str | None:
    """A Python of this version on the PATH, or one that pyenv holds; None where there is none."""
    if shutil.which(f"python{version}") is None:
        return None
    held = said_by("pyenv", "versions", "--bare").stdout.split() if shutil.which("pyenv") else []
    every = {"PYENV_VERSION": ":".join(held)} if held else {}
    return said_by(f"python{version}", "-c", "import sys; print(sys.executable)", **every).stdout.strip() or None


def test_pyproject_makefile_and_readme_promise_the_pythons_that_are_tested():
    first, last = PYTHONS[0], PYTHONS[-1]
    after = f"3.{int(last.split('.')[1]) + 1}"
    assert PROJECT["requires-python"] == f">={first},<{after}"
    assert f"Python {first} to {last}" in (ROOT / "Makefile").read_text()
    assert f"Python {first} to {last}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("version", PYTHONS)
def test_pins_resolve(version: str, package_index: None, tmp_path: Path):
    names, said = resolved(version, tmp_path, requirements(version), PINNED)
    missing = re.search("No matching distribution found for (.*)", said)
    if missing and COMPANION.match(missing[1]):
        names, said = resolved(
            version, tmp_path, [one for one in requirements(version) if not needs_torch(one)], PINNED
        )
        alone = [one for one in requirements(version) if needs_torch(one)]
        torch, said_of_torch = resolved(version, tmp_path, alone, PINNED, "--no-deps")
        assert torch, said_of_torch
    assert names, said
    pins = {canonicalize_name(line.split("==")[0]) for line in CONSTRAINTS.read_text().splitlines() if "==" in line}
    assert not {name for name in names - pins if not COMPANION.match(name)}, "without a pin in constraints.txt"


@pytest.mark.parametrize("version", PYTHONS)
def test_pins_of_the_kserve_client_exist(version: str, package_index: None, tmp_path: Path):
    lines = [line.partition("#")[0].strip() for line in (ROOT / "tests/protocols/kserve.txt").read_text().splitlines()]
    listed = [Requirement(line) for line in lines if line]
    wanted = [one for one in listed if one.marker is None or one.marker.evaluate({"python_version": version})]
    names, said = resolved(version, tmp_path, [f"{one.name}{one.specifier}" for one in wanted], "--no-deps")
    assert len(names) == len(wanted), said


def test_wheel_holds_every_file_of_the_packages(wheel: Path):
    held = set(zipfile.ZipFile(wheel).namelist())
    here = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here - held == set()
    assert "migrations/alembic.ini" in held


@pytest.fixture(params=PYTHONS)
def python(request: pytest.FixtureRequest) -> str:
    """Each Python at hand."""
    found = python_at_hand(request.param)
    if found is None:
        pytest.skip(f"no python{request.param} is at hand")
    return found


def environment_with(python: str, folder: Path, *wheels: Path | str) -> Path:
    """The programs of a new environment that holds these wheels and what they need, and nothing else."""
    made = said_by(python, "-m", "venv", "--without-pip", str(folder))
    assert made.returncode == 0, made.stderr
    # Without bytecode of what is never imported, which takes longer than the rest.
    options = ["install", "--quiet", "--no-compile", PINNED]
    installed = pip(*options, *map(str, wheels), python=folder / "bin" / "python")
    assert installed.returncode == 0, installed.stderr
    return folder / "bin"


@pytest.fixture
def gateway_alone(python: str, wheel: Path, client_wheel: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a gateway installed without any extra in a new environment of each Python at hand."""
    programs = environment_with(python, tmp_path / "venv", wheel, client_wheel)
    port = free_port()
    command = [str(programs / "toposerve"), "up", f"--port={port}", "--workers=0", f"--data-dir={tmp_path / 'data'}"]
    process = Process(command, log=tmp_path / "gateway.log", cwd=tmp_path)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(address + "/livez"), seconds=60, what=process.output)
        yield address
    finally:
        process.terminate()


def answers(address: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_gateway_alone_is_ready(gateway_alone: str):
    with urllib.request.urlopen(gateway_alone + "/readyz", timeout=10) as answer:
        ready = json.load(answer)
    assert ready["checks"]["database"]["status"] == "ok"


# The client ---------------------------------------------------------------------------------------------------------

USE_OF_THE_CLIENT = """
import asyncio, importlib.util, sys
import numpy as np
from toposerve_client import AsyncClient, Client, Refused

for name in ("fastapi", "sqlalchemy", "torch", "PIL", "pydantic", "app", "models", "workers", "topology"):
    assert importlib.util.find_spec(name) is None, name
image = np.zeros((40, 56), np.uint8)
image[8:32, 8:32] = 255
with Client() as client:
    mask, report = client.predict("vessels", image, expect="beta0:1")
assert (mask.shape, mask.dtype, report["topology"][0]["beta0"]) == (image.shape, np.uint8, 1), report

async def asked():
    async with AsyncClient() as client:
        return await client.predict("vessels", image)

np.testing.assert_array_equal(asyncio.run(asked()).mask, mask)
try:
    Client().predict("arteries", image)
except Refused as refused:
    print(refused)
"""


def test_client_alone_in_a_new_environment_segments_an_image(
    python: str, client_wheel: Path, sqlite_gateway: Gateway, tmp_path: Path
):
    sqlite_gateway.register("vessels", networks.through(), scaling=networks.PLAIN)
    programs = environment_with(python, tmp_path / "venv", client_wheel)
    who = {"TOPOSERVE_URL": sqlite_gateway.url, "TOPOSERVE_KEY": sqlite_gateway.keys["clinician"], "PYTHONPATH": ""}
    used = said_by(str(programs / "python"), "-P", "-W", "error", "-c", USE_OF_THE_CLIENT, **who)
    assert used.returncode == 0 and "arteries" in used.stdout, used.stdout + used.stderr


def test_client_needs_httpx_and_numpy_and_puts_one_name_on_the_path(client_wheel: Path):
    held = zipfile.ZipFile(client_wheel).namelist()
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"toposerve_client"}
    assert "toposerve_client/py.typed" in held
    assert {Requirement(one).name for one in CLIENT["dependencies"]} == {"httpx", "numpy"}
    assert CLIENT["version"] == PROJECT["version"] and CLIENT["requires-python"] in PROJECT["requires-python"]


def test_table_becomes_a_dataframe_where_pandas_is_installed(client_wheel: Path, tmp_path: Path):
    programs = environment_with(sys.executable, tmp_path / "venv", f"{client_wheel}[tables]")
    code = """
from toposerve_client import Table
frame = Table([{"model": "a:1", "dice": 0.5}, {"model": "b:1", "dice": None, "hd95": 2}]).to_pandas()
assert list(frame.columns) == ["model", "dice", "hd95"] and frame["dice"].mean() == 0.5 and len(frame) == 2
"""
    used = said_by(str(programs / "python"), "-P", "-c", code, PYTHONPATH="")
    assert used.returncode == 0, used.stderr
