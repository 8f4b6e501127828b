"""What every entry of every door must keep: it says who it is, and its options explain themselves."""

import json
from typing import Any

import pytest

from fedgraft.config.registry import BACKBONES, METHODS, PROTOCOLS, SOURCES, STRATEGIES, Registered, Registry
from fedgraft.core.errors import UserError

ENTRIES = [entry for registry in (METHODS, STRATEGIES, SOURCES, PROTOCOLS, BACKBONES) for entry in registry]


def _required(entry: Registered) -> dict[str, Any]:
    fields = entry.options.model_fields
    return {name: field.examples[0] for name, field in fields.items() if field.is_required() and field.examples}


@pytest.fixture(params=ENTRIES, ids=lambda entry: f"{entry.kind} {entry.name}")
def entry(request: pytest.FixtureRequest) -> Registered:
    """Each entry of each door."""
    found: Registered = request.param
    return found


def test_an_entry_says_in_one_line_what_it_is_for(entry: Registered) -> None:
    assert entry.summary.strip()
    assert "\n" not in entry.summary
    assert not entry.summary.endswith(".")


def test_its_facts_are_texts_and_hold_every_column_of_the_table(entry: Registered) -> None:
    facts = entry.facts()
    assert set(entry.columns) <= set(facts)
    parts = [value if isinstance(value, list) else [value] for value in facts.values()]
    assert all(isinstance(part, str) for several in parts for part in several)
    json.dumps(facts)


def test_every_option_has_a_description_and_an_example_that_is_another_value(entry: Registered) -> None:
    for name, field in entry.options.model_fields.items():
        assert field.description, f"describe the option {name!r}"
        assert field.examples, f"give the option {name!r} an example"
        assert field.is_required() or field.examples[0] != field.default, name
        parsed = entry.parse_options({**_required(entry), name: field.examples[0]})
        assert getattr(parsed, name) == field.examples[0]


def test_an_unknown_option_and_a_wrong_value_are_refused_by_name(entry: Registered) -> None:
    with pytest.raises(UserError, match="no_such_option"):
        entry.parse_options({"no_such_option": 1})
    for name in entry.options.model_fields:
        with pytest.raises(UserError, match=name):
            entry.parse_options({**_required(entry), name: {"a": "table"}})


@pytest.mark.parametrize("registry", [METHODS, STRATEGIES, SOURCES, PROTOCOLS, BACKBONES], ids=lambda door: door.door)
def test_every_entry_of_a_door_loads(registry: Registry[Any]) -> None:
    assert registry.names()
    assert registry.faults() == []
