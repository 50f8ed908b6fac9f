"""Jobs: submitted, watched, waited for, stopped; and the tables they end in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from toposerve_client.errors import JobEnded, Json, TimedOut, refusal
from toposerve_client.progress import Bar
from toposerve_client.requests import (
    Flow,
    Item,
    Lines,
    Listing,
    NextLine,
    Open,
    Pause,
    Request,
    address,
    pause_s,
    unreachable,
)
from toposerve_client.tables import Table, from_csv, from_measurements
from toposerve_client.transport import Group, M, listing, operation

FINISHED = {"cancelled", "succeeded", "failed", "interrupted"}
"""States in which nothing more happens by itself."""
MOST_DROPPED = 30
"""Times in a row that the stream of events may break before it is given up."""

Ref = str | Mapping[str, Any]
"""An object of the service, or its id."""


class Event(NamedTuple):
    """Something that happened to a job."""

    number: int
    name: str
    """state, progress, metric, checkpoint, log or warning."""
    data: Json


def id_of(ref: Ref) -> str:
    """The id of an object, or what is an id already; ValueError for a prediction that was not stored."""
    found = ref if isinstance(ref, str) else ref.get("id")
    if not found:
        raise ValueError("This has no id, because the service does not keep it. Predict with store=True.")
    return str(found)


class Jobs(Group[M]):
    """Jobs of the project. A job is named by its id, or by the object that a method returned."""

    @operation
    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Flow[Json]:
        """Queue a job: `{"kind": "train", "dataset": "vessels@1", "model": "vessels"}`.

        idempotency_key  the same key with the same job is the same job, also from another process
        """
        return (yield from self._json("POST", "/v1/jobs", json=dict(spec), key=idempotency_key))

    @operation
    def get(self, job: Ref) -> Flow[Json]:
        """A job as it stands."""
        return (yield from self._json("GET", address("jobs", id_of(job))))

    @listing
    def list(self, *, state: str | None = None, kind: str | None = None, parent: Ref | None = None) -> Listing[Json]:
        """Every job, the newest first; only those in a state or of a kind; with `parent` the trainings of a
        comparison.
        """
        of = None if parent is None else id_of(parent)
        yield from self._listed("/v1/jobs", state=state, kind=kind, parent=of)

    @operation
    def cancel(self, job: Ref, *, keep: bool = False) -> Flow[Json]:
        """Stop a job; with `keep` its checkpoint stays and `resume` goes on from there."""
        return (yield from self._json("POST", address("jobs", id_of(job), "cancel"), json={"keep": keep}))

    @operation
    def resume(self, job: Ref) -> Flow[Json]:
        """Queue a stopped or failed job again."""
        return (yield from self._json("POST", address("jobs", id_of(job), "resume"), repeatable=False))

    @listing
    def events(self, job: Ref, *, after: int = 0) -> Listing[Event]:
        """Everything that happens to a job until it ends, over broken connections and restarts of the service.

        after  the number of the last event that is known
        """
        reader = _Reader(self, id_of(job), after)
        while (event := (yield from reader.next())) is not None:
            yield Item(event)

    @operation
    def wait(
        self,
        job: Ref,
        *,
        progress: bool | str = False,
        on_event: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
        check: bool = True,
    ) -> Flow[Json]:
        """Wait until a job has ended; the job.

        progress   show a bar on standard error; a text is its title
        on_event   called with every event
        timeout_s  raise TimedOut after this long, noticed when the service next says something; the job goes on
        check      raise JobEnded unless it succeeded
        """
        reader = _Reader(self, id_of(job), 0, None if timeout_s is None else time.monotonic() + timeout_s)
        shown = Bar(progress if isinstance(progress, str) else f"job {id_of(job)[:8]}") if progress else None
        while (event := (yield from reader.next())) is not None:
            for show in (shown, on_event):
                if show is not None:
                    show(event)
        ended: Json = yield from self._json("GET", address("jobs", id_of(job)))
        if check and ended["state"] != "succeeded":
            raise JobEnded(ended)
        return ended

    @operation
    def log(self, job: Ref) -> Flow[str]:
        """What happened, as lines of text."""
        return (yield from self._ask("GET", address("jobs", id_of(job), "log"))).text

    @operation
    def table(self, job: Ref) -> Flow[Table]:
        """What a finished job found, as rows: of a prediction every image and class, of an evaluation or a training the
        means, of a comparison every candidate and metric.
        """
        ended: Json = yield from self._json("GET", address("jobs", id_of(job)))
        if "table" in ended["links"]:
            return from_csv((yield from self._ask("GET", ended["links"]["table"], headers={"Accept": "text/csv"})).text)
        return _figures(ended)

    @operation
    def comparison(self, job: Ref) -> Flow[Json]:
        """What a comparison of losses says, also while it runs: verdict, candidates, trainings, cases."""
        return (yield from self._json("GET", address("jobs", id_of(job), "comparison")))

    @operation
    def save_masks(self, job: Ref, path: str | Path) -> Flow[Path]:
        """Save every mask of a finished predict job, and the table that names them, as a zip; its path."""
        yield from self._ask("GET", address("jobs", id_of(job), "results.zip"), save=Path(path))
        return Path(path)


def _figures(job: Json) -> Table:
    """The rows in the result of a job that has no table of its own."""
    result = job["result"] or {}
    if isinstance(result.get("table"), list):
        return from_measurements(result["table"])
    if isinstance(result.get("reports"), list):
        return from_measurements(result["reports"])
    figures = result.get("means") or result.get("metrics") or {}
    name = f"{result['model']}:{result['version']}" if "version" in result else job["spec"].get("model")
    return Table([{"model": name} | {key: value for key, value in figures.items() if not isinstance(value, dict)}])


class _Reader:
    """Reads the events of a job one after the other."""

    def __init__(self, jobs: Group[Any], job_id: str, after: int, deadline: float | None = None):
        self._jobs, self._id, self._last, self._deadline = jobs, job_id, after, deadline
        self._lines: Lines | None = None
        self._dropped = 0

    def next(self) -> Flow[Event | None]:
        """The next event, None once the job has ended."""
        while True:
            try:
                if self._lines is None:
                    self._lines = yield from self._opened()
                event = yield from self._read(self._lines)
            except httpx.TransportError as error:
                self._lines, event = None, None
                self._dropped += 1
                if self._dropped > MOST_DROPPED:
                    raise unreachable(self._jobs._mode.connection.url, error) from error
                yield Pause(min(2.0, pause_s(self._dropped)))
                continue
            if event is not None:
                self._last, self._dropped = event.number, 0
                return event
            self._lines = None
            job: Json = yield from self._jobs._json("GET", address("jobs", self._id))
            if job["state"] in FINISHED:
                return None
            yield Pause(pause_s(0))

    def _opened(self) -> Flow[Lines]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._last)}
        for attempt in range(MOST_DROPPED):
            lines: Lines = yield Open(Request("GET", address("jobs", self._id, "events"), headers=headers))
            if not lines.response.is_error:
                return lines
            refused = refusal(lines.response)
            if lines.response.status_code < 500:
                raise refused
            yield Pause(min(2.0, pause_s(attempt)))
        raise refused

    def _read(self, lines: Lines) -> Flow[Event | None]:
        """The next event of a stream, None at its end."""
        fields: dict[str, str] = {}
        while (line := (yield NextLine(lines))) is not None:
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise TimedOut(f"Job {self._id} has not ended yet. It goes on; wait for it again, or cancel it.")
            name, _, value = line.partition(":")
            if line and name:
                fields[name] = value.removeprefix(" ")
            elif not line and "data" in fields:
                number = int(fields.get("id", self._last))
                return Event(number, fields.get("event", "message"), json.loads(fields["data"]))
        return None
