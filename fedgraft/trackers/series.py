"""From the rows of metrics.jsonl to named series, and from summary.json to results."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedgraft.data.protocols.protocol import flat_results
from fedgraft.data.results import Row, is_evaluation

_COSTS = ("uplink_bytes_per_site_round", "downlink_bytes_per_site_round", "trainable_parameters", "wall_seconds")


def values_of(row: Row, rows: Sequence[Row]) -> dict[str, float]:
    """The values of one row by the names of their series.

    `accuracy/SCOPE` in percent, `worst_site/SCOPE`, `train/KEY` for every number of a training row, and `left_out` with
    the number of sites; with folds, each name ends in /FOLD.

    Args:
        rows: of the whole run, to count the sites that were left out of the row's round.
    """
    if row["scope"] == "left_out":
        same = [other for other in rows if _place(other) == _place(row) and other["scope"] == "left_out"]
        found: dict[str, float] = {"left_out": len({other["site"] for other in same})}
    elif is_evaluation(row):
        sites = [value for value in row.get("sites", {}).values() if value is not None]
        found = {} if row["accuracy"] is None else {f"accuracy/{row['scope']}": float(row["accuracy"])}
        found |= {f"worst_site/{row['scope']}": float(min(sites))} if sites else {}
    else:
        found = {f"{row['scope']}/{key}": value for key, value in _numbers(row) if key != "round"}
    fold = row.get("fold")
    return found if fold is None else {f"{name}/{fold}": value for name, value in found.items()}


def results_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """The results of a finished run, what it cost, and the privacy that it spent."""
    results = {f"result/{key}": value for key, value in _numbers(flat_results(summary["metrics"]))}
    results |= {f"cost/{key}": value for key, value in _numbers(summary) if key in _COSTS}
    if privacy := summary.get("privacy"):
        results["privacy/epsilon"] = float(privacy["epsilon"])
    return results


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings without tables."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def key_of(row: Row) -> tuple[Any, ...]:
    """What tells a row from all others of a run."""
    return (*_place(row), row["scope"], row.get("site"), row.get("reason"))


def _place(row: Row) -> tuple[Any, ...]:
    return row["round"], row.get("fold")


def _numbers(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value)
