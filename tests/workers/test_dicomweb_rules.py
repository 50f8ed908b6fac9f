"""Rules that make jobs of new series of a PACS: one job each, whoever polls, and whatever the PACS does meanwhile."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sqlalchemy import func, select, update

from app.schemas.dicomweb_rules import NO_IMAGES
from app.settings import Settings
from app.store import dicomweb_rules as store
from app.store.tables import AuditLine, DicomwebRule, DicomwebSeries, Job, now
from tests.imaging.dicom_files import dataset, slices, uid, written
from tests.records import job_now, register, set_alias
from tests.services import free_port, wait_for
from tests.serving import networks
from tests.workers.orthanc import AUTH, running_orthanc
from tests.workers.pacs import FakePacs, fake_pacs
from workers import dicomweb_rules
from workers.dicomweb_rules import Rules
from workers.pacs import Connection
from workers.work import Installation
from workers.worker import Worker

TODAY = f"{now():%Y%m%d}"
VOLUME = np.zeros((4, 16, 16), np.int16)
VOLUME[1:3, 4:9, 3:12] = 100


def chest(series: str, planes: int = 4, **elements: Any) -> list[Any]:
    """A series of today's CT of the chest."""
    usual = {"StudyDate": TODAY, "StudyDescription": "CT Chest", "BodyPartExamined": "CHEST", "PatientID": "1"}
    return slices(VOLUME[:planes], series=series, **usual | {"SeriesDescription": "thin"} | elements)


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with fake_pacs() as pacs:
        yield pacs


class Site:
    """A database with a model and rules, and workers that know one PACS."""

    def __init__(self, settings: Settings, database: Any, blobs: Any, project_id: uuid.UUID):
        self.settings, self.database, self.project_id, self.blobs = settings, database, project_id, blobs
        self.model = register(database, blobs, project_id, "smooth", networks.blur_3d(), dimensions=3)
        set_alias(database, self.model, "champion")
        self.installations: list[Installation] = []

    def rule(self, name: str = "chest", **match: Any) -> DicomwebRule:
        """A rule for CT of today."""
        wanted = {"modality": "CT", "newer_than": now().date().isoformat(), "late_days": 7} | match
        with self.database.write() as session:
            return store.add(
                session,
                project_id=self.project_id,
                name=name,
                pacs="main",
                model="smooth@champion",
                match=wanted,
                options={"segmentation": "binary", "report": False, "threshold": None},
                poll_s=300,
                enabled=True,
            )

    def poll(self) -> int:
        """What a worker that has just started does when every rule is due."""
        with self.database.write() as session:
            session.execute(update(DicomwebRule).values(next_poll_at=0.0))
        return self.rules().poll()

    def rules(self) -> Rules:
        self.installations.append(Installation(self.settings))
        return Rules(self.installations[-1])

    def jobs(self) -> list[Job]:
        with self.database.read() as session:
            return list(session.scalars(select(Job).order_by(Job.id)))

    def told(self, rule: DicomwebRule) -> DicomwebRule:
        with self.database.read() as session:
            return session.get_one(DicomwebRule, rule.id)

    def states(self, rule: DicomwebRule) -> dict[str, int]:
        with self.database.read() as session:
            return {state: number for state, number in store.counted(session, [rule.id])[rule.id].items() if number}

    def close(self) -> None:
        for each in self.installations:
            each.database.dispose()


@pytest.fixture
def at(settings: Settings, database: Any, blobs: Any, project_id: uuid.UUID) -> Iterator[Callable[..., Site]]:
    """A site whose PACS is at an address: `at(url, username="robot", password="...")`."""
    sites = []

    def make(url: str, **options: Any) -> Site:
        changed = {name: options.pop(name) for name in ("pacs_patience_s", "pacs_timeout_s") if name in options}
        known = settings.model_dump() | {"pacs": {"main": {"url": url} | options}, "pacs_patience_s": 5} | changed
        sites.append(Site(Settings(_env_file=None, **known), database, blobs, project_id))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def test_a_new_series_is_one_job_once_two_polls_saw_the_same_instances(at, pacs: FakePacs):
    pacs.add(*chest("first"))
    site = at(pacs.url)
    rule = site.rule()
    assert site.poll() == 1 and not site.jobs() and site.states(rule) == {"growing": 1}
    for _ in range(3):
        assert site.poll() == 1
    (job,) = site.jobs()
    assert (job.kind, job.state, job.submitted_by) == ("dicomweb", "queued", "rule:chest")
    assert job.spec == {
        "kind": "dicomweb",
        "model": "smooth:1",
        "model_version_id": str(site.model.id),
        "pacs": "main",
        "study": uid("study"),
        "series": uid("first"),
        "segmentation": "binary",
        "report": False,
        "threshold": None,
    }
    pacs.add(*chest("second"))
    for _ in range(2):
        site.poll()
    assert [each.spec["series"] for each in site.jobs()] == [uid("first"), uid("second")]
    with site.database.read() as session:
        lines = session.scalars(select(AuditLine).order_by(AuditLine.id)).all()
    assert [(line.who, line.what) for line in lines] == [("rule:chest", "job.submit")] * 2
    assert lines[0].object == str(job.id)


def test_a_series_that_grows_waits_until_it_does_not(at, pacs: FakePacs):
    site = at(pacs.url)
    rule = site.rule()
    for planes in (2, 3, 4):
        pacs.add(*chest("first", planes))
        site.poll()
        assert not site.jobs() and site.states(rule) == {"growing": 1}
    site.poll()
    assert len(site.jobs()) == 1
    pacs.add(dataset(VOLUME[0] + 1, Modality="CT", StudyDate=TODAY, SeriesInstanceUID=uid("first")))
    site.poll()
    site.poll()
    assert len(site.jobs()) == 1, "a series that grows after its job has no second one"


def test_a_series_that_is_gone_before_it_was_complete_is_forgotten(at, pacs: FakePacs):
    pacs.add(*chest("first"))
    site = at(pacs.url)
    rule = site.rule()
    site.poll()
    pacs.instances.clear()
    site.poll()
    assert site.states(rule) == {} and not site.jobs()
    pacs.add(*chest("first"))
    site.poll()
    assert site.states(rule) == {"growing": 1}


@pytest.mark.parametrize("obeys", [True, False], ids=["a PACS that filters", "a PACS that filters nothing"])
def test_only_what_matches_all_that_is_stated_becomes_a_job(at, pacs: FakePacs, obeys: bool):
    pacs.obeys = obeys
    long_ago = f"{now().date() - timedelta(days=30):%Y%m%d}"
    pacs.add(
        *chest("wanted"),
        *chest("head", StudyDescription="CT Head"),
        *chest("thick", SeriesDescription="thick slices"),
        *chest("knee", BodyPartExamined="KNEE"),
        *chest("old", StudyDate=long_ago),
    )
    for modality in (*NO_IMAGES, "MR"):
        pacs.add(*(each for each in chest(modality, 1)))
        pacs.instances[uid(modality, "0")].Modality = modality
    site = at(pacs.url)
    site.rule(study_description="*Chest*", series_description="thi?", body_part="CHEST")
    site.poll()
    site.poll()
    assert [each.spec["series"] for each in site.jobs()] == [uid("wanted")]


def test_patterns_are_asked_for_without_escapes_and_compared_as_they_are(at, pacs: FakePacs):
    pacs.add(*chest("wanted", SeriesDescription="thin ä 1"), *chest("other", SeriesDescription="thin_ö_1"))
    site = at(pacs.url)
    site.rule(study_description="CT Che?t", series_description="thin ä *")
    site.poll()
    site.poll()
    assert "StudyDescription=CT?Che?t" in pacs.asked[0] and "SeriesDescription=thin?*?*" in pacs.asked[0]
    assert [each.spec["series"] for each in site.jobs()] == [uid("wanted")]


def test_a_pacs_that_tells_uids_only_is_asked_for_an_instance(at, pacs: FakePacs):
    pacs.terse, pacs.obeys = True, False
    pacs.add(*chest("wanted"), *chest("head", StudyDescription="CT Head"))
    site = at(pacs.url)
    rule = site.rule(study_description="*chest*")
    for _ in range(3):
        site.poll()
    assert [each.spec["series"] for each in site.jobs()] == [uid("wanted")]
    assert site.states(rule) == {"submitted": 1, "left_out": 1}
    asked = len(pacs.asked)
    site.poll()
    assert len(pacs.asked) - asked == 2, "what is known is not asked for again"


def test_every_page_is_read_also_of_a_pacs_that_answers_fewer_than_asked(at, pacs: FakePacs):
    pacs.most = 2
    for number in range(7):
        pacs.add(*chest(f"series {number}", 1))
    site = at(pacs.url)
    site.rule()
    site.poll()
    site.poll()
    assert len(site.jobs()) == 7


def test_two_workers_and_a_new_start_make_one_job_for_each_series(at, pacs: FakePacs):
    for number in range(5):
        pacs.add(*chest(f"series {number}", 1))
    site = at(pacs.url)
    site.rule()
    for _ in range(4):
        with site.database.write() as session:
            session.execute(update(DicomwebRule).values(next_poll_at=0.0))
        together = [site.rules() for _ in range(4)]
        threads = [threading.Thread(target=each.poll) for each in together]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(site.jobs()) == 5


def test_a_poll_that_was_taken_for_lost_writes_nothing(at, pacs: FakePacs):
    """Both workers believe that the rule is theirs: the second took it while the PACS kept the first waiting."""
    pacs.add(*chest("first"))
    site = at(pacs.url)
    rule = site.rule()
    site.poll()
    slow, quick = site.rules(), site.rules()
    with site.database.write() as session:
        session.execute(update(DicomwebRule).values(next_poll_at=0.0))
    poll = store.begin(site.database, pacs=["main"], hold_s=-1)
    assert poll is not None and quick.poll() == 1 and len(site.jobs()) == 1
    slow.run(poll)
    with pytest.raises(store.PollLost):
        store.end(site.database, poll, None)
    assert len(site.jobs()) == 1 and site.states(rule) == {"submitted": 1}


def test_a_worker_that_dies_between_listing_and_its_jobs_loses_no_series(at, pacs: FakePacs, monkeypatch):
    pacs.add(*chest("first"))
    site = at(pacs.url)
    rule = site.rule()
    site.poll()
    with monkeypatch.context() as broken:
        broken.setattr(Rules, "_submit", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            site.poll()
    assert not site.jobs() and site.told(rule).next_poll_at > 0 and site.rules().poll() == 0, "held until it is late"
    site.poll()
    assert len(site.jobs()) == 1


def test_a_pacs_that_is_away_is_told_on_the_rule_and_its_series_are_found_afterwards(at, pacs: FakePacs):
    site = at(pacs.url)
    rule = site.rule()
    site.poll()
    listed = site.told(rule).last_listed_at
    pacs.add(*chest("meanwhile"))
    pacs.statuses.extend([503] * 3)
    pauses = []
    for failures in (1, 2, 3):
        site.poll()
        told = site.told(rule)
        assert told.last_error["code"] == "pacs_unavailable" and "503" in told.last_error["detail"]
        assert told.failures == failures and told.last_listed_at == listed and told.last_polled_at > listed
        pauses.append(told.next_poll_at - told.last_polled_at.timestamp())
    assert [round(pause / 300) for pause in pauses] == [2, 4, 8]
    site.poll()
    site.poll()
    told = site.told(rule)
    assert (told.last_error, told.failures) == (None, 0) and len(site.jobs()) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(401, "pacs_denied"), (404, "pacs_not_found"), (400, "pacs_refused"), (302, "pacs_refused")]
)
def test_what_the_pacs_refuses_is_told_on_the_rule(at, pacs: FakePacs, status: int, code: str):
    pacs.statuses.append(status)
    site = at(pacs.url)
    rule = site.rule()
    site.poll()
    assert site.told(rule).last_error["code"] == code and len(pacs.asked) == 1


def test_no_pacs_at_the_address_and_a_page_in_place_of_json_are_told(at, pacs: FakePacs):
    site = at(f"http://127.0.0.1:{free_port()}/dicom-web")
    rule = site.rule()
    site.poll()
    assert site.told(rule).last_error["code"] == "pacs_unavailable"
    connection = Connection("main", site.settings)
    with pytest.raises(dicomweb_rules.Failed, match="ends before"):
        connection.search(lambda: requests.models.complexjson.loads("<html>"))
    with pytest.raises(dicomweb_rules.Failed, match="ends before"):
        connection.search(lambda: ["series"])


def test_an_answer_that_nobody_expects_is_told_and_asked_again(at, pacs: FakePacs, monkeypatch):
    pacs.add(*chest("first"))
    site = at(pacs.url)
    rule = site.rule()
    odd = [{"0020000E": "1.2.3"}, {}, {"0020000D": {"Value": [None]}, "0020000E": {"Value": ["1.02"]}}]
    for answer, code in ((odd[:1], "internal"), (odd[1:], None)):
        answers = iter([answer])
        monkeypatch.setattr(Connection, "search", lambda *_, answers=answers: next(answers, []))
        site.poll()
        told = site.told(rule)
        assert (told.last_error and told.last_error["code"]) == code and site.states(rule) == {}
    monkeypatch.undo()
    site.poll()
    site.poll()
    assert len(site.jobs()) == 1


def test_a_model_that_is_gone_is_told_and_its_series_wait(at, pacs: FakePacs):
    pacs.add(*chest("first"))
    site = at(pacs.url)
    rule = site.rule()
    with site.database.write() as session:
        session.execute(update(DicomwebRule).values(model="smooth@next"))
    site.poll()
    site.poll()
    assert site.told(rule).last_error["code"] == "not_found" and site.states(rule) == {"ready": 1}
    set_alias(site.database, site.model, "next")
    site.poll()
    assert len(site.jobs()) == 1 and site.told(rule).last_error is None


def test_an_alias_means_what_it_points_to_when_the_job_is_made(at, pacs: FakePacs):
    pacs.add(*chest("first"))
    site = at(pacs.url)
    site.rule()
    site.poll()
    second = register(site.database, site.blobs, site.project_id, "smooth", networks.blur_3d(), dimensions=3)
    set_alias(site.database, second, "champion")
    site.poll()
    assert site.jobs()[0].spec["model"] == "smooth:2"


def test_a_job_that_failed_while_the_pacs_was_away_is_resumed_when_it_is_back_and_others_are_not(at, pacs: FakePacs):
    pacs.add(*chest("first"), *chest("second"))
    site = at(pacs.url)
    rule = site.rule()
    site.poll()
    site.poll()
    jobs = site.jobs()
    with site.database.write() as session:
        for job, code in zip(jobs, ("pacs_unavailable", "bad_series"), strict=True):
            failed = session.get_one(Job, job.id)
            failed.state, failed.error = "failed", {"code": code, "detail": "..."}
    site.poll()
    assert [job_now(site.database, job).state for job in jobs] == ["queued", "failed"]
    assert len(site.jobs()) == 2 and site.states(rule) == {"submitted": 2}
    with site.database.write() as session:
        session.execute(update(DicomwebSeries).values(resumed=dicomweb_rules.MOST_RESUMED))
        session.execute(update(Job).values(state="failed"))
    site.poll()
    assert [job_now(site.database, job).state for job in jobs] == ["failed", "failed"]


def test_a_deleted_job_is_not_made_again(at, pacs: FakePacs):
    pacs.add(*chest("first"))
    site = at(pacs.url)
    site.rule()
    site.poll()
    site.poll()
    with site.database.write() as session:
        session.delete(session.get_one(Job, site.jobs()[0].id))
    site.poll()
    assert not site.jobs()


def test_jobs_of_one_rule_do_not_fill_the_queue(at, pacs: FakePacs, monkeypatch):
    monkeypatch.setattr(dicomweb_rules, "MOST_UNFINISHED", 2)
    for number in range(5):
        pacs.add(*chest(f"series {number}", 1))
    site = at(pacs.url)
    rule = site.rule()
    for _ in range(4):
        site.poll()
    assert len(site.jobs()) == 2 and site.states(rule) == {"submitted": 2, "ready": 3}
    with site.database.write() as session:
        session.execute(update(Job).where(Job.id == site.jobs()[0].id).values(state="succeeded"))
    site.poll()
    assert len(site.jobs()) == 3


def test_an_answer_without_end_is_refused(at, pacs: FakePacs, monkeypatch):
    monkeypatch.setattr(dicomweb_rules, "MOST_LISTED", 3)
    for number in range(5):
        pacs.add(*chest(f"series {number}", 1))
    site = at(pacs.url)
    rule = site.rule()
    site.poll()
    assert site.told(rule).last_error["code"] == "too_many_series" and site.states(rule) == {}


def test_studies_are_searched_as_far_back_as_the_last_answer_could_have_missed(at, pacs: FakePacs):
    site = at(pacs.url)
    rule = site.rule(newer_than="2020-01-01", late_days=3)

    def asked() -> str:
        pacs.asked.clear()
        site.poll()
        return pacs.asked[0].partition("StudyDate=")[2][:9]

    def listed(days: int) -> None:
        with site.database.write() as session:
            session.execute(update(DicomwebRule).values(last_listed_at=now() - timedelta(days=days)))

    def ago(days: int) -> str:
        return f"{(now() - timedelta(days=days)).date():%Y%m%d}-"

    assert asked() == "20200101-", "the first time all that the rule wants"
    assert asked() == ago(3)
    listed(40)
    assert asked() == ago(43), "after an absence"
    listed(40)
    pacs.add(*chest("first", StudyDate=ago(43)[:-1]))
    assert asked() == ago(43) and site.states(rule) == {"growing": 1}
    assert asked() == ago(43) and site.states(rule) == {"submitted": 1}, "what still grows is not left behind"
    assert asked() == ago(3)


def test_rules_of_a_pacs_that_this_worker_does_not_know_are_left_to_others(at, pacs: FakePacs):
    site = at(pacs.url)
    rule = site.rule()
    with site.database.write() as session:
        session.execute(update(DicomwebRule).values(pacs="other"))
    assert site.poll() == 0 and site.told(rule).last_polled_at is None


def test_a_disabled_rule_is_not_polled_and_a_poll_that_runs_ends(at, pacs: FakePacs):
    pacs.add(*chest("first"))
    site = at(pacs.url)
    site.rule()
    site.poll()
    with site.database.write() as session:
        session.execute(update(DicomwebRule).values(next_poll_at=0.0))
    poll = store.begin(site.database, pacs=["main"], hold_s=60)
    assert poll is not None
    with site.database.write() as session:
        session.execute(update(DicomwebRule).values(enabled=False))
    site.rules().run(poll)
    assert not site.jobs() and site.poll() == 0


def test_a_worker_that_stops_leaves_the_poll_to_another_at_once(at, pacs: FakePacs):
    site = at(pacs.url)
    rule = site.rule()
    poll = store.begin(site.database, pacs=["main"], hold_s=60)
    assert poll is not None
    stopping = site.rules()
    site.installations[-1].stopping.set()
    stopping.run(poll)
    assert stopping.poll() == 0 and site.told(rule).next_poll_at == 0 and site.rules().poll() == 1


def test_a_deleted_rule_takes_its_series_along_and_leaves_its_jobs(at, pacs: FakePacs):
    pacs.add(*chest("first"))
    site = at(pacs.url)
    rule = site.rule()
    site.poll()
    site.poll()
    with site.database.write() as session:
        session.delete(session.get_one(DicomwebRule, rule.id))
    with site.database.read() as session:
        assert session.scalar(select(func.count()).select_from(DicomwebSeries)) == 0
    assert len(site.jobs()) == 1


# A real PACS ---------------------------------------------------------------------------------------------------------


def test_a_worker_segments_what_reaches_orthanc_and_never_its_own_results(at, tmp_path: Path):
    pytest.importorskip("highdicom", reason="highdicom needs pyjpegls, which has no wheel for this Python")
    with running_orthanc(tmp_path, chest("first")) as url:
        site = at(f"{url}/dicom-web", username=AUTH[0], password=AUTH[1])
        rules = [
            site.rule("chest", study_description="CT ch?st*", body_part="CHEST"),
            site.rule("head", study_description="*head*"),
            site.rule("knee", body_part="KNEE"),
        ]
        worker = Worker(site.settings)
        lane = threading.Thread(target=worker.serve, args=("quick",))
        worker.start()
        lane.start()

        def story() -> str:
            polls = [(site.told(rule).polls, site.told(rule).last_error, site.states(rule)) for rule in rules]
            return f"jobs; polls {polls}, jobs {[(job.state, job.error) for job in site.jobs()]}"

        def made(number: int) -> bool:
            with site.database.write() as session:
                session.execute(update(DicomwebRule).where(DicomwebRule.next_poll_at > 1e9).values(next_poll_at=0.0))
            ended = [job.state for job in site.jobs()]
            assert "failed" not in ended, [job.error for job in site.jobs()]
            return ended == ["succeeded"] * number

        try:
            wait_for(lambda: made(1), what=story, every=0.5)
            for file in chest("second"):
                requests.post(f"{url}/instances", data=written(file), auth=AUTH, timeout=10).raise_for_status()
            wait_for(lambda: made(2), what=story, every=0.5)
        finally:
            worker.stop()
            lane.join(30)
            worker.close()
        before = site.jobs()
        for _ in range(3):
            site.poll()
        assert len(site.jobs()) == len(before) == 2
        assert [site.states(rule).get("submitted") for rule in rules] == [2, None, None]
        assert all(site.told(rule).last_error is None for rule in rules)
        series = requests.get(f"{url}/series?expand", auth=AUTH, timeout=10).json()
        assert sorted(each["MainDicomTags"]["Modality"] for each in series) == ["CT", "CT", "SEG", "SEG"]


def test_a_wrong_password_of_orthanc_is_told_on_the_rule(at, tmp_path: Path):
    with running_orthanc(tmp_path, chest("first", 1)) as url:
        site = at(f"{url}/dicom-web", username=AUTH[0], password="wrong")
        rule = site.rule()
        site.poll()
        assert site.told(rule).last_error["code"] == "pacs_denied" and not site.jobs()
