"""Lists of many rows on Postgres: read by an index, with as many queries for a long page as for a short one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from app import queue
from benchmarks.lists import explained, fill, nodes, read_rows, scans, watched
from tests.gateway import Gateway

PREDICTIONS, JOBS, IMAGES = 30_000, 2500, 500
PAGE = 50


@pytest.fixture(scope="module")
def filled(postgres, tmp_path_factory) -> Iterator[Gateway]:  # type: ignore[no-untyped-def]
    """A gateway whose project has many rows."""
    from app.settings import Settings
    from tests.conftest import QUICK

    url = postgres.borrow()
    gateway = Gateway(Settings(_env_file=None, **QUICK, data_dir=tmp_path_factory.mktemp("data"), database_url=url))
    fill(gateway.database, gateway.project_id, PREDICTIONS, JOBS, IMAGES)
    yield gateway
    gateway.ask_to_stop()
    gateway.join()
    postgres.hand_back(url)


def asked(gateway: Gateway, address: str) -> list[tuple[float, str, object]]:
    """The queries of one request; the caller is known already."""
    gateway.ask("GET", address, "admin")
    with watched(gateway.database.engine) as seen:
        answer = gateway.ask("GET", address, "admin")
    assert answer.status_code == 200, answer.text
    return seen


@pytest.mark.parametrize(
    ("address", "index"),
    [
        ("/v1/predictions", None),
        ("/v1/predictions?model=vessels@champion", None),
        ("/v1/predictions?model=rare", "ix_predictions_of_version"),
        ("/v1/predictions?expectation=violated", "ix_predictions_judged"),
        ("/v1/jobs", None),
        ("/v1/jobs?state=queued", None),
    ],
)
def test_a_list_reads_a_page_of_an_index(filled, address, index):
    mark = f"FROM {address.partition('?')[0].removeprefix('/v1/')} "
    listing = [query for query in asked(filled, address) if mark in query[1].replace("\n", " ") and "LIMIT" in query[1]]
    first = listing[0]
    plan = explained(filled.database.engine, first[1], first[2])
    used = {node.get("Index Name") for node in scans(plan)}
    assert None not in used and (index is None or index in used), plan
    assert read_rows(plan) <= 3 * PAGE, plan
    assert "Sort" not in {node["Node Type"] for node in nodes(plan)}, plan


@pytest.mark.parametrize("address", ["/v1/predictions", "/v1/jobs", "/v1/jobs?state=queued"])
def test_a_long_page_asks_no_more_than_a_short_one(filled, address):
    mark = "&" if "?" in address else "?"
    short, long = (len(asked(filled, f"{address}{mark}limit={limit}")) for limit in (5, 100))
    assert long <= short + 1 <= 8  # a page without any measurement or job of a dataset asks for none


def test_pages_of_a_list_are_its_rows_once_each(filled):
    seen, address = [], "/v1/predictions?expectation=violated&limit=7"
    for _ in itertools.count():
        page = filled.ask("GET", address, "admin")
        seen += [row["id"] for row in page.json()["items"]]
        if "link" not in page.headers:
            break
        address = page.headers["link"][1:].partition(">")[0]
    assert len(seen) == len(set(seen)) == PREDICTIONS // 1000 and seen == sorted(seen, reverse=True)


def test_the_home_page_reads_no_table_to_its_end(filled):
    for _, statement, parameters in asked(filled, "/"):
        if statement.startswith("SELECT"):
            assert read_rows(explained(filled.database.engine, statement, parameters)) <= 15_000, statement
    page = filled.ask("GET", "/", "admin").text
    assert "at least 10,000 predictions" in page.replace("\u202f", ",").replace(" 000", ",000"), page[:3000]


def test_the_place_of_a_job_and_its_claim_do_not_read_the_queue(filled):
    last = filled.ask("GET", "/v1/jobs?state=queued&limit=1", "admin").json()["items"][0]
    assert last["progress"]["queue_position"] == queue.MOST_COUNTED
    first = filled.ask("GET", "/v1/jobs?state=queued&limit=1&sort=created", "admin").json()["items"][0]
    assert first["progress"]["queue_position"] == 1
    for _, statement, parameters in asked(filled, f"/v1/jobs/{last['id']}"):
        if statement.startswith("SELECT"):
            assert read_rows(explained(filled.database.engine, statement, parameters)) <= 2 * queue.MOST_COUNTED
    with watched(filled.database.engine) as seen:
        claim = queue.claim(filled.database, worker="test", lane="quick")
    assert claim is not None and str(claim.id) == first["id"]
    taken = next(query for query in seen if query[1].startswith("UPDATE jobs SET state"))
    assert read_rows(explained(filled.database.engine, taken[1], taken[2])) <= 20


def test_jobs_of_another_project_are_not_counted_on_the_home_page(filled):
    assert "Waiting" not in filled.ask("GET", "/", "stranger").text
