"""Reading a run or comparison directory, with a clear sentence for anything missing or malformed."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.config.registry import PROTOCOLS
from fedgraft.core.plain_text import plain
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Colour, Row, is_evaluation
from fedgraft.data.split import series_name
from fedgraft.reports.drawing import colours
from fedgraft.runs.run_files import Comparison, Confusion, Summary, read_json, read_text, rows_of


@dataclass(frozen=True)
class Accuracy:
    """One evaluation: the accuracy of a scope after a round in percent, averaged over sites and of each site."""

    round: int
    mean: float
    sites: dict[str, float]


@dataclass(frozen=True)
class LeftOut:
    """A site whose answer a round did not use."""

    round: int
    fold: str | None
    site: str
    reason: str


@dataclass(frozen=True)
class Run:
    """The content of a run directory. Series are keyed by scope, by held-out domain, or by both."""

    summary: dict[str, Any]
    config: str
    accuracy: dict[str, list[Accuracy]]
    loss: dict[str, list[tuple[int, float]]]
    drift: dict[str, list[tuple[int, float]]]
    left_out: list[LeftOut]
    confusion: dict[str, dict[str, Any]]
    protocol: Protocol

    def colours(self, names: Collection[str]) -> dict[str, str]:
        """A colour for each series: that of its scope, if the protocol defines one."""
        own: Mapping[str, Colour] = {"train": "muted", **self.protocol.colours}
        return colours(names, lambda name: own.get(name, ""))


def read_run(directory: Path) -> Run:
    """Read a finished run.

    Raises:
        UserError: `summary.json`, `metrics.jsonl` or `config.toml` is missing, or a file is malformed.
    """
    summary = read_json(directory / "summary.json", Summary)
    rows = list(rows_of(directory / "metrics.jsonl"))
    several = _has_several_scopes(rows)
    accuracy: dict[str, dict[int, Accuracy]] = {}
    loss: dict[str, dict[int, float]] = {}
    drift: dict[str, dict[int, float]] = {}
    left_out: list[LeftOut] = []
    for row in rows:
        at, fold, scope = row["round"], row.get("fold"), row["scope"]
        key = scope if fold is None else fold
        if scope == "left_out":
            left_out.append(LeftOut(at, fold, str(row["site"]), plain(row["reason"])))
        elif scope == "train":
            for series, name in ((loss, "loss"), (drift, "drift")):
                if (value := row.get(name)) is not None:
                    series.setdefault(key, {})[at] = float(value)
        elif row["accuracy"] is not None:
            sites = {site: float(value) for site, value in row.get("sites", {}).items() if value is not None}
            evaluation = Accuracy(at, float(row["accuracy"]), sites)
            key = series_name(fold, scope, several)
            accuracy.setdefault(key, {})[at] = evaluation  # a row repeated by a resumed run counts once
    confusion = directory / "confusion.json"
    return Run(
        summary=summary,
        config=read_text(directory / "config.toml"),
        accuracy={key: [series[at] for at in sorted(series)] for key, series in accuracy.items()},
        loss={key: sorted(series.items()) for key, series in loss.items()},
        drift={key: sorted(series.items()) for key, series in drift.items()},
        left_out=left_out,
        confusion=read_json(confusion, Confusion)["scopes"] if confusion.is_file() else {},
        protocol=PROTOCOLS.load(str(summary["protocol"])),
    )


def read_comparison(directory: Path) -> dict[str, Any]:
    """Read `comparison.json`; raises UserError if it is malformed."""
    content: dict[str, Any] = read_json(directory / "comparison.json", Comparison)
    return content


def _has_several_scopes(rows: Iterable[Row]) -> bool:
    """Whether any named fold is measured by more than one scope."""
    scopes: dict[str, set[str]] = {}
    for row in rows:
        if row.get("fold") is not None and is_evaluation(row):
            scopes.setdefault(row["fold"], set()).add(row["scope"])
    return any(len(names) > 1 for names in scopes.values())
