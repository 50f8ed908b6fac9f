"""Times of long lists and pages on Postgres, with the plan of the slowest query.

Every list, filter, order and first page is asked for over many rows.

    python benchmarks/lists.py [--predictions 1000000] [--jobs 10000] [--rounds 5]

Makes a database in the Postgres of TOPOSERVE_TEST_DATABASE_URL, or in one that it starts, fills it with rows that the
server generates itself, asks a gateway in this process and drops the database. A *plan* is how Postgres reads the first
table of the slowest query; `rows` is how many rows that query reads in all.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from sqlalchemy import Engine, create_engine, event, text

sys.path.insert(0, str(Path(__file__).parents[1]))

from app import queue
from app.serving.answers import topology
from app.settings import Settings
from app.store.session import Database
from tests.gateway import Gateway
from tests.services import Postgres

IMAGES = 10_000
BOUND_MS = 50.0
ADDRESSES = (
    "/v1/predictions",
    "/v1/predictions?limit=100",
    "/v1/predictions?sort=created",
    "/v1/predictions?model=vessels",
    "/v1/predictions?model=vessels:1",
    "/v1/predictions?model=vessels@champion",
    "/v1/predictions?model=rare",
    "/v1/predictions?image_name=image-77",
    "/v1/predictions?image_name=nothing",
    "/v1/predictions?expectation=violated",
    "/v1/predictions?topology=wrong",
    "/v1/predictions?topology=right",
    "/v1/predictions?since=2026-01-01",
    "/v1/predictions?until=2020-01-01",
    "/v1/predictions?dataset=nothing",
    "/v1/predictions?sort=-dice",
    "/v1/predictions?sort=beta0_error",
    "/v1/images",
    "/v1/images?name=image-77",
    "/v1/images?sort=-bytes",
    "/v1/jobs",
    "/v1/jobs?state=queued",
    "/v1/jobs?state=succeeded",
    "/v1/jobs?kind=analyse",
    "/v1/jobs?model=vessels",
    "/v1/jobs?sort=done",
    "/v1/models",
    "/v1/models/vessels/versions",
    "/",
    "/predictions",
    "/jobs",
    "/images",
    "/models",
    "/models/vessels/versions/1",
    "/models/rare/versions/1",
    "/metrics",
)
_UUID = "(lpad(to_hex({base} + n), 12, '0') || '7000' || '8000' || lpad(to_hex(n), 12, '0'))::uuid"
"""Ids that grow with n, as UUIDv7 do."""


def identifier(base: int) -> str:
    """SQL for the id of row n of a table, whose ids begin at `base`."""
    return _UUID.format(base=base)


def fill(database: Database, project_id: uuid.UUID, predictions: int, jobs: int, images: int = IMAGES) -> None:
    """Rows as the service would write them: nearly all predictions of one version, a tenth measured, ten of a model
    that nobody uses any more, and a queue.
    """
    tenth = max(1, predictions // 10)
    facts = {
        "project": project_id,
        "images": images,
        "predictions": predictions,
        "rare": min(10, tenth),
        "old": predictions - tenth,
        "jobs": jobs,
        "vessels": uuid.uuid4(),
        "unused": uuid.uuid4(),
        "v1": uuid.UUID(int=1),
        "v2": uuid.UUID(int=2),
        "v3": uuid.UUID(int=3),
    }
    mask = np.zeros((64, 64), np.uint8)
    mask[8:12, 4:60] = mask[20:40, 30:34] = 1
    report = json.dumps(topology(mask, ["background", "vessel"], None))
    artifacts = (
        '{"mask": {"sha256": "' + "0" * 64 + '", "bytes": 4711, "media_type": "image/png"}, "probability":'
        ' {"sha256": "' + "1" * 64 + '", "bytes": 47110, "media_type": "image/png"}}'
    )
    manifest = (
        '{"classes": ["background", "vessel"], "activation": "sigmoid", "channels": 1, "dimensions": 2, "threshold":'
        ' 0.5, "software": {}, "verification": null}'
    )
    statements = [
        f"""insert into images (id, created_at, project_id, sha256, bytes, name, format, dimensions, channels, shape,
            dtype) select {identifier(10**11)}, now() - interval '90 days' + n * interval '1 second', :project,
            lpad(to_hex(n), 64, '0'), 1000 + (n * 7919) % 100000, 'image-' || n || '.png', 'png', 2, 1,
            '[256, 256]', 'uint8' from generate_series(1, :images) n""",
        """insert into models (id, created_at, project_id, name, last_version) values
            (:vessels, now(), :project, 'vessels', 2), (:unused, now(), :project, 'rare', 1)""",
        f"""insert into model_versions (id, created_at, project_id, model_id, number, spec, manifest, metrics,
            onnx_sha256, onnx_bytes) select v.id, now(), :project, v.model, v.number, '{{}}', cast(:manifest as jsonb),
            '{{"dice": 0.9}}', '{"a" * 64}', 1000 from (values (cast(:v1 as uuid), cast(:vessels as uuid), 1),
            (cast(:v2 as uuid), cast(:vessels as uuid), 2), (cast(:v3 as uuid), cast(:unused as uuid), 1))
            v(id, model, number)""",
        """insert into aliases (id, created_at, project_id, model_id, alias, number, moved_at) values
            (gen_random_uuid(), now(), :project, :vessels, 'champion', 2, now())""",
        f"""insert into predictions (id, created_at, project_id, model_version_id, image_id, threshold, report,
            violated, artifacts, timings_ms) select {identifier(2 * 10**11)},
            now() - interval '30 days' + n * interval '1 second',
            :project, case when n <= :rare then cast(:v3 as uuid) when n <= :old then cast(:v1 as uuid)
            else cast(:v2 as uuid) end, i.id, 0.5, cast(:report as jsonb),
            case when n % 1000 = 0 then true when n % 1000 = 1 then false end,
            cast(:artifacts as jsonb), '{{"total": 12.5}}'
            from generate_series(1, :predictions) n join
            (select id, row_number() over (order by id) - 1 as k from images where project_id = :project) i
            on i.k = n % :images order by n""",
        f"""insert into measurements (id, created_at, project_id, prediction_id, model_version_id, image_id,
            class_name, dice, beta0_error, metric_spec, metric_digest) select {identifier(3 * 10**11)}, now(), :project,
            {identifier(2 * 10**11)}, cast(:v1 as uuid), null, 'vessel', 0.5 + (n / 10 % 997) / 2000.0, n / 10 % 3,
            '{{}}', '{"0" * 16}' from generate_series(10, :predictions, 10) n""",
        f"""insert into jobs (id, created_at, project_id, kind, lane, state, spec, schema_version,
            attempt, crashes, keep, fraction, events) select {identifier(4 * 10**11)},
            now() - interval '1 day' + n * interval '1 second',
            :project, case when n % 10 = 0 then 'analyse' else 'predict' end, 'quick',
            case when n <= :jobs then 'succeeded' else 'queued' end, '{{"kind": "predict", "model": "vessels:1"}}', 1,
            0, 0, false, 0, 0 from generate_series(1, 2 * :jobs) n""",
    ]
    texts = {"report": report, "artifacts": artifacts, "manifest": manifest}
    engine = create_engine(database.engine.url)  # the service's own gives up what takes so long
    with engine.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))  # no look at each foreign key
        for statement in statements:
            connection.execute(text(statement), {k: v for k, v in (facts | texts).items() if f":{k}" in statement})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))
    engine.dispose()


@contextmanager
def watched(engine: Engine) -> Iterator[list[tuple[float, str, Any]]]:
    """Every statement that is executed meanwhile: seconds, text, parameters."""
    seen: list[tuple[float, str, Any]] = []
    started = 0.0

    def before(*_arguments: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    def after(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        seen.append((time.perf_counter() - started, statement, parameters))

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "after_cursor_execute", after)


def explained(engine: Engine, statement: str, parameters: Any) -> dict[str, Any]:
    """The plan of a statement, after it was run."""
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"explain (analyze, format json) {statement}", parameters).scalar_one()
        connection.rollback()
    return found[0]["Plan"]


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A plan and everything below it."""
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


def scans(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a plan that read a table or an index."""
    return [node for node in nodes(plan) if "Scan" in node["Node Type"] and node["Node Type"] != "Subquery Scan"]


def read_rows(plan: Mapping[str, Any]) -> int:
    """How many rows a plan read, with those that a condition dropped."""
    return sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) for node in scans(plan)
    )


def measure(gateway: Gateway, address: str, rounds: int) -> tuple[float, float, int, str, int]:
    """Of an address: median ms, ms in the database, statements, plan of the slowest one, and rows that it reads."""
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        answer = gateway.ask("GET", address, "admin")
        took.append((time.perf_counter() - started) * 1000)
        assert answer.status_code == 200, (address, answer.status_code, answer.text[:300])
    with watched(gateway.database.engine) as seen:
        gateway.ask("GET", address, "admin")
    spent = sum(seconds for seconds, *_ in seen) * 1000
    slowest = max((each for each in seen if each[1].lstrip().lower().startswith("select")), default=None)
    if slowest is None:
        return statistics.median(took), spent, len(seen), "", 0
    plan = explained(gateway.database.engine, slowest[1], slowest[2])
    first = max(scans(plan), key=lambda node: node["Actual Total Time"] * node["Actual Loops"], default=plan)
    words = f"{first['Node Type']} {first.get('Index Name', first.get('Relation Name', ''))}".strip()
    return statistics.median(took), spent, len(seen), words, read_rows(plan)


def claims_ms(database: Database, rounds: int) -> float:
    """Median time to claim the oldest job of the queue."""
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        assert queue.claim(database, worker="benchmark", lane="quick") is not None
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="addresses that contain this")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    server = Postgres()
    url = server.borrow()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(_env_file=None, data_dir=Path(folder), database_url=url, database_timeout_s=30)
        gateway = Gateway(settings)
        try:
            started = time.perf_counter()
            fill(gateway.database, gateway.project_id, options.predictions, options.jobs)
            print(f"filled in {time.perf_counter() - started:.0f} s")
            print("\n| address | median ms | in the database | statements | slowest reads by | rows |")
            print("|---|---|---|---|---|---|")
            slow = 0
            for address in (each for each in ADDRESSES if options.only in each):
                ms, spent, count, words, rows = measure(gateway, address, options.rounds)
                slow += ms > BOUND_MS
                mark = " **over**" if ms > BOUND_MS else ""
                print(f"| `{address}`{mark} | {ms:.1f} | {spent:.1f} | {count} | {words} | {rows} |", flush=True)
            print(f"\nclaim: {claims_ms(gateway.database, options.rounds):.1f} ms; {slow} over")
        finally:
            gateway.ask_to_stop()
            gateway.join()
            server.drop(url)
            server.stop()


if __name__ == "__main__":
    main()
