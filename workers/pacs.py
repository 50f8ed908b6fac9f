"""Asks a PACS over DICOMweb, again while it is away.

It is never believed to have stored what it does not list afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import requests
from requests.adapters import HTTPAdapter

from app.settings import Pacs, Settings
from workers.work import Failed, Work

if TYPE_CHECKING:
    from pydicom import Dataset

T = TypeVar("T")
DENIED, TRANSIENT = (401, 403), (408, 425, 429, 500, 502, 503, 504)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
LOOK_UP_S = 0.2
"""How often a wait looks whether the job shall stop."""
_AWAY = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class _Patient(HTTPAdapter):
    """Gives every request a timeout, which requests lacks, and leaves wildcards in a query as they are.

    They may stand there (RFC 3986 3.4), and Orthanc's plugin takes `%2A` for three characters.
    """

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        super().__init__()

    def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
        address, mark, query = request.url.partition("?")
        request.url = address + mark + query.replace("%2A", "*").replace("%3F", "?")
        return super().send(request, *args, **(options | {"timeout": self._timeout_s}))


class Away(Exception):
    """The PACS does not answer now, for a reason in words that follow its name; asked later it may."""


class Connection:
    """One PACS of the settings, asked once."""

    def __init__(self, name: str, settings: Settings):
        from dicomweb_client.api import DICOMwebClient

        configured = settings.pacs.get(name)
        if configured is None:
            raise Failed("pacs_not_configured", f"This worker has no PACS named {name} in TOPOSERVE_PACS.")
        self._name = name
        connected = session(configured, settings.pacs_timeout_s)
        self.client = DICOMwebClient(configured.url.rstrip("/"), session=connected)
        self.client.set_http_retry_params(retry=False)

    def once(self, call: Callable[[], T]) -> T:
        """What `call` gives; Away, or Failed for what will not mend itself: `pacs_denied`, `pacs_not_found`,
        `pacs_refused`.
        """
        try:
            return call()
        except _AWAY as error:
            raise Away("is too slow" if isinstance(error, requests.Timeout) else "does not answer") from None
        except requests.exceptions.TooManyRedirects:
            raise Failed("pacs_refused", f"The PACS {self._name} sends elsewhere, which is not followed.") from None
        except requests.HTTPError as error:
            raise self._told(_status(error)) from None

    def search(self, call: Callable[[], Any]) -> list[dict[str, Any]]:
        """The answer to a search (QIDO-RS); also Failed where it is not what a search gives."""
        try:
            found = self.once(call)
        except ValueError:  # not JSON
            found = None
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise Failed(
                "pacs_refused",
                f"The PACS {self._name} answers a search with something else than DICOM's JSON: correct its address in"
                " TOPOSERVE_PACS, which ends before `/studies`.",
            )
        return found

    def _told(self, status: int) -> Exception:
        if status in TRANSIENT:
            return Away(f"answers {status}")
        if status in DENIED:
            return Failed(
                "pacs_denied",
                f"The PACS {self._name} answers {status}: correct its user, password or token in TOPOSERVE_PACS.",
            )
        if status in (404, 410):
            return Failed("pacs_not_found", f"The PACS {self._name} has no such study, series or address ({status}).")
        return Failed("pacs_refused", f"The PACS {self._name} refuses what it is sent ({status}); its log says why.")


class Archive:
    """One PACS of the settings as a job sees it.

    Every question is asked again, less and less often, while the PACS is away, answers 5xx or is slow, for at most
    `pacs_patience_s`. Failed tells what will not mend itself: `pacs_denied`, `pacs_not_found`, `pacs_refused`,
    `pacs_unavailable`.
    """

    def __init__(self, name: str, work: Work):
        self._work, self._name = work, name
        self._connection = Connection(name, work.settings)
        self._client = self._connection.client

    def series_of(self, study: str) -> list[dict[str, str]]:
        """UID and modality of each series of a study (QIDO-RS)."""
        found = self._ask(lambda: self._client.search_for_series(study, fields=["Modality"]))
        if not found:
            raise Failed("pacs_not_found", f"The PACS {self._name} has no such study, or no series in it.")
        return [{"uid": first(each, "0020000E"), "modality": first(each, "00080060")} for each in found]

    def instances_of(self, study: str, series: str) -> Iterator[Dataset]:
        """The instances of a series one after the other (WADO-RS); from the first again where it broke off."""
        return self._client.iter_series(study, series)

    def ask(self, call: Callable[[], T]) -> T:
        """What `call` gives, asked again while the PACS is away."""
        return self._ask(call)

    def holds(self, study: str, series: str, instance: str) -> bool:
        """Whether an instance is there."""
        wanted = {"SOPInstanceUID": instance}
        try:
            found = self._ask(lambda: self._client.search_for_instances(study, series, search_filters=wanted))
        except Failed as failed:
            if failed.code == "pacs_not_found":
                return False
            raise
        return any(first(each, "00080018") == instance for each in found)

    def store(self, made: Dataset) -> None:
        """Store an instance (STOW-RS) until the PACS lists it: its answer says little, and half a success is none."""
        place = (str(made.StudyInstanceUID), str(made.SeriesInstanceUID), str(made.SOPInstanceUID))

        def once() -> None:
            try:
                self._client.store_instances([made], study_instance_uid=place[0])
            except requests.HTTPError as error:
                if _status(error) in (*DENIED, *TRANSIENT) or not self.holds(*place):
                    raise
            if not self.holds(*place):
                raise requests.ConnectionError  # it said yes and has nothing: ask again

        self._ask(once)

    def _ask(self, call: Callable[[], T]) -> T:
        patience_s, wait_s = self._work.settings.pacs_patience_s, FIRST_WAIT_S
        until = time.monotonic() + patience_s
        while True:
            self._work.heartbeat.check()
            try:
                return self._connection.once(call)
            except Away as away:
                reason = str(away)
            if time.monotonic() + wait_s > until:
                raise Failed(
                    "pacs_unavailable",
                    f"The PACS {self._name} {reason}, for {patience_s:g} s by now. Nothing was stored twice: submit the"
                    " job again when it is back.",
                )
            self._work.heartbeat.record("log", level="warning", message=f"The PACS {self._name} {reason}; asked again.")
            self._wait(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._work.heartbeat.check()
            self._work.heartbeat.touch()
            time.sleep(min(LOOK_UP_S, left))


def session(configured: Pacs, timeout_s: float) -> requests.Session:
    """Requests to one PACS: its credentials, no proxy of the environment, no redirect to anywhere else."""
    made = requests.Session()
    made.trust_env, made.max_redirects = False, 0
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Patient(timeout_s))
    if configured.username is not None and configured.password is not None:
        made.auth = (configured.username, configured.password.get_secret_value())
    if configured.token is not None:
        made.headers["Authorization"] = f"Bearer {configured.token.get_secret_value()}"
    if configured.ca_file is not None:
        made.verify = str(configured.ca_file)
    return made


def _status(error: requests.HTTPError) -> int:
    return 0 if error.response is None else error.response.status_code


def first(found: dict[str, Any], tag: str) -> str:
    """The first value of an element in DICOM's JSON (PS3.18 F.2)."""
    values = found.get(tag, {}).get("Value") or [None]
    return "" if values[0] is None else str(values[0]).strip()
