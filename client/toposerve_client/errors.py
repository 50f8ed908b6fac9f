"""What can go wrong, each with the service's own sentence."""

from __future__ import annotations

from typing import Any

import httpx

Json = dict[str, Any]
"""An object as the service sends it; `/docs` of the service describes every field."""


class ToposerveError(Exception):
    """Anything that this package raises about the service."""

    code: str = "error"
    """A stable word for what went wrong."""


class Unreachable(ToposerveError):
    """No service answers at the address."""

    code = "unreachable"


class TimedOut(ToposerveError):
    """A job was waited for as long as the caller allowed; it goes on."""

    code = "timed_out"


class JobEnded(ToposerveError):
    """A job that was waited for failed, was cancelled or was interrupted.

    job  the job as it ended
    """

    def __init__(self, job: Json):
        error = job.get("error") or {}
        super().__init__(error.get("detail") or f"The job {job['id']} is {job['state']}.")
        self.code, self.job = error.get("code") or str(job["state"]), job


class Refused(ToposerveError):
    """The service answered with a problem.

    status      of HTTP
    code        the service's word for it: `unknown_label`
    fields      one {pointer, detail} for each wrong field of the request
    problem     the whole answer
    request_id  names the request in the log of the service
    """

    def __init__(self, status: int, problem: Json):
        self.status, self.problem = status, problem
        self.code = str(problem.get("code", "unknown"))
        self.detail = str(problem.get("detail", f"The answer was {status} without an explanation."))
        self.fields: list[dict[str, str]] = problem.get("errors", [])
        self.request_id: str | None = problem.get("request_id")
        lines = "".join(f"\n  {field['pointer']}: {field['detail']}" for field in self.fields)
        super().__init__(self.detail + lines)


class NotFound(Refused):
    """404: there is no such thing in the project of this key."""


class Forbidden(Refused):
    """401 or 403: the key is missing, has ended, or may not do this."""


KINDS: dict[int, type[Refused]] = {401: Forbidden, 403: Forbidden, 404: NotFound}


def refusal(response: httpx.Response) -> Refused:
    """The exception that an answer with an error status becomes."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    kind = KINDS.get(response.status_code, Refused)
    return kind(response.status_code, problem if isinstance(problem, dict) else {})
