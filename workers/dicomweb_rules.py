"""Polls the PACS of each rule for new series, and makes jobs of them.

A poll is three steps, each of which may be lost and done again: the PACS lists its series (nothing is written); what
is new or has grown is noted (one transaction); what is complete becomes jobs (one transaction, which also marks the
series, so that there is one job for each, whoever else polls). A series is complete when two polls in a row were
told the same number of instances.

The PACS is believed to find what it is asked for, not to leave out the rest: what it answers is compared again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any

import structlog

from app import queue
from app.errors import Problem
from app.schemas.jobs import DicomwebSpec
from app.store import dicomweb_rules as store, models
from app.store.dicomweb_rules import Poll, PollLost
from app.store.tables import AuditLine, DicomwebRule, DicomwebSeries, now
from workers.dicomweb import OF_PACS
from workers.heartbeat import DATABASE_ERRORS
from workers.pacs import Away, Connection, first
from workers.work import Failed, Installation

log = structlog.get_logger()

PAGE = 200
"""Series asked for at once; a PACS may answer fewer."""
MOST_LISTED = 20_000
"""Series in one answer; more are refused, so that a rule without bounds does not occupy a worker."""
MOST_UNFINISHED = 100
"""Jobs of one rule that have not ended, so that many new series leave room for others in the queue."""
MOST_RESUMED = 10
"""How often a job is resumed that failed because of its PACS."""
STUDY, SERIES, COUNT = "0020000D", "0020000E", "00201209"
UID = re.compile(r"(?=.{1,64}$)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")


class Stopped(Exception):
    """The worker stops."""


@dataclass(frozen=True)
class Condition:
    """What an element must be, as the PACS is asked for it and as its answer is compared."""

    keyword: str
    tag: str
    asked: str
    holds: Callable[[str], bool]


class Rules:
    """The rules that this worker polls: those whose PACS it knows."""

    def __init__(self, installation: Installation):
        self._installation = installation
        self._database, self._settings = installation.database, installation.settings
        self._hold_s = 2 * self._settings.pacs_timeout_s + self._settings.lease_s

    def poll(self) -> int:
        """Poll every rule that is due; how many."""
        polled = 0
        while not self._installation.stopping.is_set():
            poll = store.begin(self._database, pacs=self._settings.pacs, hold_s=self._hold_s)
            if poll is None:
                break
            self.run(poll)
            polled += 1
        return polled

    def run(self, poll: Poll) -> None:
        """One poll, and how it ended."""
        rule = poll.rule
        try:
            try:
                self._look(poll)
                self._resume(poll)
                self._submit(poll)
                error = None
            except Away as away:
                error = {"code": "pacs_unavailable", "detail": f"The PACS {rule.pacs} {away}."}
            except (Failed, Problem) as failed:
                error = {"code": failed.code, "detail": failed.detail}
            except (PollLost, Stopped, *DATABASE_ERRORS):
                raise
            except Exception:
                log.exception("poll_failed", rule=rule.name)
                error = {
                    "code": "internal",
                    "detail": "The poll ended in an error of the service; the log of its workers says which.",
                }
            if error:
                log.warning("poll_failed", rule=rule.name, **error)
            store.end(self._database, poll, error)
        except PollLost:
            log.info("poll_lost", rule=rule.name)
        except Stopped:
            store.give_back(self._database, poll)

    def _look(self, poll: Poll) -> None:
        """Ask the PACS, and note what is new and what has grown."""
        began, rule = now(), poll.rule
        connection = Connection(rule.pacs, self._settings)
        with self._database.read() as session:
            listed_from = _search_from(rule, store.found_from(session, rule.id))
        conditions = conditions_of(rule.match, listed_from)
        answers = self._listed(poll, connection, conditions)
        with self._database.read() as session:
            known = store.states(session, rule.id, list(answers))
        found = []
        for uid, answer in answers.items():
            state = known.get(uid, "new")
            if state not in ("new", "growing"):
                continue
            row = DicomwebSeries(
                project_id=rule.project_id,
                rule_id=rule.id,
                study=first(answer, STUDY),
                series=uid,
                state="growing",
                listed_from=listed_from,
            )
            fits = matches(answer, conditions)
            if fits is None and state == "new":
                fits = self._instance_matches(poll, connection, row, answer, conditions)
                row.state = "growing" if fits else "left_out"
            elif fits is False:
                continue
            row.instances = self._instances(poll, connection, row, answer) if row.state == "growing" else 0
            found.append(row)
        with self._database.write() as session:
            held = store.held(session, poll)
            store.note(session, held, found)
            held.last_listed_at = began

    def _listed(self, poll: Poll, connection: Connection, conditions: list[Condition]) -> dict[str, dict[str, Any]]:
        """Every series that the PACS finds, by SeriesInstanceUID; pages until one has nothing new, however long."""
        filters = {each.keyword: each.asked for each in conditions}
        fields = [*filters, "NumberOfSeriesRelatedInstances"]
        found: dict[str, dict[str, Any]] = {}
        offset = 0
        while True:
            search = partial(connection.client.search_for_series, search_filters=filters, fields=fields)
            page = self._searched(poll, connection, partial(search, limit=PAGE, offset=offset))
            new = {uid: each for uid, each in _by_uid(page) if uid not in found}
            if not new:
                return found
            found |= new
            offset += len(page)
            if len(found) > MOST_LISTED:
                raise Failed(
                    "too_many_series",
                    f"The PACS {poll.rule.pacs} finds more than {MOST_LISTED} series for this rule, the most that are"
                    " read. Make a rule that matches fewer, by a later `newer_than` or fewer `late_days`.",
                )

    def _instance_matches(
        self,
        poll: Poll,
        connection: Connection,
        row: DicomwebSeries,
        answer: dict[str, Any],
        conditions: list[Condition],
    ) -> bool:
        """Whether a series matches whose answer lacks an element; one of its instances is asked for it."""
        fields = [each.keyword for each in conditions]
        found = self._searched(
            poll,
            connection,
            lambda: connection.client.search_for_instances(row.study, row.series, fields=fields, limit=1),
        )
        together = {**answer, **(found[0] if found else {})}
        return all(each.holds(first(together, each.tag)) for each in conditions)

    def _instances(self, poll: Poll, connection: Connection, row: DicomwebSeries, answer: dict[str, Any]) -> int:
        """How many instances a series has by now."""
        told = first(answer, COUNT)
        if told.isdecimal() and len(told) < 10:
            return int(told)
        return len(
            self._searched(poll, connection, lambda: connection.client.search_for_instances(row.study, row.series))
        )

    def _searched(self, poll: Poll, connection: Connection, call: Callable[[], Any]) -> list[dict[str, Any]]:
        if self._installation.stopping.is_set():
            raise Stopped
        store.hold_on(self._database, poll, self._hold_s)
        return connection.search(call)

    def _resume(self, poll: Poll) -> None:
        """Resume jobs that failed while the PACS was away: it has just answered."""
        with self._database.write() as session:
            rule = store.held(session, poll)
            room = MOST_UNFINISHED - store.unfinished(session, rule)
            for row, job in store.failed(session, rule, OF_PACS, most_resumed=MOST_RESUMED, limit=room):
                row.resumed += 1
                queue.request_resume(session, job)
                session.add(_audited(rule, "job.resume", job.id))

    def _submit(self, poll: Poll) -> None:
        """Make jobs of complete series."""
        with self._database.write() as session:
            rule = store.held(session, poll)
            complete = store.ready(session, rule, MOST_UNFINISHED - store.unfinished(session, rule))
            if not complete:
                return
            model, version = models.resolve(session, rule.project_id, rule.model)
            names = {"model": f"{model.name}:{version.number}", "model_version_id": str(version.id)}
            for row in complete:
                spec = DicomwebSpec(
                    kind="dicomweb",
                    model=rule.model,
                    pacs=rule.pacs,
                    study=row.study,
                    series=row.series,
                    **rule.options,
                ).model_dump(mode="json")
                job = queue.put(
                    session,
                    project_id=rule.project_id,
                    kind="dicomweb",
                    spec=spec | names,
                    submitted_by=_who(rule),
                )
                row.state, row.job_id = "submitted", job.id
                session.add(_audited(rule, "job.submit", job.id))
        log.info("series_submitted", rule=rule.name, jobs=len(complete))


def conditions_of(match: dict[str, Any], listed_from: str) -> list[Condition]:
    """What a series must be.

    match        of the rule, as it is stored
    listed_from  first StudyDate, as DICOM writes it
    """
    wanted = [
        Condition("Modality", "00080060", match["modality"], lambda value: value == match["modality"]),
        Condition("StudyDate", "00080020", f"{listed_from}-", lambda value: value.replace(".", "") >= listed_from),
    ]
    for name, keyword, tag in (
        ("study_description", "StudyDescription", "00081030"),
        ("series_description", "SeriesDescription", "0008103E"),
        ("body_part", "BodyPartExamined", "00180015"),
    ):
        if match.get(name) is not None:
            wanted.append(Condition(keyword, tag, _asked(match[name]), _wildcard(match[name])))
    return wanted


def matches(answer: dict[str, Any], conditions: list[Condition]) -> bool | None:
    """Whether all conditions hold of what the PACS answered; None when an element that none contradicts is absent."""
    told = [(each, first(answer, each.tag)) for each in conditions]
    if not all(each.holds(value) for each, value in told if value):
        return False
    return None if any(not value for _, value in told) else True


def _asked(pattern: str) -> str:
    """The pattern without what must be escaped in an address, which Orthanc's plugin takes literally: it finds a
    little more, and the answer is compared with the pattern itself.
    """
    return re.sub(r"[^\x00-\x7f]+", "*", re.sub(r"[^\w.*?~\x80-\U0010ffff-]", "?", pattern.strip(), flags=re.ASCII))


def _wildcard(pattern: str) -> Callable[[str], bool]:
    """`*` for any characters, `?` for one (PS3.4 C.2.2.2.4); upper and lower case are one, as many PACS have it."""
    parts = {"*": ".*", "?": "."}
    wanted = re.compile("".join(parts.get(each) or re.escape(each) for each in pattern.strip()), re.IGNORECASE)
    return lambda value: wanted.fullmatch(value) is not None


def _search_from(rule: DicomwebRule, growing_from: str | None) -> str:
    """The first StudyDate that is asked for: as far back as the last answer could have missed, not before the rule."""
    earliest: str = rule.match["newer_than"].replace("-", "")
    if rule.last_listed_at is None:
        return earliest
    back: date = rule.last_listed_at.date() - timedelta(days=rule.match["late_days"])
    start = max(earliest, f"{back:%Y%m%d}")
    return start if growing_from is None else min(start, growing_from)


def _by_uid(page: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The series of a page that have both UIDs, so that a job can name them."""
    for each in page:
        uid = first(each, SERIES)
        if UID.fullmatch(uid) and UID.fullmatch(first(each, STUDY)):
            yield uid, each


def _who(rule: DicomwebRule) -> str:
    return f"rule:{rule.name}"[:64]


def _audited(rule: DicomwebRule, what: str, job_id: object) -> AuditLine:
    return AuditLine(project_id=rule.project_id, who=_who(rule), what=what, object=str(job_id))
