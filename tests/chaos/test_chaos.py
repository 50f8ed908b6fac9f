"""A few faults in every test run; `make chaos` strikes with all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from app.store.tables import ModelVersion
from tests.chaos.faults import FAULTS
from tests.chaos.run import SHAPES, strike, world_of
from tests.chaos.world import FAILPOINTS, Run, World
from tests.services import ROOT

FEW = ("F1", "F15b", "F16a")
"""A killed training, a gateway that dies after a commit, and a worker before one."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with world_of("embedded", seed=7) as world:
        yield world


@pytest.mark.parametrize("number", FEW)
def test_nothing_is_lost_doubled_or_stuck(world: World, number: str) -> None:
    run = strike(world, FAULTS[number], 1)
    assert run.broken == []
    assert run.jobs > 0


def test_checker_notices_what_is_lost(world: World) -> None:
    run = Run()
    with world.watched(1, run) as jobs:
        pass
    assert run.broken == []
    with world.database.write() as session:
        session.delete(session.scalars(select(ModelVersion).where(ModelVersion.job_id == jobs[0].id)).one())
    lost = Run()
    world.check_jobs([(jobs[0], next(world.folder.glob("steps-*")))], lost)
    assert len(lost.lost) == 1 and "0 versions" in lost.lost[0]


def test_every_fault_has_a_shape_a_title_and_a_promise() -> None:
    promised = (ROOT / "docs" / "how-to" / "faults.md").read_text()
    assert not [number for number in FAULTS if number.rstrip("abcd") not in promised]
    assert len(FAULTS) >= 28
    assert all(set(fault.shapes) <= set(SHAPES) and fault.shapes and len(fault.title) > 5 for fault in FAULTS.values())


@pytest.mark.parametrize("point", ["before_rename", "after_rename"])
def test_failpoint_ends_the_process_at_the_counted_time(point: str, tmp_path) -> None:
    code = (
        "import pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "for number in range(5):\n"
        "    (folder / 'x').write_text('x')\n"
        "    (folder / 'x').replace(folder / str(number))\n"
    )
    environment = os.environ | {"FAILPOINT": f"{point}:3", "PYTHONPATH": str(FAILPOINTS)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=False)
    assert ended.returncode == 137
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == (3 if point == "after_rename" else 2)
