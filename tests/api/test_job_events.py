"""Event streams of jobs: order, reconnection, gateway restarts."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from app import queue
from app.settings import Settings
from app.store import keys, projects
from app.store.session import Database
from app.store.tables import Job
from tests.gateway import Gateway, GatewayProcess
from tests.images import archive, pairs
from tests.services import wait_for


def story(response: httpx.Response) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, kind and data of each event, as a browser would read the stream."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(":")
        if line and name:
            fields[name] = value.removeprefix(" ")
        elif not line and "data" in fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}


def job_of(database: Database, project_id: uuid.UUID) -> uuid.UUID:
    with database.write() as session:
        return queue.put(
            session, project_id=project_id, kind="train", spec={"kind": "train", "dataset": "bars@1", "model": "bars"}
        ).id


def finish(database: Database, claim: queue.Claim) -> None:
    with database.write() as session:
        queue.finish(session, claim, {"model": "bars", "version": 1, "metrics": {}})


def test_stream_of_a_finished_job_sends_all_events_and_ends(gateway: Gateway) -> None:
    job_id = job_of(gateway.database, gateway.project_id)
    claim = queue.claim(gateway.database, worker="w", lane="train", job_id=job_id)
    queue.heartbeat(
        gateway.database,
        claim,
        events=[("progress", {"step": 1, "loss": 0.7}), ("metric", {"step": 1, "metrics": {"dice": 0.5}})],
    )
    finish(gateway.database, claim)
    answer = gateway.ask("GET", f"/v1/jobs/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream") and answer.text.startswith("retry: 2000\n\n")
    events = list(story(answer))
    assert [(number, event) for number, event, _ in events] == [
        (1, "state"),
        (2, "state"),
        (3, "progress"),
        (4, "metric"),
        (5, "state"),
    ]
    assert [data["state"] for _, event, data in events if event == "state"] == ["queued", "running", "succeeded"]
    assert events[2][2]["loss"] == 0.7 and events[2][2]["attempt"] == 1 and "at" in events[2][2]


def test_reconnecting_client_gets_only_missed_events(gateway: Gateway) -> None:
    job_id = job_of(gateway.database, gateway.project_id)
    finish(gateway.database, queue.claim(gateway.database, worker="w", lane="train", job_id=job_id))
    address = f"/v1/jobs/{job_id}/events"
    heard = {
        "by header": gateway.ask("GET", address, headers={"Last-Event-ID": "2"}),
        "by query": gateway.ask("GET", f"{address}?after=1"),
        "the header goes first": gateway.ask("GET", f"{address}?after=0", headers={"Last-Event-ID": "2"}),
        "from beyond the end": gateway.ask("GET", address, headers={"Last-Event-ID": "99"}),
    }
    assert {case: [number for number, _, _ in story(answer)] for case, answer in heard.items()} == {
        "by header": [3],
        "by query": [2, 3],
        "the header goes first": [3],
        "from beyond the end": [],
    }
    for wrong in ("-1", "two", "99999999999"):
        assert gateway.ask("GET", address, headers={"Last-Event-ID": wrong}).status_code == 422


def test_events_arrive_live_with_comments_while_idle(gateway: Gateway) -> None:
    job_id = job_of(gateway.database, gateway.project_id)
    raw: list[str] = []
    with (
        httpx.Client(base_url=gateway.http.base_url, timeout=10) as client,
        client.stream("GET", f"/v1/jobs/{job_id}/events", headers=gateway.headers("viewer")) as answer,
    ):
        reader = threading.Thread(target=lambda: raw.extend(answer.iter_text()))
        reader.start()
        wait_for(lambda: "event: state" in "".join(raw), what="the first event")
        wait_for(lambda: ": still here" in "".join(raw), what="a comment")
        claim = queue.claim(gateway.database, worker="w", lane="train", job_id=job_id)
        for step in range(3):
            queue.heartbeat(gateway.database, claim, events=[("progress", {"step": step})])
            wait_for(lambda step=step: f'"step":{step}' in "".join(raw), what=f"step {step}", seconds=2)
        finish(gateway.database, claim)
        reader.join(5)
        assert not reader.is_alive()


def test_stream_of_a_cancelled_job_ends(gateway: Gateway) -> None:
    job_id = job_of(gateway.database, gateway.project_id)
    gateway.ask("POST", f"/v1/jobs/{job_id}/cancel")
    assert [data.get("state") for _, _, data in story(gateway.ask("GET", f"/v1/jobs/{job_id}/events"))] == [
        "queued",
        "cancelled",
    ]


def test_forty_streams_do_not_block_other_requests(gateway: Gateway) -> None:
    """A stream that held a thread or a connection while it waits would starve every other request."""
    job_id = job_of(gateway.database, gateway.project_id)
    with httpx.Client(base_url=gateway.http.base_url, timeout=10, limits=httpx.Limits(max_connections=60)) as client:
        streams = [
            client.stream("GET", f"/v1/jobs/{job_id}/events", headers=gateway.headers("viewer")) for _ in range(40)
        ]
        answers = [stream.__enter__() for stream in streams]
        lines = [answer.iter_lines() for answer in answers]
        assert {next(each) for each in lines} == {"retry: 2000"}
        assert gateway.ask("GET", f"/v1/jobs/{job_id}").status_code == 200
        with gateway.database.write() as session:
            queue.request_cancel(session, session.get_one(Job, job_id))
        assert all("cancelled" in "\n".join(each) for each in lines)
        for stream in streams:
            stream.__exit__(None, None, None)


class Restartable(GatewayProcess):
    """A gateway that may be killed and started again, with the database it works on and an engineer's key."""

    def __init__(self, settings: Settings, folder: Path):
        self.database = Database(settings)
        with self.database.write() as session:
            key = keys.create(session, project="clinic", name="ann", role="engineer")
            self.project_id = projects.ensure(session, "clinic").id
        super().__init__(settings, folder / "gateway.log", key)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.database.dispose()


def test_stream_resumes_after_the_gateway_is_killed(settings: Settings, tmp_path: Path) -> None:
    with Restartable(settings, tmp_path) as gateway:
        job_id = job_of(gateway.database, gateway.project_id)
        claim = queue.claim(gateway.database, worker="w", lane="train", job_id=job_id)
        heard: list[tuple[int, str]] = []

        def listen() -> None:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not (heard and heard[-1][1] == "succeeded"):
                try:
                    headers = {"Last-Event-ID": str(heard[-1][0])} if heard else {}
                    with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
                        heard.extend(
                            (number, str(data.get("state", data.get("step")))) for number, _, data in story(answer)
                        )
                except httpx.TransportError:
                    time.sleep(0.05)

        listener = threading.Thread(target=listen)
        listener.start()
        wait_for(lambda: len(heard) == 2, what="the first two events")
        gateway.process.kill()
        for step in (1, 2, 3):
            queue.heartbeat(gateway.database, claim, events=[("progress", {"step": step})])
        gateway.start()
        wait_for(lambda: len(heard) == 5, what=lambda: str(heard))
        finish(gateway.database, claim)
        listener.join(10)
        assert heard == [(1, "queued"), (2, "running"), (3, "1"), (4, "2"), (5, "3"), (6, "succeeded")]


def test_large_archive_uses_bounded_memory_and_open_stream_does_not_delay_shutdown(
    make_settings: Any, tmp_path: Path
) -> None:
    with Restartable(make_settings("sqlite"), tmp_path) as gateway:
        small, large = (
            archive({f"images/{number:03d}.png": os.urandom(1_000_000) for number in range(count)}) for count in (2, 96)
        )
        codes, most = [], []
        for content in (small, large):
            answer = gateway.http.post(
                "/v1/datasets?name=noise", content=content, headers={"Content-Type": "application/zip"}
            )
            codes.append((answer.status_code, answer.json()["code"]))
            most.append(gateway.peak_bytes())
        assert codes == [(422, "bad_dataset")] * 2
        assert most[1] - most[0] < 8 * 1024**2, f"{(most[1] - most[0]) >> 20} MiB for {len(large) >> 20} MiB"
        assert not list(gateway.settings.scratch.glob("*"))

        job_id = job_of(gateway.database, gateway.project_id)
        with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            lines = answer.iter_lines()
            assert next(lines) == "retry: 2000"
            began = time.monotonic()
            gateway.process.popen.terminate()
            assert [line for line in lines if line.startswith("event")] == ["event: state"]
        gateway.process.popen.wait(10)
        assert time.monotonic() - began < 4


def test_gateway_killed_during_upload_leaves_no_row_and_accepts_a_retry(make_settings: Any, tmp_path: Path) -> None:
    with Restartable(make_settings("sqlite"), tmp_path) as gateway:
        content = archive(pairs(40, (128, 248)))
        headers = {"Content-Type": "application/zip", "Content-Length": str(len(content))}

        def half() -> Iterator[bytes]:
            yield content[: len(content) // 2]
            gateway.process.kill()
            yield content[len(content) // 2 :]

        def whole() -> Iterator[bytes]:
            yield content
            threading.Timer(0.2, gateway.process.kill).start()  # while the pairs are read and counted, or stored

        for body in (half, whole):
            with pytest.raises(httpx.TransportError):
                gateway.http.post("/v1/datasets?name=bars", content=body(), headers=headers)
            gateway.start()
            assert (
                gateway.http.get("/v1/datasets").json()["items"] == gateway.http.get("/v1/images").json()["items"] == []
            )
        again = gateway.http.post("/v1/datasets?name=bars", content=content, headers=headers)
        assert (again.status_code, again.json()["pairs"]) == (201, 40)
