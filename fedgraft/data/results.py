"""From a run's rows to its results: always of the last evaluated rounds, never of the best one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedgraft.core.errors import UserError

Row = dict[str, Any]
Results = dict[str, Any]
Colour = Literal["", "blue", "orange", "green", "purple", "sky", "red", "muted"]


@dataclass(frozen=True)
class Metric:
    """How a result is presented in tables and figures.

    Attributes:
        key: in summary.json.
        label: heading of its table column.
        meaning: half a sentence.
        colour: in figures; empty for the next free one.
        drawn: whether comparison figures show it.
        lower_is_better: which end of a column is the best.
        always: whether every run of the protocol has it.
    """

    key: str
    label: str
    meaning: str
    colour: Colour = ""
    drawn: bool = True
    lower_is_better: bool = False
    always: bool = True


def harmonic_mean(*values: float) -> float:
    """The harmonic mean; 0 if any value is 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def is_evaluation(row: Row) -> bool:
    """Whether a row of metrics.jsonl holds the accuracy of a scope."""
    return "accuracy" in row


def evaluated_rounds(rows: Sequence[Row]) -> list[int]:
    """The rounds that were evaluated, sorted."""
    return sorted({row["round"] for row in rows if is_evaluation(row)})


def scope_row(rows: Sequence[Row], server_round: int, scope: str) -> Row:
    """The row of a scope after a round; raises UserError if there is none."""
    for row in rows:
        if row["round"] == server_round and row["scope"] == scope:
            return row
    raise UserError(f"metrics.jsonl has no row of the scope {scope!r} after round {server_round}; rows are missing.")


def has_scope(rows: Sequence[Row], server_round: int, scope: str) -> bool:
    """Whether a scope was measured after a round."""
    return any(row["round"] == server_round and row["scope"] == scope for row in rows)


def scope_accuracy(rows: Sequence[Row], server_round: int, scope: str) -> float:
    """The accuracy of a scope after a round, in percent."""
    return float(scope_row(rows, server_round, scope)["accuracy"])


def part_accuracies(rows: Sequence[Row], server_round: int, kind: str) -> dict[str, list[float]]:
    """The sites' accuracies by the domain or data set that the scopes "KIND: PART" measure, in percent."""
    found = {}
    for row in rows:
        own, separator, part = row["scope"].partition(": ")
        if row["round"] == server_round and own == kind and separator and is_evaluation(row) and row["sites"]:
            found[part] = [float(value) for value in row["sites"].values()]
    return found


def mean_of_parts(accuracies: dict[str, list[float]]) -> dict[str, float]:
    """The mean over the sites of each part."""
    return {part: float(np.mean(values)) for part, values in accuracies.items()}


def mean_of_last(rows: Sequence[Row], count: int, results: Callable[[int], dict[str, Any]]) -> Results:
    """The mean of each of a round's results over the last `count` evaluated rounds, and of those in a mapping.

    A result that an earlier version did not have, in a run that it began, is left out.

    Raises:
        UserError: no round was evaluated.
    """
    if not (rounds := evaluated_rounds(rows)):
        raise UserError("metrics.jsonl has no evaluated round; rows are missing.")
    return _mean([results(server_round) for server_round in rounds[-count:]])


def _mean(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: _mean([one[key] for one in each])
        if isinstance(value, dict)
        else float(np.mean([one[key] for one in each]))
        for key, value in each[-1].items()
        if all(key in one for one in each)
    }


def site_results(rows: Sequence[Row], count: int) -> Results:
    """The sites' accuracy on their own test images, the scope "personal"; not a number where no site has any."""

    def results(server_round: int) -> dict[str, Any]:
        sites = list(scope_row(rows, server_round, "personal")["sites"].values()) or [float("nan")]
        return {"accuracy": np.mean(sites), "worst_site": np.min(sites), "std": np.std(sites)}

    return mean_of_last(rows, count, results)


SITE_METRICS = (
    Metric("accuracy", "Accuracy", "each site on its own test images", "blue"),
    Metric("worst_site", "Worst site", "the lowest accuracy of a site", "orange"),
    Metric("std", "Std", "standard deviation over sites, in percentage points", drawn=False, lower_is_better=True),
)
