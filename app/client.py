"""HTTP client of the service, for the command line and the demo.

Every call raises `Refused` with the service's own sentence; nothing is retried except the event stream, which goes on
where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

FINISHED = {"cancelled", "succeeded", "failed", "interrupted"}


class Refused(Exception):
    """The service answered with a problem; `status` and `code` say which."""

    def __init__(self, detail: str, status: int, code: str):
        super().__init__(detail)
        self.status, self.code = status, code


class Client:
    """A connection to one service as one key."""

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 300):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=httpx.Timeout(timeout_s, connect=10))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; a problem becomes `Refused`."""
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Refused(
                f"No service answers at {self.url} ({error}). Start one with `toposerve up`, or set --url.",
                0,
                "unreachable",
            ) from error
        if response.is_error:
            raise _refusal(response)
        return response

    def upload_image(self, path: Path) -> dict[str, Any]:
        """Store an image; the same bytes give the same image."""
        with path.open("rb") as file:
            return self.call(
                "POST",
                "/v1/images",
                params={"name": path.name},
                content=file,
                headers={"Content-Type": "application/octet-stream"},
            ).json()

    def upload_dataset(self, name: str, archive: Path, label_map: dict[str, Any] | None) -> dict[str, Any]:
        """Store a zip of images and masks as a dataset version."""
        params = {"name": name} | ({"label_map": json.dumps(label_map)} if label_map else {})
        with archive.open("rb") as file:
            return self.call(
                "POST", "/v1/datasets", params=params, content=file, headers={"Content-Type": "application/zip"}
            ).json()

    def submit(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Queue a job."""
        return self.call("POST", "/v1/jobs", json=spec).json()

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it stands."""
        return self.call("GET", f"/v1/jobs/{job_id}").json()

    def follow(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every event of a job until it ends, over dropped connections and restarts of the gateway."""
        last, failures = "0", 0
        while True:
            try:
                for number, event, data in self._events(job_id, last):
                    last, failures = number, 0
                    yield event, data
                if self.job(job_id)["state"] in FINISHED:
                    return
            except (httpx.TransportError, Refused) as error:
                if isinstance(error, Refused) and 400 <= error.status < 500:
                    raise
                failures += 1
                if failures > 30:
                    raise
                time.sleep(min(0.2 * failures, 2))

    def _events(self, job_id: str, last: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            if response.is_error:
                response.read()
                raise _refusal(response)
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                name, _, value = line.partition(":")
                if line and name:
                    fields[name] = value.removeprefix(" ")
                elif not line and "data" in fields:
                    yield fields.get("id", last), fields.get("event", "message"), json.loads(fields["data"])
                    fields = {}

    def predict(self, model: str, path: Path, *, accept: str = "application/json", **options: Any) -> httpx.Response:
        """Segment one image; `accept` chooses the form of the answer."""
        with path.open("rb") as file:
            return self.call(
                "POST",
                f"/v1/models/{model}/predict",
                params={name: value for name, value in options.items() if value is not None},
                content=file,
                headers={"Accept": accept, "Content-Type": "application/octet-stream"},
            )


def _refusal(response: httpx.Response) -> Refused:
    try:
        problem = response.json()
    except ValueError:
        return Refused(
            f"The answer was {response.status_code} without an explanation.", response.status_code, "unknown"
        )
    fields = "".join(f"\n  {error['pointer']}: {error['detail']}" for error in problem.get("errors", []))
    return Refused(
        problem.get("detail", "No detail given.") + fields, response.status_code, problem.get("code", "unknown")
    )
