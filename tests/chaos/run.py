"""Strikes a running service with each fault, checks what is promised, and prints a table.

    python -m tests.chaos.run [--seed 1] [--runs 1] [--only F1,F4] [--shape embedded]

Each fault strikes an installation of real processes (embedded: SQLite and polling workers; distributed: Postgres,
Valkey and Celery) while clients upload and trainings run. Lost: an acknowledged job or upload is gone or failed.
Doubled: a job made two versions. Stuck: a job has not ended after 90 s. The seed decides every moment and choice.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.settings import Settings
from app.store.migrate import upgrade
from app.store.session import Database
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.postgres import KillablePostgres
from tests.chaos.world import Run, World
from tests.conftest import QUICK
from tests.services import Redis

SHAPES = ("embedded", "distributed")


@contextmanager
def world_of(shape: str, seed: int) -> Iterator[World]:
    """An installation of that shape, empty but for a dataset."""
    folder = Path(tempfile.mkdtemp(prefix="toposerve-chaos-"))
    data = folder / "data"
    data.mkdir()
    changes = QUICK | {"data_dir": data, "stall_s": 4, "database_timeout_s": 3, "orphan_grace_s": 3600}
    redis = postgres = None
    try:
        if shape == "distributed":
            (folder / "redis").mkdir()
            redis, postgres = Redis(folder / "redis"), KillablePostgres()
            changes |= {"database_url": postgres.url, "redis_url": redis.url}
        settings = Settings(_env_file=None, **changes)
        database = Database(settings)
        upgrade(database)
        database.dispose()
        world = World(settings, folder, redis, seed, postgres)
        try:
            yield world
        finally:
            world.close()
    finally:
        if redis is not None:
            redis.kill()
        if postgres is not None:
            postgres.close()
        shutil.rmtree(folder, ignore_errors=True)


def strike(world: World, fault: Fault, runs: int) -> Run:
    """One fault so many times; what it broke."""
    run = Run()
    for _ in range(runs):
        try:
            fault.strike(world, run)
        except Exception as error:  # the table must go on; what the fault broke is in it
            run.wrong.append("".join(traceback.format_exception_only(error)).strip()[:1500])
        finally:
            world.heal()
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", default="", help="numbers of faults, with commas")
    parser.add_argument("--shape", choices=SHAPES)
    arguments = parser.parse_args()
    chosen = [FAULTS[number] for number in arguments.only.split(",")] if arguments.only else list(FAULTS.values())
    print(f"seed {arguments.seed}", flush=True)
    lines = ["| fault | what | shape | runs | jobs | uploads | lost | doubled | stuck | wrong | redone | recovered s |"]
    lines += ["|---" * 12 + "|"]
    print("\n".join(lines), flush=True)
    broken: list[str] = []
    started = time.monotonic()
    for shape in SHAPES if arguments.shape is None else (arguments.shape,):
        with world_of(shape, arguments.seed) as world:
            for fault in chosen:
                if shape not in fault.shapes:
                    continue
                run = strike(world, fault, arguments.runs)
                redone = f"{run.redone / max(1, run.steps):.1%}"
                print(
                    f"| {fault.number} | {fault.title} | {shape} | {arguments.runs} | {run.jobs} | {run.uploads} |"
                    f" {len(run.lost)} | {len(run.doubled)} | {len(run.stuck)} | {len(run.wrong)} | {redone} |"
                    f" {run.recovered_s:.1f} |",
                    flush=True,
                )
                broken += [f"{fault.number} {shape}: {each}" for each in run.broken]
    print(f"\n{time.monotonic() - started:.0f} s; {len(broken)} promises broken")
    for each in broken:
        print(each)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
