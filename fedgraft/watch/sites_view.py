"""What the page shows of a run's sites: a line for each, and the accuracy of one scope by site and round."""

from bisect import bisect_left
from collections import Counter, defaultdict
from typing import Any

from fedgraft.runs.history import Accuracy, LeftOut
from fedgraft.watch.files import finite
from fedgraft.watch.run import WatchedRun

_UNKNOWN = (
    "site", "name", "images", "accuracy", "change", "trained", "last_round", "stale", "left_out", "reason",
    "reason_round",
)  # fmt: skip
"""The keys of a site that has not taken part."""


def sites_view(run: WatchedRun, scope: str | None, known: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The sites of a run for the page; docs/watch.md says what the keys hold.

    Args:
        scope: the series of the heat map; that which the protocol preserves or else the first, if there is no such.
        known: what a server knows about a deployed site, by its name.
    """
    named = run.history.named()
    chosen = scope if scope in named else _usual(run)
    fold = named[chosen][0] if chosen is not None else next(iter(run.history.training), None)
    evaluations = run.history.evaluations[named[chosen]] if chosen is not None else {}
    rows = [evaluations[at] for at in sorted(evaluations)]
    left_out: dict[str, list[LeftOut]] = defaultdict(list)
    for entry in run.history.left_out:
        if entry.fold == fold:
            left_out[entry.site].append(entry)
    trained = run.history.training.get(fold, {})
    counted: Counter[int] = Counter()
    last: dict[int, int] = {}
    for at in sorted(trained):
        counted.update(trained[at]["sites"])
        last.update(dict.fromkeys(trained[at]["sites"], at))
    newest = max(trained, default=0)
    lines: list[dict[str, Any]] = []
    known = known or {}
    for number in _all_sites(run, rows, left_out, last, on_a_server=bool(known)):
        name, images = run.deployed_sites.get(number, (None, {}))
        out = left_out.get(str(number), [])
        lines.append(
            {
                "site": number,
                "name": name,
                "images": images.get("train"),
                **_accuracy(rows, str(number)),
                "trained": counted[number],
                "last_round": last.get(number),
                "stale": newest - last[number] if number in last else newest,
                "left_out": len(out),
                "reason": out[-1].reason if out else None,
                "reason_round": out[-1].round if out else None,
                **known.get(name or "", {}),
            }
        )
    seen = {line["name"] for line in lines}
    lines += [{**dict.fromkeys(_UNKNOWN), "name": name, **said} for name, said in known.items() if name not in seen]
    rounds = [row.round for row in rows]
    return {
        "run": run.name,
        "scope": chosen,
        "fold": fold,
        "newest_round": newest,
        "lines": lines,
        "rounds": rounds,
        "heat": _heat(run, chosen, rows, [str(line["site"]) for line in lines]),
        "missed": [_columns(left_out.get(str(line["site"]), []), rounds) for line in lines],
    }


def _usual(run: WatchedRun) -> str | None:
    named = run.history.named()
    preserved = run.protocol.preserved if run.protocol else ""
    return next((name for name, (_, scope) in named.items() if scope == preserved), next(iter(named), None))


def _all_sites(
    run: WatchedRun, rows: list[Accuracy], left_out: dict[str, list[LeftOut]], last: dict[int, int], on_a_server: bool
) -> list[int]:
    """Every site that a row names; and that the run is to have, unless a server knows their names."""
    expected = run.config.sites if run.config and not on_a_server else 0
    found = set(range(expected)) | set(last) | set(run.deployed_sites)
    found.update(int(site) for row in rows[-1:] for site in row.sites if site.isdecimal())
    return sorted(found | {int(site) for site in left_out if site.isdecimal()})


def _accuracy(rows: list[Accuracy], site: str) -> dict[str, float | None]:
    """The newest accuracy of a site, and how many points that is above its first."""
    first = next((row.sites[site] for row in rows if site in row.sites), None)
    last = next((row.sites[site] for row in reversed(rows) if site in row.sites), None)
    if first is None or last is None:
        return {"accuracy": None, "change": None}
    return {"accuracy": finite(last, 2), "change": finite(last - first, 2)}


def _heat(run: WatchedRun, scope: str | None, rows: list[Accuracy], sites: list[str]) -> list[list[float | None]]:
    """A column for each round with a value for each site; those of earlier rounds are kept, for they stay."""
    columns = []
    for row in rows:
        key = (scope, row.round)
        column = run.columns.get(key)
        if column is None or len(column) != len(sites):
            column = run.columns[key] = [finite(row.sites.get(site), 1) for site in sites]
        columns.append(column)
    return columns


def _columns(entries: list[LeftOut], rounds: list[int]) -> list[int]:
    """The columns of the heat map in which a site was left out: each round counts for the next that was evaluated."""
    found = {bisect_left(rounds, entry.round) for entry in entries}
    return sorted({min(column, len(rounds) - 1) for column in found}) if rounds else []
