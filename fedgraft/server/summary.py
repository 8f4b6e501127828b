"""What the server records: the rows of metrics.jsonl and, at the end, summary.json."""

import platform
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from flwr.app import RecordDict

from fedgraft import __version__
from fedgraft.data.results import Row
from fedgraft.flower.messages import wire_size
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.plan import Plan
from fedgraft.server.rounds import RoundDriver, RoundResult
from fedgraft.server.router import Reply
from fedgraft.strategies.privacy import Participation

_REASONS = 10
OFTEN = 3
"""A site that is left out so many times is named at the end of the run."""


def training_rows(
    place: dict[str, Any], result: RoundResult, replies: Sequence[Reply], downlink: int, seconds: float
) -> list[Row]:
    """The rows of a round of training: its outcome, and a row for each site that was left out.

    Args:
        place: round and fold.
        downlink: bytes that a site received.
    """
    row = {
        **place,
        "scope": "train",
        **result.figures,
        "downlink_bytes_per_site": downlink + result.more_downlink,
        "uplink_bytes_per_site": result.more_uplink
        + _mean([wire_size(reply.content) for reply in replies if reply.content is not None]),
        "seconds": round(seconds, 3),
        "training_seconds": round(result.seconds, 3),
        "sites": result.counted,
    }
    if result.unused:
        row["unused"] = result.unused
    if result.shortened:
        row["shortened"] = {str(site): round(times, 3) for site, times in sorted(result.shortened.items())}
    left_out = [left_out_row(place, entry.site, entry.reason) for entry in result.left_out]
    return [row, *left_out]


def downlink_bytes(content: RecordDict, own: Mapping[int, RecordDict]) -> int:
    """Bytes that a site receives: what all of them do, and the mean of what single ones receive besides."""
    return wire_size(content) + _mean([wire_size(record) for record in own.values()])


def unused_sentence(server_round: int, reason: str) -> str:
    """A row's `unused` for people."""
    return f"Round {server_round} leaves the parameters as they are: {reason}."


def left_out_row(place: dict[str, Any], site: int, reason: str) -> Row:
    """The row of a site whose answer does not count."""
    return {**place, "scope": "left_out", "site": site, "reason": reason}


def often_left_out(rows: Sequence[Row], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The sites that were left out at least `OFTEN` times: number, name if it has one, times, and reasons counted."""
    reasons: dict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row["scope"] == "left_out":
            reasons[row["site"]][row["reason"]] += 1
    return [
        {
            "site": site,
            **({"name": names[site]} if site in names else {}),
            "times": counted.total(),
            "reasons": dict(counted.most_common(_REASONS)),
        }
        for site, counted in sorted(reasons.items())
        if counted.total() >= OFTEN
    ]


def often_left_out_sentence(entry: Mapping[str, Any]) -> str:
    """An entry of `often_left_out` for people."""
    who = f"Site {entry['site']}" + (f", {entry['name']!r}," if "name" in entry else "")
    reasons = "; ".join(
        f"{reason} ({'once' if count == 1 else f'{count} times'})" for reason, count in entry["reasons"].items()
    )
    return f"{who} was left out {entry['times']} times: {reasons}."


def evaluation_row(place: dict[str, Any], scope: str, counts: Mapping[int, tuple[int, int]]) -> Row:
    """The row of a scope: the mean of the sites' accuracies in percent, without sites that have no images, and each."""
    sites = {str(site): 100 * right / total for site, (right, total) in sorted(counts.items()) if total}
    accuracy = float(np.mean(list(sites.values()))) if sites else float("nan")
    return {**place, "scope": scope, "accuracy": accuracy, "sites": sites}


def run_summary(
    plan: Plan, fingerprint: str, adapter: Adapter, rows: Sequence[Row], zero_shot: dict[str, float], seconds: float
) -> dict[str, Any]:
    """The content of summary.json, except privacy, from the server's adapter and all rows of the run."""
    config, protocol = plan.config, plan.protocol
    trained = [row for row in rows if row["scope"] == "train"]
    return {
        "method": config.method,
        "strategy": config.strategy,
        "data": config.data,
        "protocol": config.protocol,
        "backbone": config.backbone,
        "fingerprint": fingerprint,
        "sites": config.sites,
        "rounds": config.rounds,
        "seed": config.seed,
        "metrics": protocol.last_round(rows),
        "metrics_last5": protocol.last_five(rows),
        "zero_shot": zero_shot,
        "uplink_bytes_per_site_round": _mean([row["uplink_bytes_per_site"] for row in trained]),
        "downlink_bytes_per_site_round": _mean([row["downlink_bytes_per_site"] for row in trained]),
        "trainable_parameters": sum(parameter.numel() for parameter in adapter.parameters() if parameter.requires_grad),
        "shared_parameters": sum(value.numel() for value in adapter.shared().values()),
        "left_out": sum(row["scope"] == "left_out" for row in rows),
        "wall_seconds": round(seconds, 2),
        "versions": _versions(),
    }


def privacy_account(
    plan: Plan, drivers: Mapping[str | None, RoundDriver], rows: Sequence[Row], values: int
) -> dict[str, Any] | None:
    """The privacy spent by the run's strategy over all folds, or None if it has no mechanism.

    Args:
        drivers: by the name of the fold.
        rows: of the whole run.
        values: the number of values in an update.
    """
    if (promise := plan.composition.privacy()) is None:
        return None
    trained = [row for row in rows if row["scope"] == "train"]
    rounds = [
        Participation(
            drivers[row["fold"]].participants(row["round"]),
            row["sites"],
            plan.config.training_steps(int(row.get("most_examples", 0))),
        )
        for row in trained
    ]
    return promise.spent(rounds, values)


def _mean(values: list[int]) -> int:
    return round(sum(values) / len(values)) if values else 0


def _versions() -> dict[str, str]:
    packages = ("flwr", "torch", "transformers", "numpy")
    return {"fedgraft": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}}
