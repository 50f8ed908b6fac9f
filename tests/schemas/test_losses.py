"""Loss schemas have the options and defaults of the loss functions."""

import inspect
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from app.job_kinds import JobSpec
from app.schemas.jobs import TRAIN_EXAMPLE
from app.schemas.losses import SCHEDULE, LossTerm, NeighbourPenalty
from models.losses import LOSSES, hyper_parameters, usual
from models.losses.combine import MODES, Objective, Schedule, Term
from models.spec import Spec

TERMS = get_args(get_args(LossTerm)[0])
spec_of = TypeAdapter(JobSpec).validate_python


def named(term):
    return get_args(term.model_fields["name"].annotation)[0]


def test_every_loss_can_be_named_in_a_job_and_nothing_else_can():
    assert {named(term) for term in TERMS} == set(LOSSES)


@pytest.mark.parametrize("term", TERMS, ids=named)
def test_a_term_has_the_options_and_defaults_of_its_function(term):
    options = {
        name: inspect.Parameter.empty if field.is_required() else field.default
        for name, field in term.model_fields.items()
        if name not in SCHEDULE | {"name"}
    }
    assert options == hyper_parameters(named(term))


@pytest.mark.parametrize("term", TERMS, ids=named)
def test_every_option_says_what_it_is_and_has_a_bound(term):
    for name, schema in term.model_json_schema()["properties"].items():
        if name in SCHEDULE | {"name"}:
            continue
        assert schema.get("description"), f"{named(term)}.{name} has no description"
        text = str(schema)
        assert any(word in text for word in ("enum", "boolean", "aximum", "maxItems")), (
            f"{named(term)}.{name} has no upper bound"
        )


def test_schedule_and_penalty_have_the_defaults_of_the_trainer():
    term = TERMS[0](name=named(TERMS[0]))
    assert {name: getattr(term, name) for name in SCHEDULE} == {"balance": None} | {
        name: field.default for name, field in Schedule.__dataclass_fields__.items()
    }
    assert set(get_args(NeighbourPenalty.model_fields["mode"].annotation)) == set(MODES)


@pytest.mark.parametrize("term", TERMS, ids=named)
def test_default_weight_and_balance_are_equal_by_http_and_command(term):
    needed = {"pairs": [{"subject": 2, "others": [1]}]} if "pairs" in term.model_fields else {}
    asked, read = term(name=named(term), **needed), Objective({"terms": [{"name": named(term), **needed}]}).terms[0]
    assert (asked.weight, asked.balance) == (read.schedule.weight, read.balance)
    full = asked.model_dump(mode="json")
    assert Objective({"terms": [full]}).terms[0] == Term.read(full) and full["weight"] == usual(named(term)).weight


def test_a_full_spec_is_read_by_the_trainer_without_an_unknown_field():
    full = spec_of(TRAIN_EXAMPLE).model_dump(mode="json")
    read, unknown = Spec.read(full)
    assert not unknown
    assert read.steps == 4000 and read.loss["neighbour_penalty"] == {"window": 3, "mode": "add", "from_step": 0}


def test_every_network_can_be_named_and_has_the_options_of_its_builder():
    from app.schemas.jobs import Network, UNet
    from models.networks import NETWORKS

    shapes = {named(get_args(each)[0]): get_args(each)[0] for each in get_args(get_args(Network)[0])}
    assert set(shapes) == set(NETWORKS)
    for name, shape in shapes.items():
        taken = inspect.signature(NETWORKS[name]).parameters
        assert set(shape.model_fields) - {"name"} <= set(taken), name
        assert all(
            shape.model_fields[each].default == taken[each].default
            for each in shape.model_fields
            if each not in ("name", "channels")
        ), name
    assert spec_of(TRAIN_EXAMPLE | {"network": {"channels": [8]}}).network == UNet(channels=[8])
    assert spec_of(TRAIN_EXAMPLE | {"network": {"name": "unet_tcsp", "iterations": 3}}).network.iterations == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": {"terms": [{"name": "dise"}]}}, "dise"),
        ({"loss": {"terms": [{"name": "dice", "smoth": 1}]}}, "smoth"),
        ({"loss": {"terms": [{"name": "dice"}, {"name": "dice"}]}}, "more than once"),
        ({"loss": {"terms": [{"name": "dice", "from_step": 9, "to_step": 9}]}}, "never count"),
        ({"loss": {"terms": [{"name": "dice"}], "neighbour_penalty": {"window": 4}}}, "odd"),
        ({"loss": {"terms": [{"name": "inside"}]}}, "pairs"),
        ({"loss": {"terms": [{"name": "inside", "pairs": [{"subject": 2, "others": [1, 2]}]}]}}, "own others"),
        ({"steps": -1}, "steps"),
        ({"steps": float("nan")}, "steps"),
        ({"steps": "500"}, "steps"),
        ({"batch": True}, "batch"),
        ({"patch": [250, 256]}, "multiples of 4"),
        ({"folds": 5, "fold": 5}, "numbered from 0"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"network": {"name": "unett"}}, "unett"),
        ({"network": {"chanels": [8]}}, "chanels"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_field_or_the_reason(change, words):
    with pytest.raises(ValidationError, match=words):
        spec_of(TRAIN_EXAMPLE | change)
