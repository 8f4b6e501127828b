"""Every method from its first round to its summary, alone and with `anchored`, which measures it on other names."""

import json
from pathlib import Path

import pytest

from fedgraft import RunConfig, UserError
from fedgraft.config.registry import METHODS
from fedgraft.core.observer import Observer
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on
from tests.simulation.conftest import open_once

SMALL = {"data": "digits", "sites": 2, "rounds": 1, "shots": 2, "local_epochs": 1, "test_fraction": 0.05}
NOT_ANCHORED = {
    **dict.fromkeys(("clip-adapter", "fedclip", "fedpha", "fedsa-lora", "vpt"), "does not change them"),
    **dict.fromkeys(("local", "tip-adapter"), "shares nothing"),
    "dp-fpl": "privacy account",
    "flexlora": "no directions in common",
    "linear-probe": "classes that nobody trains on",
    "zeroshot": "trains nothing",
}


def _summary(engine: Engine, out: Path, **settings: str) -> dict[str, dict[str, object]]:
    config = RunConfig.build({**SMALL, **settings})
    simulate_on(engine, config, out, False, Observer(), open_examples=open_once)
    summary: dict[str, dict[str, object]] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("method", METHODS.names())
def test_a_run_ends_with_a_summary(method: str, engine: Engine, tmp_path: Path) -> None:
    summary = _summary(engine, tmp_path / "run", method=method)
    assert {"local", "base", "novel"} <= summary["metrics"].keys()
    assert summary["retention"]["images"]


@pytest.mark.parametrize("method", METHODS.names())
def test_anchored_runs_with_what_moves_the_names_alone(method: str, engine: Engine, tmp_path: Path) -> None:
    settings = {"method": method, "strategy": "anchored(drift=0.01)"}
    if method in NOT_ANCHORED:
        with pytest.raises(UserError, match=NOT_ANCHORED[method]):
            _summary(engine, tmp_path / "run", **settings)
    else:
        assert _summary(engine, tmp_path / "run", **settings)["retention"]["names"]
