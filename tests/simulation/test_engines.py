"""Where the sites of a run work changes nothing of what it measures: in this process, in one or two others, on Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedgraft import Resources, RunConfig, UserError, simulate
from fedgraft.core.observer import Observer
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on

CONFIG = RunConfig(
    method="fedpgp", sites=3, rounds=2, shots=4, participation=0.7, strategy="fedavgm", method_options={"n_ctx": 4}
)
SECONDS = ("seconds", "training_seconds")


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in SECONDS} for row in rows]


@pytest.mark.slow
def test_every_engine_writes_the_same_rows(engine: Engine, tmp_path: Path) -> None:
    """Every figure of metrics.jsonl to the last digit, but for seconds; also on that of the other tests."""
    simulate_on(engine, CONFIG, tmp_path / "0", False, Observer())  # names of one length: they travel in messages
    expected = _rows(tmp_path / "0")
    assert {row["scope"] for row in expected} == {"train", "local", "base", "novel", "base_all"}
    for number, resources in enumerate((Resources(1), Resources(2), Resources(2, gpus_per_worker=0.0)), 1):
        simulate(CONFIG, tmp_path / str(number), resources=resources)
        assert _rows(tmp_path / str(number)) == expected, resources


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"workers": -1}, {"cpus_per_worker": 0}])
def test_no_worker_and_no_cpu_are_refused_with_the_numbers(numbers: dict[str, int]) -> None:
    with pytest.raises(UserError, match=str(next(iter(numbers.values())))):
        Resources(**numbers)
