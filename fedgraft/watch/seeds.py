"""The entries of a comparison over their seeds: mean and standard deviation of each round, and of the results."""

import math
import re
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from fedgraft.watch.files import finite
from fedgraft.watch.run import WatchedRun
from fedgraft.watch.run_view import plane

_SEED = re.compile(r"-seed\d+$")


def labels(names: Sequence[str], comparison: dict[str, Any] | None) -> dict[str, str]:
    """The entry of the comparison that each run belongs to: as comparison.json calls it, or else its name.

    Runs stand in comparison.json seed by seed, each seed with the entries in their order.
    """
    found = {name: _SEED.sub("", name) for name in names}
    if comparison:
        methods = [str(entry["method"]) for entry in comparison["methods"]]
        found |= {str(name): methods[place % len(methods)] for place, name in enumerate(comparison.get("runs", []))}
    return {name: found[name] for name in names}


def entries_view(runs: Sequence[WatchedRun], label_of: dict[str, str]) -> list[dict[str, Any]]:
    """Each entry for the page, in the order in which its first run begins; docs/watch.md says what the keys hold."""
    together: dict[str, list[WatchedRun]] = {}
    for run in runs:
        together.setdefault(label_of[run.name], []).append(run)
    return [_entry(label, members) for label, members in together.items()]


def _entry(label: str, runs: list[WatchedRun]) -> dict[str, Any]:
    series: dict[str, list[dict[int, float]]] = {}
    for run in runs:
        for name, rows in run.history.accuracy().items():
            series.setdefault(name, []).append({row.round: row.mean for row in rows if math.isfinite(row.mean)})
    return {
        "label": label,
        "runs": [run.name for run in runs],
        "seeds": len(runs),
        "finished": sum(run.state == "finished" for run in runs),
        "trains": any(run.rounds for run in runs),
        "accuracy": {name: over_seeds(each) for name, each in series.items()},
        "plane": _plane(runs),
        "uplink": _first(runs, "uplink_bytes_per_site_round"),
        "trainable_parameters": _first(runs, "trainable_parameters"),
    }


def over_seeds(seeds: Sequence[dict[int, float]]) -> dict[str, list[Any]]:
    """Mean of each round over the seeds that have it, one standard deviation below and above, and how many they are.

    A round that only one seed has is a line without a band.
    """
    rounds = sorted(set().union(*seeds))
    values = [[seed[at] for seed in seeds if at in seed] for at in rounds]
    means, spreads = [fmean(each) for each in values], [pstdev(each) if len(each) > 1 else None for each in values]
    known = list(zip(means, spreads, strict=True))
    return {
        "rounds": rounds,
        "mean": [finite(mean) for mean in means],
        "low": [None if spread is None else finite(mean - spread) for mean, spread in known],
        "high": [None if spread is None else finite(mean + spread) for mean, spread in known],
        "seeds": [len(each) for each in values],
    }


def _plane(runs: list[WatchedRun]) -> dict[str, Any] | None:
    """The path of the seeds' mean on the plane, over the rounds that every seed has."""
    paths = [path for run in runs if (path := plane(run)) is not None]
    if not paths:
        return None
    rounds = sorted(set.intersection(*(set(path["rounds"]) for path in paths)))

    def means(axis: str) -> list[float | None]:
        found = [dict(zip(path["rounds"], path[axis], strict=True)) for path in paths]
        return [finite(fmean(known[at] for known in found)) for at in rounds]

    starts = [path["start"] for path in paths if path["start"]]
    start = [finite(fmean(values)) for values in zip(*starts, strict=True)] if starts else None
    return {**paths[0], "rounds": rounds, "xs": means("xs"), "ys": means("ys"), "start": start}


def _first(runs: list[WatchedRun], key: str) -> Any:
    return next((run.summary[key] for run in runs if run.summary.get(key) is not None), None)
