"""Reading a run or comparison directory, with a clear sentence for anything missing or malformed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.config.registry import PROTOCOLS
from fedgraft.core.errors import UserError
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Colour, is_evaluation
from fedgraft.data.split import series_name
from fedgraft.reports.drawing import colours

SUMMARY_KEYS = ("method", "data", "protocol", "backbone", "sites", "rounds", "seed", "metrics")
COMPARISON_KEYS = ("data", "protocol", "sites", "rounds", "seeds", "methods")


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

    def colours(self, names: Iterable[str]) -> dict[str, str]:
        """A colour for each series: that of its scope, if the protocol defines one."""
        own: Mapping[str, Colour] = {"train": "muted", **self.protocol.colours}
        return colours(names, lambda name: own.get(name, ""))


def read_run(directory: Path) -> Run:
    """Read a finished run.

    Raises:
        UserError: `summary.json`, `metrics.jsonl` or `config.toml` is missing, or a file is malformed.
    """
    summary = _read_json(directory / "summary.json", SUMMARY_KEYS)
    path = directory / "metrics.jsonl"
    rows = list(_rows(path))
    several = _has_several_scopes(row for _, row in rows)
    accuracy: dict[str, dict[int, Accuracy]] = {}
    loss: dict[str, dict[int, float]] = {}
    drift: dict[str, dict[int, float]] = {}
    left_out: list[LeftOut] = []
    for number, row in rows:
        try:
            fold, scope = row.get("fold"), str(row["scope"])
            key = scope if fold is None else str(fold)
            if row["scope"] == "left_out":
                left_out.append(LeftOut(row["round"], row.get("fold"), str(row["site"]), str(row["reason"])))
            elif row["scope"] == "train":
                if (value := row.get("loss")) is not None:
                    loss.setdefault(key, {})[row["round"]] = float(value)
                if (value := row.get("drift")) is not None:
                    drift.setdefault(key, {})[row["round"]] = float(value)
            elif row["accuracy"] is not None:
                sites = {str(site): float(value) for site, value in row.get("sites", {}).items() if value is not None}
                evaluation = Accuracy(row["round"], float(row["accuracy"]), sites)
                key = series_name(fold, scope, several)
                accuracy.setdefault(key, {})[row["round"]] = evaluation  # a row repeated by a resumed run counts once
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"Line {number} of {path} is not a row of metrics: {error!r}.") from error
    return Run(
        summary=summary,
        config=_read_text(directory / "config.toml"),
        accuracy={key: [series[at] for at in sorted(series)] for key, series in accuracy.items()},
        loss={key: sorted(series.items()) for key, series in loss.items()},
        drift={key: sorted(series.items()) for key, series in drift.items()},
        left_out=left_out,
        confusion=_read_confusion(directory / "confusion.json"),
        protocol=PROTOCOLS.load(str(summary["protocol"])),
    )


def read_comparison(directory: Path) -> dict[str, Any]:
    """Read `comparison.json`; raises UserError if it is malformed."""
    return _read_json(directory / "comparison.json", COMPARISON_KEYS)


def _has_several_scopes(rows: Iterable[Any]) -> bool:
    """Whether any named fold is measured by more than one scope."""
    scopes: dict[str, set[str]] = {}
    for row in rows:
        if isinstance(row, dict) and row.get("fold") is not None and is_evaluation(row):
            scopes.setdefault(str(row["fold"]), set()).add(str(row.get("scope")))
    return any(len(names) > 1 for names in scopes.values())


def _read_confusion(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    scopes: dict[str, dict[str, Any]] = _read_json(path, ("scopes",))["scopes"]
    for scope, matrix in scopes.items():
        size = len(matrix["classes"])
        if [len(row) for row in matrix["counts"]] != [size] * size:
            raise UserError(f"{path} must have {size} x {size} counts for the {size} classes of the scope {scope!r}.")
    return scopes


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; the report of a run needs it next to summary.json.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, but a JSON object is expected.")
    if missing := [key for key in keys if key not in content]:
        raise UserError(f"{path} lacks {', '.join(missing)}.")
    return content


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"Line {number} of {path} is not JSON: {error}.") from error
