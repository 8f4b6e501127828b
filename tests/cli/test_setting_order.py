"""Which setting wins: options, --set, the configuration file, the default."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgraft.cli.main import main
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError

pytestmark = pytest.mark.usefixtures("no_federation")


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """The configuration that `simulate` would run."""
    import fedgraft.simulation.simulate

    def run(file: str, *arguments: str) -> RunConfig:
        seen: list[RunConfig] = []

        def simulate(config: RunConfig, *_: Any, **__: Any) -> None:
            seen.append(config)
            raise UserError("That is all.")

        (tmp_path / "run.toml").write_text(file)
        words = ["fedgraft", "simulate", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "run.toml")]
        monkeypatch.setattr(fedgraft.simulation.simulate, "simulate", simulate)
        monkeypatch.setattr(sys, "argv", [*words, *arguments])
        with pytest.raises(SystemExit):
            main()
        return seen[0]

    return run


FILE = """
sites = 3
rounds = 4
lr = 0.25
data = "folder:photos"
domains = true
[method_options]
rank = 2
mu = 0.125
"""


def test_options_win_over_set_and_set_over_the_file(configured: Callable[..., RunConfig]) -> None:
    config = configured(FILE, "--sites", "7", "--set", "sites=6", "--set", "rounds=5", "--set", "mu=0.75")
    assert (config.sites, config.rounds, config.lr) == (7, 5, 0.25)
    assert config.method_options == {"rank": 2, "mu": 0.75}
    assert config.data_options == {"domains": True}


def test_what_is_given_nowhere_keeps_its_default(configured: Callable[..., RunConfig]) -> None:
    config = configured("sites = 3")
    assert config == RunConfig(sites=3)


def test_every_option_of_simulate_reaches_the_configuration(configured: Callable[..., RunConfig]) -> None:
    """Trap T6: a flag that is never passed on."""
    given = {
        "method": "promptfl", "strategy": "median", "data": "shapes", "protocol": "dirichlet", "backbone": "x/y",
        "precision": "bfloat16", "sites": 7, "rounds": 3, "seed": 9, "participation": 0.5, "quorum": 0.25,
        "answer_seconds": 7.0, "resend_seconds": 8.0, "max_site_images": 9,
        "max_site_share": 0.5, "norm_bound": 3.0, "eval_every": 2, "shots": 5, "views": 3, "test_fraction": 0.125,
        "evaluate_on": "val", "loss": "sigmoid",
        "local_epochs": 4, "batch_size": 6, "optimizer": "sgd", "lr": 0.5, "momentum": 0.75, "weight_decay": 0.0625,
        "schedule": "step", "step_epochs": 3, "step_factor": 0.5, "warmup_epochs": 2, "warmup_lr": 0.01,
        "drop_last": True, "augment": "flip",
    }  # fmt: skip
    assert set(given) == {key for key in RunConfig.model_fields if not key.endswith("_options")}
    assert not [key for key, value in given.items() if value == RunConfig.model_fields[key].default]
    flags = {key: f"--{key.replace('_', '-')}" for key in given}
    words = [word for key, value in given.items() for word in ([flags[key]] if value is True else [flags[key], value])]
    assert configured("", *map(str, words)) == RunConfig.build(given)


def test_set_reaches_the_options_of_method_protocol_and_data_source(configured: Callable[..., RunConfig]) -> None:
    words = ["--method", "fedit", "--protocol", "dirichlet", "--data", "folder:photos"]
    words += ["--set", "method.alpha=2.0", "--set", "protocol.alpha=0.1", "--set", "domains=true", "--set", "rank=2"]
    config = configured("", *words)
    assert config.method_options == {"alpha": 2.0, "rank": 2}
    assert config.protocol_options == {"alpha": 0.1}
    assert config.data_options == {"domains": True}


def test_compare_takes_its_seed_from_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedgraft.simulation.comparison

    seen: list[Any] = []

    def compare(settings: Any, methods: Any, seeds: Any, *_: Any, **__: Any) -> None:
        seen.append(seeds)
        raise UserError("That is all.")

    monkeypatch.setattr(fedgraft.simulation.comparison, "compare", compare)
    monkeypatch.setattr(sys, "argv", ["fedgraft", "compare", "--out", str(tmp_path / "out"), "--set", "seed=7"])
    with pytest.raises(SystemExit):
        main()
    assert seen == [[7]]
