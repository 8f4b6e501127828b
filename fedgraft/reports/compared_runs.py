"""The runs of a comparison: what each method reached after each round, and at each site, seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgraft.config.registry import PROTOCOLS
from fedgraft.core.errors import UserError
from fedgraft.data.protocols.protocol import Protocol, flat_results
from fedgraft.data.results import Row, evaluated_rounds
from fedgraft.reports.bands_plot import Curve
from fedgraft.reports.reading import Run, read_run
from fedgraft.runs.run_files import rows_of

PANELS = 4
"""The largest number of results or scopes side by side in a figure."""


@dataclass
class ComparedRuns:
    """What figures need of the runs.

    Attributes:
        curves: by result, then by method, one for each seed.
        sites: accuracies in percent after the last round, by scope, then by method; of all sites and seeds.
        absent: names of runs that are no longer there.
    """

    curves: dict[str, dict[str, list[Curve]]] = field(default_factory=dict)
    sites: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def read_compared_runs(comparison: Mapping[str, Any], directory: Path) -> ComparedRuns:
    """Read the runs beside `comparison.json`; those that are gone are named, and left out.

    Raises:
        UserError: a run that is there cannot be read.
    """
    found = ComparedRuns()
    protocol = PROTOCOLS.load(str(comparison["protocol"]))
    methods = [str(method["method"]) for method in comparison["methods"]]
    names = [str(name) for name in comparison.get("runs", [])]
    if len(names) != len(methods) * len(comparison["seeds"]):
        return found
    for number, name in enumerate(names):  # all methods with the first seed, then with the next
        if not (directory / name / "summary.json").is_file():
            found.absent.append(name)
            continue
        method, run = methods[number % len(methods)], read_run(directory / name)
        for key, curve in _curves(protocol, list(rows_of(directory / name / "metrics.jsonl"))).items():
            found.curves.setdefault(key, {}).setdefault(method, []).append(curve)
        for scope, sites in _sites(run).items():
            found.sites.setdefault(scope, {}).setdefault(method, []).extend(sites)
    return found


def _curves(protocol: Protocol, rows: Sequence[Row]) -> dict[str, Curve]:
    """The protocol's drawn results of every evaluated round."""
    curves: dict[str, dict[int, float]] = {}
    for at in evaluated_rounds(rows):
        try:
            results = flat_results(protocol.results([row for row in rows if row["round"] == at], 1))
        except (UserError, ValueError, KeyError):  # a round that was stopped between its scopes
            continue
        for metric in protocol.metrics:
            if metric.drawn and not metric.lower_is_better and metric.key in results:
                curves.setdefault(metric.key, {})[at] = results[metric.key]
    return dict(list(curves.items())[:PANELS])


def _sites(run: Run) -> dict[str, list[float]]:
    """The last accuracies by scope, of scopes with a colour of their own if the protocol gives any."""
    last = {name: list(rows[-1].sites.values()) for name, rows in run.accuracy.items() if rows[-1].sites}
    own = {name: values for name, values in last.items() if name in run.protocol.colours}
    return dict(list((own or last).items())[:PANELS])
