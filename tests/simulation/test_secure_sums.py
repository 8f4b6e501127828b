"""Secure aggregation in simulations: what is learnt with and without it, one site a node or several."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedgraft import RunConfig
from fedgraft.core.observer import Observer
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on

CONFIG = RunConfig(method="promptfl", data="digits", sites=4, rounds=2, local_epochs=1, method_options={"n_ctx": 2})


def _run(engine: Engine, out: Path, **settings: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    summary = simulate_on(engine, CONFIG.model_copy(update=settings), out, False, Observer())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert not (out / "open_rounds").exists()
    return summary["metrics"], [row for row in rows if row["scope"] == "train"]


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "fedpgp", "method_options": {"n_ctx": 2, "rank": 2}},
        pytest.param({"protocol": "dirichlet", "sites": 36, "participation": 0.6}, marks=pytest.mark.slow),
    ],
    ids=["fedpgp", "several sites a node"],
)
def test_a_run_learns_the_same_whether_or_not_the_server_sees_the_updates(
    settings: dict[str, Any], engine: Engine, tmp_path: Path
) -> None:
    hidden, hidden_rows = _run(engine, tmp_path / "hidden", **settings, strategy="secagg")
    plain, plain_rows = _run(engine, tmp_path / "plain", **settings, strategy="fedavg")
    assert hidden == pytest.approx(plain, abs=0.5)
    for one, other in zip(hidden_rows, plain_rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)
        assert (one["num_examples"], one["sites"], one["clipped_sites"]) == (other["num_examples"], other["sites"], 0)


def test_steps_follow_the_sum(engine: Engine, tmp_path: Path) -> None:
    hidden, _ = _run(engine, tmp_path / "hidden", strategy="secagg+fedavgm(momentum=0.5)+interpolate")
    plain, _ = _run(engine, tmp_path / "plain", strategy="fedavg+fedavgm(momentum=0.5)+interpolate")
    assert hidden == pytest.approx(plain, abs=0.5)
