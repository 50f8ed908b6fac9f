"""Endpoints for rules that make jobs of new series of a PACS."""

from __future__ import annotations

from fastapi import Response

from app.admission import dicomweb_rules as admission
from app.errors import Conflict, IdempotencyConflict, IdempotencyInProgress, InvalidCursor, NotFound, may_answer
from app.http.callers import Caller, require
from app.http.endpoints import Id, noun_router
from app.http.idempotency import once
from app.http.paging import Listing, Page, Together
from app.http.resources import Read, SettingsDep, Write
from app.representations.dicomweb_rules import describe, describe_all
from app.schemas.dicomweb_rules import DicomwebRule, DicomwebRuleChange, NewDicomwebRule, RuleSeries
from app.store import dicomweb_rules as store, tables

router = noun_router("dicomweb rules")


@router.post(
    "/dicomweb/rules",
    status_code=201,
    dependencies=[require("jobs:write"), once],
    responses=may_answer(IdempotencyConflict, Conflict, IdempotencyInProgress),
)
def create_rule(
    new: NewDicomwebRule, caller: Caller, session: Write, settings: SettingsDep, response: Response
) -> DicomwebRule:
    """Make a job of every new series of a PACS that matches, once each."""
    row = admission.create(session, caller, new, settings)
    response.headers["Location"] = f"/v1/dicomweb/rules/{row.id}"
    return describe(session, row)


@router.get("/dicomweb/rules", dependencies=[require("jobs:read")], responses=may_answer(InvalidCursor))
def list_rules(caller: Caller, session: Read, page: Page) -> Listing[DicomwebRule]:
    """The rules of this project, and how their polls go."""
    show = Together(lambda rules: describe_all(session, rules))
    return page.listing(session, store.owned(caller.project_id), tables.DicomwebRule.id, show)


@router.get("/dicomweb/rules/{rule_id}", dependencies=[require("jobs:read")], responses=may_answer(NotFound))
def read_rule(rule_id: Id, caller: Caller, session: Read) -> DicomwebRule:
    """One rule, with when its PACS last answered and why it last did not."""
    return describe(session, store.get(session, caller.project_id, rule_id))


@router.get(
    "/dicomweb/rules/{rule_id}/series",
    dependencies=[require("jobs:read")],
    responses=may_answer(NotFound, InvalidCursor),
)
def list_series(rule_id: Id, caller: Caller, session: Read, page: Page) -> Listing[RuleSeries]:
    """The series that a rule has found, newest first, each with its job."""
    found = store.series_of(session, caller.project_id, rule_id)
    return page.listing(session, found, tables.DicomwebSeries.id, RuleSeries.of)


@router.patch("/dicomweb/rules/{rule_id}", dependencies=[require("jobs:write")], responses=may_answer(NotFound))
def change_rule(
    rule_id: Id, change: DicomwebRuleChange, caller: Caller, session: Write, settings: SettingsDep
) -> DicomwebRule:
    """Enable or disable a rule, ask more or less often, or use another model; the PACS is asked at once.

    What reached the PACS while a rule was disabled is found when it is enabled again.
    """
    return describe(session, admission.change(session, caller, rule_id, change, settings))


@router.delete(
    "/dicomweb/rules/{rule_id}", status_code=204, dependencies=[require("jobs:write")], responses=may_answer(NotFound)
)
def delete_rule(rule_id: Id, caller: Caller, session: Write) -> None:
    """Delete a rule, and what it remembers of series; its jobs, and what they stored in the PACS, stay."""
    admission.delete(session, caller, rule_id)
