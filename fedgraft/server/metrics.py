"""From rows to results: what each protocol reports, always of the last round and of the last five."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedgraft.server.run_directory import Row

Results = dict[str, Any]
MEASURED = ("local", "base", "novel", "target", "personal")
"""Scopes whose rows hold an accuracy."""
_LAST = 5


def scope_row(fold: str | None, server_round: int, scope: str, counts: dict[int, tuple[int, int]]) -> Row:
    """A row of metrics.jsonl: the mean of the sites' accuracies, in percent, and each site's own.

    Args:
        counts: for each site, images classified right and images classified; sites without images do not count.
    """
    sites = {str(site): 100 * right / total for site, (right, total) in sorted(counts.items()) if total}
    accuracy = float(np.mean(list(sites.values()))) if sites else float("nan")
    return {"round": server_round, "fold": fold, "scope": scope, "accuracy": accuracy, "sites": sites}


def harmonic_mean(*values: float) -> float:
    """The harmonic mean; 0 where one value is 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def last_round(protocol: str, rows: Sequence[Row]) -> Results:
    """The results of the last evaluated round, never of the best one."""
    return _RULES[protocol](rows, 1)


def last_five(protocol: str, rows: Sequence[Row]) -> Results:
    """The mean of each result over the last five evaluated rounds."""
    return _RULES[protocol](rows, _LAST)


def _base_to_novel(rows: Sequence[Row], count: int) -> Results:
    per_round = []
    for server_round in _evaluated(rows)[-count:]:
        local, base, novel = (_accuracy(rows, server_round, scope) for scope in ("local", "base", "novel"))
        hm2 = harmonic_mean(base, novel)
        per_round.append(
            {
                "local": local,
                "base": base,
                "novel": novel,
                "hm": harmonic_mean(local, base, novel),
                "hm2": hm2,
                "cm": (local + hm2) / 2,
            }
        )
    return _mean(per_round)


def _leave_one_domain_out(rows: Sequence[Row], count: int) -> Results:
    domains = sorted({row["fold"] for row in rows if row["scope"] == "target"})
    per_domain = {}
    for domain in domains:
        of_fold = [row for row in rows if row["fold"] == domain]
        rounds = _evaluated(of_fold)[-count:]
        per_domain[domain] = float(np.mean([_accuracy(of_fold, server_round, "target") for server_round in rounds]))
    return {"per_domain": per_domain, "mean": float(np.mean(list(per_domain.values())))}


def _dirichlet(rows: Sequence[Row], count: int) -> Results:
    per_round = []
    for server_round in _evaluated(rows)[-count:]:
        sites = list(_row(rows, server_round, "personal")["sites"].values())
        per_round.append({"accuracy": np.mean(sites), "worst_site": np.min(sites), "std": np.std(sites)})
    return _mean(per_round)


_RULES: dict[str, Callable[[Sequence[Row], int], Results]] = {
    "base-to-novel": _base_to_novel,
    "leave-one-domain-out": _leave_one_domain_out,
    "dirichlet": _dirichlet,
    "own-data": _dirichlet,
}


def _evaluated(rows: Sequence[Row]) -> list[int]:
    return sorted({row["round"] for row in rows if row["scope"] in MEASURED})


def _row(rows: Sequence[Row], server_round: int, scope: str) -> Row:
    return next(row for row in rows if row["round"] == server_round and row["scope"] == scope)


def _accuracy(rows: Sequence[Row], server_round: int, scope: str) -> float:
    return float(_row(rows, server_round, scope)["accuracy"])


def _mean(per_round: Sequence[dict[str, float]]) -> Results:
    return {key: float(np.mean([results[key] for results in per_round])) for key in per_round[0]}
