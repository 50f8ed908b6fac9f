"""What is known of a job kind follows from its row in the table, everywhere."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from app import queue
from app.admission.jobs import ADMIT
from app.job_kinds import KINDS, LANES, JobKind, JobSpec
from app.schemas.job_status import Job
from app.store import tables

ROOT = Path(__file__).parents[2]

of_each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
spec_of = TypeAdapter(JobSpec).validate_python


def example(kind: JobKind) -> dict:
    return kind.spec.model_config["json_schema_extra"]["examples"][0]


@of_each_kind
def test_a_kind_has_one_name_everywhere(kind):
    assert get_args(kind.spec.model_fields["kind"].annotation) == (kind.name,)
    assert callable(getattr(import_module(f"workers.{kind.name}"), kind.name)), "a worker finds it by its name"
    assert kind.name in ADMIT
    assert kind.name in Job.model_json_schema()["properties"]["kind"]["enum"]


def test_no_other_list_has_a_kind_outside_the_table():
    assert set(ADMIT) == set(KINDS) == set(Job.model_json_schema()["properties"]["kind"]["enum"])
    mapping = TypeAdapter(JobSpec).json_schema()["discriminator"]["mapping"]
    assert set(mapping) == set(KINDS)
    with pytest.raises(ValidationError, match=", ".join(map(repr, KINDS))):
        spec_of({"kind": "nonsense"})


@of_each_kind
def test_the_example_of_a_kind_is_accepted_and_has_a_title(kind):
    spec = spec_of(example(kind))
    assert type(spec) is kind.spec
    title = kind.title_of(spec.model_dump(mode="json"))
    assert title and not any(each in title for each in ("{", "None", " a "))
    assert kind.title_of({}), "a job whose spec is odd does not break a page"


def test_titles_say_what_on_what():
    images = ["01936f5e-7c00-7000-8000-000000000001"] * 2
    assert KINDS["predict"].title_of({"model": "m:1", "images": images}) == "Predict with m:1 on 2 images"
    assert KINDS["predict"].title_of({"model": "m:1", "dataset": "d@1"}) == "Predict with m:1 on d@1"
    assert KINDS["analyse"].title_of({"images": images[:1]}) == "Analyse 1 image"
    assert KINDS["train"].title_of({"dataset": "d@1"}) == "Train a model on d@1"


def test_every_lane_has_kinds_and_a_queue_of_the_broker():
    assert LANES == ("train", "quick") and {kind.lane for kind in KINDS.values()} == set(LANES)
    app = queue.celery_app("redis://127.0.0.1:1/0")
    assert {each.name for each in app.conf.task_queues} == set(LANES)


def test_the_table_of_jobs_holds_exactly_these_kinds():
    (constraint,) = (each for each in tables.Job.__table__.constraints if each.name == "ck_jobs_kind")
    assert str(constraint.sqltext) == f"kind in {tuple(KINDS)}"


def test_few_files_name_a_kind():
    """What a new kind has to touch, beside its migration, tests and how-to; `make docs` writes docs/reference/jobs.md.

    Looked at for `analyse`: the other names are words for other things too, or have pages of their own.
    """

    def names_it(path: Path) -> bool:
        constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        return path.stem == "analyse" or "analyse" in constants

    sources = [path for package in ("app", "workers") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in sources if names_it(path)}
    assert found == {
        "app/schemas/jobs.py",
        "app/job_kinds.py",
        "app/admission/jobs.py",
        "workers/analyse.py",
    }
