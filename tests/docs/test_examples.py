"""Job and loss examples in the documentation are accepted by the service."""

import json
import re

import pytest
from pydantic import TypeAdapter

from app.job_kinds import JobSpec
from app.schemas.losses import Loss
from models.spec import Spec
from tests.services import ROOT

BLOCK = re.compile(r"^```json\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = [
    pytest.param(facts, id=f"{page.stem}-{number}")
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for number, block in enumerate(BLOCK.findall(page.read_text()))
    if isinstance(facts := json.loads(block), dict) and {"kind", "terms"} & set(facts)
]


@pytest.mark.parametrize("facts", SHOWN)
def test_documented_examples_are_accepted(facts):
    spec = TypeAdapter(JobSpec if "kind" in facts else Loss).validate_python(facts).model_dump(mode="json")
    if facts.get("kind") == "train":
        assert Spec.read(spec)[1] == [], "the trainer knows every field"


def test_the_pages_show_a_loss_and_a_job_on_volumes():
    shown = [each.values[0] for each in SHOWN]
    assert any("terms" in facts for facts in shown) and any(
        facts.get("network", {}).get("dimensions") == 3 for facts in shown
    )
