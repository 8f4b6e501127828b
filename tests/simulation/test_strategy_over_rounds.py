"""A user's strategy inside a run: what the server remembers survives a kill, and the summary says what was promised."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedgraft import RunConfig
from fedgraft.core.observer import Observer
from fedgraft.reports import write_report
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on
from fedgraft.strategies.privacy import epsilon
from tests.simulation.conftest import HalfwayCopy

CONFIG = RunConfig(
    method="promptfl", data="digits", sites=3, rounds=4, shots=4, local_epochs=1, eval_every=2,
    strategy="adaptive-dp(clipping_norm=0.05, noise_multiplier=0.5)", method_options={"n_ctx": 2},
)  # fmt: skip


def _figures(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if row["scope"] == "train"]


@pytest.fixture(scope="module")
def runs(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A whole run, what was on disk after its second round, and its summary."""
    folder = tmp_path_factory.mktemp("runs")
    whole, half = folder / "whole", folder / "half"
    return whole, half, simulate_on(engine, CONFIG, whole, False, HalfwayCopy(whole, half))


def test_an_adapted_clipping_norm_survives_a_kill(runs: tuple[Path, Path, dict[str, Any]], engine: Engine) -> None:
    whole, half, summary = runs
    resumed = simulate_on(engine, CONFIG, half, True, Observer())
    assert resumed["metrics"] == summary["metrics"]
    norms = _figures(whole, "clipping_norm")
    assert _figures(half, "clipping_norm") == norms
    assert len(set(norms)) == CONFIG.rounds


def test_the_summary_says_what_was_promised(runs: tuple[Path, Path, dict[str, Any]]) -> None:
    whole, _, summary = runs
    privacy = summary["privacy"]
    assert summary["strategy"] == CONFIG.strategy
    assert privacy["mechanism"] == "adaptive-dp"
    assert (privacy["noise_multiplier"], privacy["clipping_norm"], privacy["delta"]) == (0.5, 0.05, 1e-5)
    assert privacy["releases"] == CONFIG.rounds
    assert privacy["epsilon"] == epsilon(0.5, CONFIG.rounds, 1e-5)
    assert "Differential privacy by adaptive-dp" in write_report(whole).read_text()
