"""Reading a run or comparison directory, with a clear sentence for anything missing or malformed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.config.registry import PROTOCOLS
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Colour
from fedgraft.reports.drawing import colours
from fedgraft.runs.history import Accuracy, History, LeftOut
from fedgraft.runs.run_files import Comparison, Confusion, Summary, read_json, read_text, rows_of


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
    history = History()
    for row in rows_of(directory / "metrics.jsonl"):
        history.add(row)
    confusion = directory / "confusion.json"
    return Run(
        summary=summary,
        config=read_text(directory / "config.toml"),
        accuracy=history.accuracy(),
        loss=history.curve("loss"),
        drift=history.curve("drift"),
        left_out=history.left_out,
        confusion=read_json(confusion, Confusion)["scopes"] if confusion.is_file() else {},
        protocol=PROTOCOLS.load(str(summary["protocol"])),
    )


def read_comparison(directory: Path) -> dict[str, Any]:
    """Read `comparison.json`; raises UserError if it is malformed."""
    content: dict[str, Any] = read_json(directory / "comparison.json", Comparison)
    return content
