"""What the page shows of one run as JSON: progress, accuracy by scope, training, costs, privacy, answers left out."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any

from fedgraft.core.plain_text import plain
from fedgraft.data.protocols.protocol import flat_results
from fedgraft.data.results import Metric
from fedgraft.watch.files import finite
from fedgraft.watch.privacy import spent_so_far
from fedgraft.watch.run import WatchedRun

_PACE_ROUNDS, _REASONS, _NAMED_SITES = 5, 20, 12
_FIGURES = {
    "loss": 4, "drift": 5, "uplink_bytes_per_site": 0, "downlink_bytes_per_site": 0, "seconds": 2,
}  # fmt: skip


def run_view(run: WatchedRun) -> dict[str, Any]:
    """A run for the page; docs/watch.md says what the keys hold."""
    config, summary = run.config, run.summary
    method = "" if config is None else "+".join(filter(None, (config.method, config.strategy)))
    return {
        "name": run.name,
        "state": run.state,
        "remark": run.remark,
        "problem": run.problem,
        "method": plain(method) if method else "",
        **{
            key: None if config is None else getattr(config, key)
            for key in ("data", "protocol", "backbone", "sites", "seed", "shots", "participation")
        },
        **_progress(run),
        "scopes": scopes(run),
        "accuracy": {
            name: {"rounds": [each.round for each in rows], "mean": [finite(each.mean) for each in rows]}
            for name, rows in run.history.accuracy().items()
        },
        "training": {fold or "": _training(run, fold) for fold in run.history.training},
        "plane": plane(run),
        "zero_shot": {key: finite(value) for key, value in (summary.get("zero_shot") or {}).items()} or None,
        "metrics": _metrics(run),
        "uplink": finite(summary.get("uplink_bytes_per_site_round"), 0),
        "downlink": finite(summary.get("downlink_bytes_per_site_round"), 0),
        "trainable_parameters": summary.get("trainable_parameters"),
        "shared_parameters": summary.get("shared_parameters"),
        "wall_seconds": finite(summary.get("wall_seconds"), 1),
        "privacy": _privacy(run),
        "left_out": _left_out(run),
        "unused": [
            {"round": at, "reason": plain(row["unused"])}
            for rows in run.history.training.values()
            for at, row in sorted(rows.items())
            if row.get("unused")
        ],
    }


def scopes(run: WatchedRun) -> list[dict[str, Any]]:
    """The series of accuracy in the order of the file, each with what the protocol says about its scope."""
    protocol = run.protocol
    found = []
    for name, (fold, scope) in run.history.named().items():
        metric = None if protocol is None or fold is not None else protocol.metric(_kind(scope))
        found.append(
            {
                "name": name,
                "label": _label(name, scope, metric),
                "meaning": metric.meaning if metric else "",
                "colour": protocol.colours.get(scope, "") if protocol else "",
                "preserved": protocol is not None and _kind(scope) == protocol.preserved,
            }
        )
    return found


def _label(name: str, scope: str, metric: Metric | None) -> str:
    """The heading of a series: as the protocol calls the scope, with the part that it measures."""
    if metric is None:
        return name
    kind, separator, part = scope.partition(": ")
    label = metric.label if metric.meaning else f"{kind[:1].upper()}{kind[1:]}"
    return f"{label}{separator}{part}"


def plane(run: WatchedRun) -> dict[str, Any] | None:
    """Generalization against personalization: what the protocol preserves against the first other scope, by round.

    Parts of a scope, such as its data sets, are averaged. None where a protocol measures only one of the two.
    """
    if run.protocol is None:
        return None
    kinds: dict[str, list[dict[int, float]]] = defaultdict(list)
    for (fold, scope), rows in run.history.evaluations.items():
        if fold is None:
            kinds[_kind(scope)].append({at: each.mean for at, each in rows.items()})
    preserved = run.protocol.preserved
    other = next((kind for kind in kinds if kind != preserved), None)
    if other is None or preserved not in kinds:
        return None
    means = {kind: _mean(kinds[kind]) for kind in (other, preserved)}
    rounds = sorted(means[other].keys() & means[preserved].keys())
    return {
        "x": run.protocol.metric(other).label,
        "y": run.protocol.metric(preserved).label,
        "rounds": rounds,
        "xs": [finite(means[other][at]) for at in rounds],
        "ys": [finite(means[preserved][at]) for at in rounds],
        "start": _start(run, other, preserved),
    }


def _start(run: WatchedRun, other: str, preserved: str) -> list[float | None] | None:
    """Where the hand-written templates stand on the plane, once the summary tells."""
    known = run.summary.get("zero_shot") or {}
    ends = [[value for scope, value in known.items() if _kind(scope) == kind] for kind in (other, preserved)]
    return [finite(sum(values) / len(values)) for values in ends] if all(ends) else None


def _kind(scope: str) -> str:
    """What a scope measures, without the domain or data set that is its part."""
    return scope.partition(": ")[0]


def _mean(parts: list[dict[int, float]]) -> dict[int, float]:
    """The mean over the parts of each round that all of them have measured."""
    shared = set.intersection(*({at for at, value in part.items() if math.isfinite(value)} for part in parts))
    return {at: sum(part[at] for part in parts) / len(parts) for at in shared}


def _progress(run: WatchedRun) -> dict[str, Any]:
    """The round, of how many; how far the newest fold is; and how long its rest may take."""
    trained = run.history.training
    fold = next(reversed(trained), None)
    newest = run.history.newest_round(fold) if trained or run.history.evaluations else 0
    seconds = [row["seconds"] for at, row in sorted(trained.get(fold, {}).items()) if "seconds" in row]
    left = None
    if run.state == "running" and seconds and newest < run.rounds:
        left = finite((run.rounds - newest) * median(seconds[-_PACE_ROUNDS:]), 0)
    return {
        "round": newest,
        "rounds": run.rounds,
        "fold": fold,
        "folds": len({fold for fold, _ in run.history.evaluations}),
        "progress": 1.0 if run.state == "finished" else finite(newest / run.rounds) if run.rounds else 0.0,
        "seconds_left": left,
    }


def _training(run: WatchedRun, fold: str | None) -> dict[str, Any]:
    rows = [row for _, row in sorted(run.history.training[fold].items())]
    columns = {name: [finite(row.get(name), digits) for row in rows] for name, digits in _FIGURES.items()}
    answered = [len(row["sites"]) for row in rows]
    return {"rounds": [row["round"] for row in rows], **columns, "answered": answered}


def _metrics(run: WatchedRun) -> list[dict[str, Any]]:
    results = flat_results(run.summary.get("metrics") or {})
    last5 = flat_results(run.summary.get("metrics_last5") or {})
    if run.protocol is None:
        return []
    shown = {key: run.protocol.metric(key) for key in results}
    return [
        {
            "key": key,
            "label": plain(metric.label),
            "meaning": metric.meaning,
            "value": finite(results[key]),
            "last5": finite(last5.get(key)),
        }
        for key, metric in shown.items()
    ]


def _privacy(run: WatchedRun) -> dict[str, Any] | None:
    spent = run.summary.get("privacy") if run.summary else spent_so_far(run)
    if not spent:
        return None
    keys = ("epsilon", "delta", "noise_multiplier", "clipping_norm", "releases")
    words = {key: plain(spent[key]) for key in ("mechanism", "relation")}
    return {**words, **{key: finite(spent[key], 10) for key in keys}, "so_far": not run.summary}


def _left_out(run: WatchedRun) -> dict[str, Any]:
    """The answers that were left out: how many, of how many sites, and for which reasons."""
    entries = run.history.left_out
    sites: dict[str, Counter[str]] = defaultdict(Counter)
    rounds: dict[str, set[int]] = defaultdict(set)
    for entry in entries:
        sites[entry.reason][entry.site] += 1
        rounds[entry.reason].add(entry.round)
    reasons = sorted(sites, key=lambda reason: (-sites[reason].total(), reason))
    return {
        "answers": len(entries),
        "sites": len({entry.site for entry in entries}),
        "reasons": [
            {
                "reason": reason,
                "times": sites[reason].total(),
                "sites": _numbers(sites[reason])[:_NAMED_SITES],
                "more_sites": max(0, len(sites[reason]) - _NAMED_SITES),
                "first_round": min(rounds[reason]),
                "last_round": max(rounds[reason]),
            }
            for reason in reasons[:_REASONS]
        ],
        "more_reasons": max(0, len(reasons) - _REASONS),
    }


def _numbers(sites: Iterable[str]) -> list[int]:
    return sorted(int(site) for site in sites if site.isdecimal())
