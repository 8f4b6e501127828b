"""Where the sites of a run work changes nothing of what it measures: one process, two, or Ray's actors."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedgraft import Resources, RunConfig, UserError, simulate

CONFIG = RunConfig(
    method="fedpgp", sites=3, rounds=2, shots=4, participation=0.7, strategy="fedavgm", method_options={"n_ctx": 4}
)
SECONDS = ("seconds", "training_seconds")


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in SECONDS} for row in rows]


@pytest.mark.slow
def test_one_worker_two_workers_and_ray_write_the_same_rows(tmp_path: Path) -> None:
    """Every figure of metrics.jsonl to the last digit, but for seconds."""
    engines = {"one": Resources(1), "two": Resources(2), "ray": Resources(2, gpus_per_worker=0.0)}
    for name, resources in engines.items():
        simulate(CONFIG, tmp_path / name, resources=resources)
    assert _rows(tmp_path / "one") == _rows(tmp_path / "two") == _rows(tmp_path / "ray")
    assert {row["scope"] for row in _rows(tmp_path / "one")} == {"train", "local", "base", "novel"}


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"workers": -1}, {"cpus_per_worker": 0}])
def test_no_worker_and_no_cpu_are_refused_with_the_numbers(numbers: dict[str, int]) -> None:
    with pytest.raises(UserError, match=str(next(iter(numbers.values())))):
        Resources(**numbers)
