"""What a user would lose: a mistake in a setting told at once, and a configuration file that gives the run again."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.config.run_config import DEALT_PROTOCOLS, RunConfig, merged, parse_assignments, read_toml
from fedgraft.core.errors import UserError
from fedgraft.methods import load_method, method_names

UNTIMED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"siets": 3}, ["'siets'", "Did you mean 'sites'?"]),
        ({"completely_else": 3}, ["'completely_else'", "sites", "rounds"]),
        ({"method": "fedpg"}, ["'fedpg'", "Did you mean 'fedpgp'?"]),
        ({"method": 3}, ["'method'", "3"]),
        ({"protocol": "dirichlett"}, ["'dirichlett'", "Did you mean 'dirichlet'?"]),
        ({"protocol": ["dirichlet"]}, ["protocol", "base-to-novel"]),
        ({"sites": "ten"}, ["'sites'", "'ten'", "integer"]),
        ({"sites": "10"}, ["'sites'", "'10'", "integer"]),
        ({"sites": 10.0}, ["'sites'", "10.0", "integer"]),
        ({"sites": True}, ["'sites'", "True", "integer"]),
        ({"sites": 0}, ["'sites'", "0", "greater than or equal to 1"]),
        ({"rounds": -1}, ["'rounds'", "-1"]),
        ({"seed": -1}, ["'seed'", "-1"]),
        ({"participation": 1.5}, ["'participation'", "1.5", "less than or equal to 1"]),
        ({"participation": 0}, ["'participation'", "greater than 0"]),
        ({"participation": float("nan")}, ["'participation'", "nan"]),
        ({"test_fraction": 1.0}, ["'test_fraction'", "less than 1"]),
        ({"lr": float("nan")}, ["'lr'", "nan"]),
        ({"alpha": 0.0}, ["'alpha'", "greater than 0"]),
        ({"momentum": 1}, ["'momentum'", "less than 1"]),
        ({"partition": "natural"}, ["'partition'", "'natural'", "'iid'"]),
        ({"optimizer": "adamw"}, ["'optimizer'", "'adamw'", "'adam'"]),
        ({"domains": "yes"}, ["'domains'", "'yes'"]),
        ({"method_options": 3}, ["'method_options'", "3"]),
        ({"method_options": {"rank": [1, 2]}}, ["method_options.rank", "[1, 2]"]),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence_with_the_key_the_value_and_what_would_be_right(
    given: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        RunConfig.build(given)
    sentence = str(error.value)
    assert "\n" not in sentence
    for part in said:
        assert part in sentence


def test_whole_numbers_serve_where_fractions_are_asked_for() -> None:
    assert RunConfig.build({"participation": 1, "lr": 1}).participation == 1.0


def test_a_configuration_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().sites = 0  # type: ignore[misc]


@UNTIMED
@given(
    chosen=st.fixed_dictionaries(
        {},
        optional={
            "method": st.sampled_from(method_names()),
            "protocol": st.sampled_from(DEALT_PROTOCOLS),
            "data": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
            "sites": st.integers(1, 10**6),
            "seed": st.integers(0, 2**63 - 1),
            "participation": st.floats(0, 1, exclude_min=True),
            "lr": st.floats(1e-12, 1e6),
            "domains": st.booleans(),
            "method_options": st.dictionaries(
                st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
                st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text("a\"'\n\\é"),
                max_size=3,
            ),
        },
    )
)
def test_the_written_file_gives_the_same_configuration(chosen: dict[str, Any]) -> None:
    """config.toml of a run, run again, gives the same run."""
    config = RunConfig.build(chosen)
    written = tomllib.loads(config.to_toml())
    assert written.keys() == RunConfig.model_fields.keys()
    assert RunConfig.build(written) == config


def test_the_classes_of_a_federation_survive_the_file() -> None:
    config = RunConfig(protocol="own-data", class_names=["a cup", 'b"ear'])
    assert RunConfig.build(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"protocol": "own-data"}, "takes the classes of the federation as class_names"),
        ({"class_names": ["a", "b"]}, "own-data, and no other"),
        ({"protocol": "own-data", "class_names": ["b", "a"]}, "at least two different names, sorted"),
        ({"protocol": "own-data", "class_names": ["a", "a"]}, "at least two different names, sorted"),
        ({"protocol": "own-data", "class_names": ["a"]}, "at least two different names, sorted"),
    ],
)
def test_classes_that_make_no_federation(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RunConfig.build(settings)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_toml(tmp_path / "run.toml")
    assert str(tmp_path / "run.toml") in str(error.value)


@pytest.mark.parametrize("content", [b"sites = ", b"sites: 3", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_toml(path)
    assert str(path) in str(error.value)
    assert "TOML" in str(error.value)


def test_a_folder_is_no_configuration_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_toml(tmp_path)


@pytest.mark.parametrize("word", ["lr", "=3", "", "lr:0.1"])
def test_an_assignment_without_a_key_and_a_value_is_shown_with_an_example(word: str) -> None:
    with pytest.raises(UserError) as error:
        parse_assignments([word])
    assert repr(word) in str(error.value)
    assert "key=value" in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ('"3"', "3"),
        ("adam", "adam"),
        ("folder:/photos/my set=1", "folder:/photos/my set=1"),
        ("", ""),
    ],
)
def test_assigned_values_are_read_as_toml_and_else_as_text(text: str, value: object) -> None:
    assigned = parse_assignments([f"data={text}"])["data"]
    assert assigned == value
    assert type(assigned) is type(value)


def test_assigned_keys_that_are_not_the_runs_are_the_methods() -> None:
    assert parse_assignments(["lr=0.1", "rank=4"]) == {"lr": 0.1, "method_options": {"rank": 4}}
    assert parse_assignments(["lr=0.1"]) == {"lr": 0.1}


def test_later_layers_win_and_method_options_are_merged_one_by_one() -> None:
    file = {"lr": 0.1, "sites": 3, "method_options": {"rank": 4, "mu": 0.1}}
    assignments = {"lr": 0.2, "method_options": {"mu": 0.9}}
    assert merged(file, assignments, {"sites": 7}) == {
        "lr": 0.2,
        "sites": 7,
        "method_options": {"rank": 4, "mu": 0.9},
    }
    assert file["method_options"] == {"rank": 4, "mu": 0.1}
    assert merged({}, {"lr": 0.1}) == {"lr": 0.1}


def test_method_options_of_a_wrong_type_in_a_file_are_named() -> None:
    with pytest.raises(UserError, match="method_options"):
        RunConfig.build(merged({"method_options": 3}, {"lr": 0.1}))


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("fedpgp", {"rnak": 4}, ["'rnak'", "'fedpgp'", "Did you mean 'rank'?"]),
        ("fedpgp", {"rank": "four"}, ["'rank'", "'four'", "integer"]),
        ("fedpgp", {"rank": 0}, ["'rank'", "greater than or equal to 1"]),
        ("fedpgp", {"anchor": "templates"}, ["'anchor'", "'template'"]),
        ("zeroshot", {"rank": 4}, ["'zeroshot'", "'rank'"]),
    ],
    ids=str,
)
def test_a_mistaken_method_option_is_one_sentence(method: str, options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_method(method).parse_options(options)
    for part in said:
        assert part in str(error.value)
