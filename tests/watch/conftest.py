"""Run directories as a run writes them, round by round, with texts that a hostile site would send."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fedgraft.config.run_config import RunConfig
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.watch.source import Source

HOSTILE = '<img src=x onerror="document.title=1"> \u202e] norm of 1e9'
SCOPES = {"local": 70.0, "base": 62.0, "novel": 55.0}


class WrittenRun:
    """A run directory that a test writes as the server does.

    Args:
        sites: of the run; every seventh is left out of every third round.
    """

    def __init__(self, path: Path, sites: int = 5, rounds: int = 4, seed: int = 0, **settings: Any) -> None:
        self.directory, self.sites, self.rounds = RunDirectory(path), sites, rounds
        self._random = random.Random(seed)
        given = {"method": "fedpgp", "data": "digits", "protocol": "base-to-novel"} | settings
        self.config = RunConfig.build({**given, "sites": sites, "rounds": rounds, "seed": seed})

    def begin(self) -> "WrittenRun":
        """Write the configuration."""
        self.directory.path.mkdir(parents=True, exist_ok=True)
        self.directory.create(self.config)
        return self

    def round(self, number: int) -> None:
        """Append the rows of a round."""
        place = {"round": number, "fold": None}
        out = [site for site in range(self.sites) if number % 3 == 2 and site % 7 == 3]
        rows: list[dict[str, Any]] = []
        if number:
            counted = [site for site in range(self.sites) if site not in out]
            figures = {"loss": 2 / number, "drift": 0.01 * number, "seconds": 1.5, "sites": counted}
            rows.append({**place, "scope": "train", **figures, "uplink_bytes_per_site": 8192} | _DOWN)
            rows += [{**place, "scope": "left_out", "site": site, "reason": HOSTILE} for site in out]
        for scope, first in SCOPES.items():
            values = {
                str(site): min(100.0, first + 20 * (1 - 0.9**number) + self._random.gauss(0, 4))
                for site in range(self.sites)
            }
            rows.append({**place, "scope": scope, "accuracy": sum(values.values()) / self.sites, "sites": values})
        self.directory.append(rows)

    def finish(self, **more: Any) -> "WrittenRun":
        """Write all rounds and the summary."""
        for number in range(self.rounds + 1):
            self.round(number)
        rows = self.directory.rows()
        last = {row["scope"]: row["accuracy"] for row in rows if row["round"] == self.rounds and "accuracy" in row}
        shared = {key: getattr(self.config, key) for key in ("method", "data", "protocol", "backbone", "strategy")}
        costs = {"trainable_parameters": 3200, "shared_parameters": 2048, "wall_seconds": 6.5, "fingerprint": "ab" * 32}
        traffic = {"uplink_bytes_per_site_round": 8192, "downlink_bytes_per_site_round": 8704}
        size = {"sites": self.sites, "rounds": self.rounds, "seed": self.config.seed}
        results = {"metrics": last, "metrics_last5": last, "zero_shot": dict(SCOPES)}
        self.directory.write_json("summary.json", {**shared, **size, **costs, **traffic, **results, **more})
        return self


_DOWN = {"downlink_bytes_per_site": 8704}


def write_comparison(
    path: Path, methods: Iterable[str] = ("promptfl", "fedpgp"), seeds: Iterable[int] = (0, 1)
) -> Path:
    """A finished comparison of methods over seeds."""
    methods, seeds = list(methods), list(seeds)
    names = [f"{method}-seed{seed}" for seed in seeds for method in methods]
    for name in names:
        method, _, seed = name.partition("-seed")
        WrittenRun(path / name, seed=int(seed), method=method).begin().finish()
    entries = [{"method": f"{method}(n_ctx=4)", "metrics": {"local": {"mean": 50.0, "std": 1.0}}} for method in methods]
    shared = {"data": "digits", "protocol": "base-to-novel", "sites": 5, "rounds": 4, "seeds": seeds}
    (path / "comparison.json").write_text(json.dumps({**shared, "methods": entries, "runs": names}))
    return path


def viewed(source: Source, run: str | None = None, scope: str | None = None) -> dict[str, Any]:
    """What /api/run gives, after a look at the disk."""
    source.refresh()
    content: dict[str, Any] = json.loads(source.view(run, scope), parse_constant=_refuse)
    return content


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON that a browser reads")


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    """A run that is yet to begin."""
    return WrittenRun(tmp_path / "run")
