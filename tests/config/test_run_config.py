"""What a user would lose: a mistake in a setting told at once, and a configuration file that gives the run again."""

import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.config.registry import METHODS, PROTOCOLS
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.methods.plan import Plan

UNTIMED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"siets": 3}, ["'siets'", "Did you mean 'sites'?"]),
        ({"completely_else": 3}, ["'completely_else'", "sites", "rounds"]),
        ({"method": "fedpggp"}, ["'fedpggp'", "Did you mean 'fedpgp'?"]),
        ({"method": 3}, ["'method'", "3"]),
        ({"protocol": "dirichlett"}, ["'dirichlett'", "Did you mean 'dirichlet'?"]),
        ({"protocol": ["dirichlet"]}, ["'protocol'", "['dirichlet']", "string"]),
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
        ({"momentum": 1}, ["'momentum'", "less than 1"]),
        ({"optimizer": "adamw"}, ["'optimizer'", "'adamw'", "'adam'"]),
        ({"method_options": 3}, ["'method_options'", "3"]),
        ({"method_options": {"rank": [1, 2]}}, ["method_options.rank", "[1, 2]"]),
        ({"protocol_options": ["alpha"]}, ["'protocol_options'", "alpha"]),
        ({"data": "digit"}, ["'digit'", "Did you mean 'digits'?"]),
        ({"strategy": "medain"}, ["'medain'", "Did you mean 'median'?"]),
        ({"alpha": 0.1}, ["'alpha'"]),
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


TEXT = st.characters(exclude_categories=["Cs"])
TABLES = st.dictionaries(
    st.text(TEXT, min_size=1, max_size=8),
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("a\"'\n\\é")
    | st.lists(st.text(TEXT, max_size=5), max_size=3),
    max_size=3,
)


@UNTIMED
@given(
    chosen=st.fixed_dictionaries(
        {},
        optional={
            "method": st.sampled_from(METHODS.names()),
            "protocol": st.sampled_from(PROTOCOLS.names()),
            "data": st.text(TEXT, max_size=20).map("folder:{}".format),
            "sites": st.integers(1, 10**6),
            "seed": st.integers(0, 2**63 - 1),
            "participation": st.floats(0, 1, exclude_min=True),
            "lr": st.floats(1e-12, 1e6),
            "method_options": TABLES,
            "protocol_options": TABLES,
            "data_options": TABLES,
            "backbone_options": TABLES,
        },
    )
)
def test_the_written_file_gives_the_same_configuration(chosen: dict[str, Any]) -> None:
    """config.toml of a run, run again, gives the same run."""
    config = RunConfig.build(chosen)
    written = tomllib.loads(config.to_toml())
    assert written.keys() == RunConfig.model_fields.keys()
    assert RunConfig.build(written) == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"protocol": "own-data"}, ["'own-data'", "needs the option 'class_names'"]),
        (
            {"protocol": "base-to-novel", "protocol_options": {"class_names": ["a", "b"]}},
            ["'base-to-novel'", "no option"],
        ),
        ({"protocol": "own-data", "protocol_options": {"class_names": ["b", "a"]}}, ["two different names, sorted"]),
        ({"protocol": "own-data", "protocol_options": {"class_names": ["a", "a"]}}, ["two different names, sorted"]),
        ({"protocol": "own-data", "protocol_options": {"class_names": ["a"]}}, ["two different names, sorted"]),
        ({"protocol": "dirichlet", "protocol_options": {"alpha": 0.0}}, ["'alpha'", "greater than 0"]),
        (
            {"protocol": "dirichlet", "protocol_options": {"partition": "natural"}},
            ["'partition'", "'natural'", "'iid'"],
        ),
        ({"protocol": "dirichlet", "protocol_options": {"alhpa": 1.0}}, ["'alhpa'", "Did you mean 'alpha'?"]),
    ],
    ids=str,
)
def test_a_mistaken_option_of_a_protocol_is_one_sentence(settings: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Plan.of(RunConfig.build(settings))
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in said), error.value


def test_a_mistaken_option_of_a_data_source_is_one_sentence() -> None:
    with pytest.raises(UserError, match="'domains' of 'folder' has the value 'yes'"):
        Plan.of(RunConfig(data="folder:photos", data_options={"domains": "yes"})).open_examples()


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
        METHODS.load(method).parse_options(options)
    for part in said:
        assert part in str(error.value)
