"""What there is, told the same way for all five doors: a table, one entry with its options, or JSON of one shape."""

import json
from typing import Any

import pytest

from fedgraft.cli import listings
from fedgraft.config.registry import BACKBONES, METHODS, PROTOCOLS, SOURCES, STRATEGIES, Registry
from tests.cli.conftest import Printed
from tests.config.conftest import install

__all__ = ["install"]

DOORS: dict[str, Registry[Any]] = {
    "methods": METHODS, "strategies": STRATEGIES, "data": SOURCES, "protocols": PROTOCOLS, "backbones": BACKBONES
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_the_table_has_a_row_for_every_entry_with_what_it_is_for(door: str, printed: Printed) -> None:
    table, faults = printed(door)
    rows = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    for entry in DOORS[door]:
        assert entry.summary.split()[0] in rows[entry.name]
        assert all(column in rows["name"] for column in entry.columns)
    assert faults == ""


@pytest.mark.parametrize("door", DOORS)
def test_json_has_one_shape_for_all_doors(door: str, printed: Printed) -> None:
    listed = json.loads(printed(door, "--json")[0])
    assert [entry["name"] for entry in listed] == list(DOORS[door].names())
    for entry in listed:
        registered = DOORS[door].load(entry["name"])
        assert entry.keys() == {"name", "summary", *registered.facts(), "options"}
        assert entry["summary"] == registered.summary
        assert entry["options"].keys() == registered.options.model_fields.keys()


def test_one_entry_is_told_with_every_option_its_default_and_an_example(printed: Printed) -> None:
    told, _ = printed("methods", "fedpgp")
    for name, field in METHODS.load("fedpgp").options.model_fields.items():
        (line,) = [line for line in told.splitlines() if line.split()[:1] == [name]]
        assert repr(field.default) in line
        assert repr(field.examples[0]) in line if field.examples else True
    assert "promptfl" not in told
    assert [entry["name"] for entry in json.loads(printed("methods", "fedpgp", "--json")[0])] == ["fedpgp"]


def test_an_option_that_must_be_given_says_so(printed: Printed) -> None:
    (line,) = [line for line in printed("data", "folder")[0].splitlines() if line.split()[:1] == ["path"]]
    assert "required" in line


@pytest.mark.parametrize("door", DOORS)
def test_an_unknown_entry_is_one_sentence(door: str, printed: Printed) -> None:
    said = printed(door, "no-such-thing", status=2)[1]
    assert said.startswith(f"fedgraft: There is no {DOORS[door].kind} 'no-such-thing'")
    assert said.count("\n") == 1


def test_a_broken_package_is_named_below_the_list_and_hides_nothing(
    install: Any, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("a-broken-package", "fedgraft.sources", "mine = no_such_module_at_all:SOURCE")
    door = Registry[Any]("sources", "data source", "fedgraft.data.sources.source:Source")
    monkeypatch.setattr(listings, "SOURCES", door)
    listed, faults = printed("data", "--json")
    assert [entry["name"] for entry in json.loads(listed)] == list(SOURCES.names())
    assert faults.startswith("fedgraft: The data source 'mine' of the package 'a-broken-package'")
    assert faults.count("\n") == 1
