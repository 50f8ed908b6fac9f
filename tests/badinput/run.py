"""Sends every bad request and fuzzed files to a gateway, and prints what each row was answered.

    python -m tests.badinput.run [--fuzz 2000] [--seed 0] [--state FILE]

A gateway of its own, a process on loopback, is asked. A line of the table is a row of docs/how-to/bad-input.md: how
many requests, how many were answered as expected, which statuses came, the slowest, and how much the gateway's memory
grew at most. The fuzz flips bytes of sound files and cuts them; with --state it goes on where it was stopped. Request
number n depends on the seed and n alone, so each can be sent again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from app.settings import Settings
from app.store import keys, projects
from app.store.blobs import Blobs
from app.store.migrate import upgrade
from app.store.session import Database
from tests.badinput.cases import Case, every
from tests.gateway import GatewayProcess
from tests.imaging.test_hostile_files import WHOLE
from tests.records import register
from tests.serving import networks

SLOWEST_S = 30.0
"""No answer may take longer; the children that decode and try have 20 to 30 s of processor time."""
MOST_GROWTH = 400 << 20
"""Bytes by which the gateway itself may grow at most."""
FUZZED = {"predict": "/v1/models/blur/predict", "analyse": "/v1/analyses"}


@contextmanager
def served(folder: Path, **changes: object) -> Iterator[GatewayProcess]:
    """A gateway process with the model `blur`."""
    settings = Settings(_env_file=None, data_dir=folder, min_free_bytes=0, onnx_threads=1, **changes)
    database = Database(settings)
    upgrade(database)
    with database.write() as session:
        key = keys.create(session, project="clinic", name="admin", role="admin")
        project_id = projects.ensure(session, "clinic").id
    register(database, Blobs(settings), project_id, "blur", networks.blur())
    database.dispose()
    gateway = GatewayProcess(settings, folder / "gateway.log", key)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.close()


def wrong_with(case: Case, answer: httpx.Response, seconds: float) -> str | None:
    """Why an answer is not as it should be; None when it is."""
    if seconds > SLOWEST_S:
        return f"took {seconds:.1f} s"
    if answer.status_code < 400:
        return "accepted" if case.refused else None
    try:
        body = answer.json()
    except ValueError:
        return f"{answer.status_code} without a problem"
    if not 400 <= answer.status_code < 500:
        return f"{answer.status_code} {body.get('code')}"
    plain = case.path.startswith("/v2")
    media = answer.headers["content-type"]
    if media != ("application/json" if plain else "application/problem+json"):
        return f"{answer.status_code} as {media}"
    if body.get("status") != answer.status_code or not body.get("code") or len(body.get("detail", "")) < 10:
        return f"{answer.status_code} without its members"
    if "Traceback" in answer.text or "sqlalchemy" in answer.text.lower():
        return "shows its insides"
    if case.expected is not None and (answer.status_code, body["code"]) != case.expected:
        return f"{answer.status_code} {body['code']}, expected {case.expected[0]} {case.expected[1]}"
    return None


def send(http: httpx.Client, case: Case) -> tuple[httpx.Response, float]:
    """One request and how long its answer took."""
    started = time.perf_counter()
    answer = http.post(case.path, content=case.body, headers={"Content-Type": case.media} | case.headers, timeout=120)
    return answer, time.perf_counter() - started


def run_cases(gateway: GatewayProcess, cases: list[Case]) -> list[str]:
    """Send them, print the table, and say what went wrong."""
    rows: dict[tuple[str, str], list[tuple[int, float, int, str | None]]] = defaultdict(list)
    wrong: list[str] = []
    for case in cases:
        gateway.forget_peak()
        before = gateway.resident_bytes()
        answer, seconds = send(gateway.http, case)
        grown = gateway.peak_bytes() - before
        why = wrong_with(case, answer, seconds)
        if why is None and grown > MOST_GROWTH:
            why = f"the gateway grew by {grown >> 20} MiB"
        if why:
            wrong.append(f"{case.row} {case.name} to {case.target}: {why}")
        rows[case.row, case.target].append((answer.status_code, seconds, grown, why))
    print(
        "| row | address | requests | as expected | answers | slowest s | gateway MiB |\n|---|---|---|---|---|---|---|"
    )
    for (row, target), found in sorted(rows.items(), key=lambda each: (len(each[0][0]), each[0])):
        statuses = ", ".join(f"{status} x {n}" for status, n in sorted(Counter(each[0] for each in found).items()))
        good = sum(each[3] is None for each in found)
        slowest, grown = max(each[1] for each in found), max(each[2] for each in found) / 2**20
        print(f"| {row} | {target} | {len(found)} | {good} | {statuses} | {slowest:.2f} | {grown:.0f} |")
    return wrong


def damaged(seed: int, number: int) -> tuple[str, bytes]:
    """The kind and bytes of one fuzzed file: 1 to 8 bytes changed, or cut, or both."""
    rng = np.random.default_rng([seed, number])
    kind = sorted(WHOLE)[int(rng.integers(len(WHOLE)))]
    content = bytearray(WHOLE[kind])
    how = rng.integers(3)
    if how != 1:
        for place in rng.integers(0, len(content), rng.integers(1, 9)):
            content[place] ^= int(rng.integers(1, 256))
    if how != 0:
        del content[int(rng.integers(len(content))) :]
    return kind, bytes(content)


def run_fuzz(gateway: GatewayProcess, seed: int, count: int, state: Path | None) -> list[str]:
    """Send fuzzed files until there were `count`, from where `state` says; what went wrong."""
    done, statuses, wrong, slowest = 0, Counter[str](), [], 0.0
    if state is not None and state.exists():
        kept = json.loads(state.read_text())
        if kept["seed"] == seed:
            done, statuses = kept["done"], Counter(kept["statuses"])
    for number in range(done, count):
        kind, content = damaged(seed, number)
        target = ("predict", "analyse")[number % 2]
        case = Case("B7", f"{kind} {seed}:{number}", target, FUZZED[target], content, refused=False)
        answer, seconds = send(gateway.http, case)
        statuses[str(answer.status_code)] += 1
        slowest = max(slowest, seconds)
        why = wrong_with(case, answer, seconds)
        if why:
            wrong.append(f"{case.row} {case.name} to {target}: {why}")
        if state is not None and (number % 500 == 499 or number == count - 1):
            state.write_text(json.dumps({"seed": seed, "done": number + 1, "statuses": statuses, "wrong": wrong}))
    said = ", ".join(f"{status} x {n}" for status, n in sorted(statuses.items()))
    print(f"\nfuzz, seed {seed}: {sum(statuses.values())} files; {said}; slowest {slowest:.2f} s")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=2000, help="fuzzed files; 100000 for the long run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="file that remembers how far the fuzz has come")
    parser.add_argument("--only", default="", help="only cases to this kind of address")
    arguments = parser.parse_args()
    cases = [case for case in every() if arguments.only in ("", case.target)]
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as gateway:
        started = time.perf_counter()
        wrong = run_cases(gateway, cases)
        wrong += run_fuzz(gateway, arguments.seed, arguments.fuzz, arguments.state)
        alive = gateway.process.running and gateway.http.get("/livez").status_code == 200
        print(
            f"{len(cases)} bad requests in {time.perf_counter() - started:.0f} s; the gateway "
            f"{'still serves' if alive else 'is gone'}; {len(wrong)} not as expected"
        )
    for line in wrong:
        print(line)
    return 1 if wrong or not alive else 0


if __name__ == "__main__":
    sys.exit(main())
