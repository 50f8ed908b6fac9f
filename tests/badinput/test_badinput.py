"""A part of the bad requests and of the fuzz in every test run; `make badinput` sends all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.settings import Settings
from tests.badinput.cases import Case, every
from tests.badinput.run import FUZZED, damaged, run_fuzz, send, served, wrong_with
from tests.gateway import Gateway
from tests.images import noise_png
from tests.serving import networks

EVERY = 7
"""Which part of the cases is sent here."""
SLOW = ("import", "dataset")
"""Of these fewer: each starts a process, or reads a whole archive."""


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    gateway = serve(Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("data"), min_free_bytes=0))
    gateway.register("blur", networks.blur())
    gateway.http.headers.update(gateway.headers("admin"))
    return gateway


def test_there_are_more_than_600_and_each_has_a_name_of_its_own() -> None:
    cases = every()
    assert len(cases) > 1500 and {case.target for case in cases} >= {
        "upload",
        "predict",
        "analyse",
        "dataset",
        "import",
        "infer",
    }
    assert len({(case.row, case.name, case.target, case.body) for case in cases}) > 0.98 * len(cases)


def test_bad_requests_get_a_4xx_problem_and_leave_the_service_whole(gateway: Gateway) -> None:
    cases = [case for case in every() if case.target not in SLOW][::EVERY]
    cases += [case for case in every() if case.target in SLOW and len(case.body) < 1 << 20][:: 5 * EVERY]
    wrong = {f"{case.row} {case.name} to {case.target}": why for case in cases if (why := judged(gateway, case))}
    assert len(cases) > 200 and not wrong
    assert gateway.http.get("/livez").status_code == 200


def judged(gateway: Gateway, case: Case) -> str | None:
    return wrong_with(case, *send(gateway.http, case))


def test_the_judge_finds_what_is_wrong(gateway: Gateway) -> None:
    good = Case("B0", "sound", "upload", "/v1/images", noise_png(9, 9))
    assert judged(gateway, good) == "accepted"
    missing = Case("B0", "nowhere", "upload", "/v1/nowhere", b"", expected=(415, "unsupported_image"))
    assert "expected 415" in str(judged(gateway, missing))


def test_fuzzed_file_depends_on_its_number_alone() -> None:
    assert damaged(3, 17) == damaged(3, 17) and damaged(3, 17) != damaged(4, 17)
    assert len({damaged(0, number)[1] for number in range(200)}) > 180


def test_fuzz_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with served(tmp_path) as gateway:
        assert run_fuzz(gateway, 5, 60, state) == []
        sent = gateway.process.output().count(FUZZED["predict"].replace("blur", "{ref}"))
        assert run_fuzz(gateway, 5, 90, state) == []
        assert gateway.process.output().count(FUZZED["predict"].replace("blur", "{ref}")) - sent == 15
