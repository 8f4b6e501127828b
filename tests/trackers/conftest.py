"""A finished run with two folds, as the server leaves it, without training anything."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedgraft.config.run_config import RunConfig
from fedgraft.data.results import Row


def rows_of_a_run() -> list[Row]:
    """Rounds 0 to 2 of the folds photo and sketch; in round 1 of photo two sites are left out."""
    rows: list[Row] = []
    for number, fold in enumerate(("photo", "sketch")):
        for at in range(3):
            place: dict[str, Any] = {"round": at, "fold": fold}
            if at:
                rows.append({**place, "scope": "train", "loss": 1.0 / at, "seconds": 0.5, "sites": [0, 1]})
            if at == 1 and fold == "photo":
                rows += [{**place, "scope": "left_out", "site": site, "reason": "late"} for site in (2, 3)]
            accuracies = {"0": 50.0 + 10 * number + at, "1": 70.0 + 10 * number + at}
            mean = sum(accuracies.values()) / 2
            rows.append({**place, "scope": "target", "accuracy": mean, "sites": accuracies})
    return rows


def write_rows(directory: Path, rows: list[Row]) -> None:
    """Write metrics.jsonl."""
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def finish(directory: Path) -> None:
    """Write summary.json."""
    summary: dict[str, Any] = {"method": "promptfl", "data": "shapes", "protocol": "leave-one-domain-out"}
    summary |= {"backbone": "mini", "fingerprint": "ab", "sites": 4, "rounds": 2, "seed": 0, "wall_seconds": 3.5}
    summary |= {"uplink_bytes_per_site_round": 100, "downlink_bytes_per_site_round": 200}
    summary |= {"trainable_parameters": 9, "shared_parameters": 9, "metrics_last5": {"mean": 66.0}}
    summary |= {"metrics": {"per_domain": {"photo": 62.0, "sketch": 72.0}, "mean": 67.0}}
    (directory / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of the run."""
    directory = tmp_path / "promptfl-seed0"
    directory.mkdir()
    config = RunConfig(method="promptfl", data="shapes", protocol="leave-one-domain-out", sites=4, rounds=2)
    (directory / "config.toml").write_text(config.to_toml())
    write_rows(directory, rows_of_a_run())
    finish(directory)
    return directory
