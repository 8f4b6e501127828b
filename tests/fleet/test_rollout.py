"""Stages and halting conditions, as a publisher writes them."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.core.errors import UserError
from fedgraft.fleet.rollout import HaltRule, RolloutPlan, place, span


def test_a_plan_is_read_as_written_and_survives_the_database() -> None:
    plan = RolloutPlan.build(5, "25,100", "90m", "failed>2% or unknown > 20.5 %")
    assert plan.percents == (5, 25, 100)
    assert plan.after == 5400
    assert plan.halt.terms == (("failed", 2.0), ("unknown", 20.5))
    assert RolloutPlan.parse(plan.content()) == plan
    assert RolloutPlan.build().percents == (100.0,)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"percent": 0}, "A stage of 0 % is out of range"),
        ({"percent": -5}, "A stage of -5 % is out of range"),
        ({"percent": 101}, "A stage of 101 % is out of range"),
        ({"percent": float("nan")}, "out of range"),
        ({"percent": 5, "then": "25,400"}, "A stage of 400 % is out of range"),
        ({"percent": 50, "then": "25"}, "do not ascend"),
        ({"percent": 5, "then": "half"}, "not a list of percentages"),
        ({"after": "soon"}, "not a span of time"),
        ({"after": "-1h"}, "not a span of time"),
        ({"halt_if": "failed"}, "is not a condition"),
        ({"halt_if": "failed>2"}, "is not a condition"),
        ({"halt_if": "failed>200%"}, "is not a condition"),
        ({"halt_if": "wrong>2%"}, "is not a condition"),
        ({"halt_if": "failed>2% and unknown>3%"}, "is not a condition"),
        ({"halt_if": ""}, "is not a condition"),
    ],
)
def test_what_is_no_plan_is_one_sentence(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        RolloutPlan.build(**settings)
    assert "\n" not in str(raised.value)


def test_a_condition_halts_above_its_percentage_and_not_at_it() -> None:
    rule = HaltRule.parse("failed>2% or unknown>20%")
    assert rule.broken({"failed": 2.0, "unknown": 20.0}) is None
    assert rule.broken({}) is None
    assert rule.broken({"failed": 2.1}) == "failed is 2.1 %, more than 2 %"
    assert rule.broken({"failed": 0.0, "unknown": 50.0}) == "unknown is 50.0 %, more than 20 %"


def test_places_are_even_fixed_and_others_for_another_release() -> None:
    devices = [f"d-{number}" for number in range(4000)]
    places = [place(device, "a") for device in devices]
    assert 0 <= min(places) < max(places) < 100
    for percent in (5, 25, 50):
        share = 100 * sum(each < percent for each in places) / len(places)
        assert share == pytest.approx(percent, abs=2)
    assert places == [place(device, "a") for device in devices]
    first = {device for device in devices if place(device, "a") < 5}
    other = {device for device in devices if place(device, "b") < 5}
    assert len(first & other) < len(first) / 4


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_place_is_the_hash_as_a_fraction(device: str, release: str) -> None:
    try:
        digest = hashlib.sha256(f"{release}/{device}".encode()).hexdigest()
    except UnicodeEncodeError:
        return
    assert place(device, release) == pytest.approx(100 * int(digest[:16], 16) / 16**16)


def test_spans() -> None:
    assert [span(text) for text in ("30s", "1.5m", "1h", "2d")] == [30, 90, 3600, 172800]
