"""Settings from files, from `--set` and from options: which one wins, whose option a key is, what 0.1.0 wrote."""

from pathlib import Path
from typing import Any

import pytest

from fedgraft.config.run_config import RunConfig
from fedgraft.config.settings import merged, parse_assignments, read_toml, sorted_into_tables
from fedgraft.core.errors import UserError
from fedgraft.methods.plan import Plan

# --- files ---------------------------------------------------------------------------------------------------------


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


def test_a_configuration_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """As editors on Windows write it."""
    path = tmp_path / "run.toml"
    path.write_text('\ufeffmethod = "promptfl"\nrounds = 3\n', encoding="utf-8")
    assert read_toml(path) == {"method": "promptfl", "rounds": 3}


# --- assignments ---------------------------------------------------------------------------------------------------


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


# --- layers --------------------------------------------------------------------------------------------------------


def test_later_layers_win_and_tables_of_options_are_merged_one_by_one() -> None:
    file = {"lr": 0.1, "sites": 3, "method_options": {"rank": 4, "mu": 0.1}}
    assignments = {"lr": 0.2, "method_options": {"mu": 0.9}, "protocol_options": {"alpha": 0.3}}
    assert merged(file, assignments, {"sites": 7}) == {
        "lr": 0.2,
        "sites": 7,
        "method_options": {"rank": 4, "mu": 0.9},
        "protocol_options": {"alpha": 0.3},
    }
    assert file["method_options"] == {"rank": 4, "mu": 0.1}
    assert merged({}, {"lr": 0.1}) == {"lr": 0.1}


def test_options_that_are_no_table_are_named() -> None:
    with pytest.raises(UserError, match="method_options"):
        RunConfig.build(merged({"method_options": 3}, {"lr": 0.1}))


# --- whose option a key is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": 0.1}, {"lr": 0.1}),
        ({"lr": 0.1, "rank": 4}, {"lr": 0.1, "method_options": {"rank": 4}}),
        ({"protocol": "dirichlet", "alpha": 0.1}, {"protocol": "dirichlet", "protocol_options": {"alpha": 0.1}}),
        ({"data": "folder:photos", "domains": True}, {"data": "folder:photos", "data_options": {"domains": True}}),
        ({"method": "fedit", "alpha": 2.0}, {"method": "fedit", "method_options": {"alpha": 2.0}}),
        ({"rank": 4, "method_options": {"mu": 0.1}}, {"method_options": {"mu": 0.1, "rank": 4}}),
        ({"method.rank": 4}, {"method_options": {"rank": 4}}),
    ],
    ids=str,
)
def test_a_key_that_is_not_the_runs_goes_to_what_has_such_an_option(
    settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert sorted_into_tables(settings) == expected


BOTH = {"method": "fedit", "protocol": "dirichlet"}


def test_a_key_that_method_and_protocol_both_have_is_asked_for_by_its_owner() -> None:
    with pytest.raises(UserError) as error:
        sorted_into_tables({**BOTH, "alpha": 0.1})
    assert str(error.value) == "'alpha' is an option of the method and of the protocol; write method.alpha=..."
    assert sorted_into_tables({**BOTH, "method.alpha": 2.0, "protocol.alpha": 0.1}) == {
        **BOTH,
        "method_options": {"alpha": 2.0},
        "protocol_options": {"alpha": 0.1},
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rnak": 4}, ["'rnak'", "Did you mean 'rank'?"]),
        ({"siets": 4}, ["'siets'", "Did you mean 'sites'?"]),
        ({"alpha": 0.1}, ["'alpha'"]),
        ({"protocol": "dirichlet", "data.alpha": 0.1}, ["'data.alpha'"]),
        ({"strategy.fraction": 0.1}, ["'strategy.fraction'"]),
    ],
    ids=str,
)
def test_a_key_that_nothing_has_is_refused_with_the_nearest_one(settings: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(UserError) as error:
        sorted_into_tables(settings)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in said), error.value


def test_in_a_comparison_a_key_belongs_to_whichever_method_has_it() -> None:
    assert sorted_into_tables({"mu": 1.0}, ["promptfl", "fedpgp"]) == {"method_options": {"mu": 1.0}}
    with pytest.raises(UserError, match="'mu'"):
        sorted_into_tables({"mu": 1.0}, ["zeroshot", "local"])


# --- what 0.1.0 wrote ----------------------------------------------------------------------------------------------

OF_0_1_0 = """\
method = "fedit"
data = "folder:photos"
protocol = "dirichlet"
backbone = "mini"
precision = "float32"
sites = 4
rounds = 3
seed = 0
shots = 16
views = 1
test_fraction = 0.3
participation = 1.0
quorum = 0.5
class_names = []
answer_seconds = 3600.0
resend_seconds = 120.0
domains = true
partition = "pathological"
alpha = 0.1
classes_per_site = 3
strategy = ""
local_epochs = 2
batch_size = 32
optimizer = "adam"
lr = 0.003
momentum = 0.9
weight_decay = 0.0
eval_every = 1

[method_options]
alpha = 4.0
rank = 2
"""
DEPLOYED_BY_0_1_0 = """\
method = "promptfl"
data = "folder:own"
protocol = "own-data"
backbone = "mini"
precision = "float32"
sites = 2
rounds = 25
seed = 0
shots = 16
views = 1
test_fraction = 0.3
participation = 1.0
quorum = 0.5
class_names = [
    "cat",
    "dog",
]
answer_seconds = 3600.0
resend_seconds = 120.0
domains = false
partition = "dirichlet"
alpha = 0.5
classes_per_site = 2
strategy = ""
local_epochs = 2
batch_size = 32
optimizer = "adam"
lr = 0.003
momentum = 0.9
weight_decay = 0.0
eval_every = 1

[method_options]
"""


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """Opens the text of a configuration."""

    def open_text(text: str) -> RunConfig:
        (tmp_path / "config.toml").write_text(text)
        return RunConfig.build(read_toml(tmp_path / "config.toml"))

    return open_text


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """Editors on Windows put one in front."""
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbfsites = 3\r\n")
    assert read_toml(tmp_path / "run.toml") == {"sites": 3}


def test_a_configuration_of_0_1_0_opens_with_each_option_at_what_has_it(opened: Any) -> None:
    assert opened(OF_0_1_0) == RunConfig(
        method="fedit",
        data="folder:photos",
        protocol="dirichlet",
        sites=4,
        rounds=3,
        method_options={"rank": 2, "alpha": 4.0},
        protocol_options={"partition": "pathological", "alpha": 0.1, "classes_per_site": 3},
        data_options={"domains": True},
    )


def test_a_deployment_of_0_1_0_keeps_the_classes_of_its_federation(opened: Any) -> None:
    config = opened(DEPLOYED_BY_0_1_0)
    assert config.protocol_options == {"class_names": ["cat", "dog"]}
    assert Plan.of(config).announced.class_names == ("cat", "dog")


def test_what_a_protocol_of_0_1_0_never_read_is_dropped(opened: Any) -> None:
    config = opened(OF_0_1_0.replace('"dirichlet"', '"base-to-novel"').replace('"folder:photos"', '"digits"'))
    assert (config.protocol_options, config.data_options) == ({}, {})
    Plan.of(config)
