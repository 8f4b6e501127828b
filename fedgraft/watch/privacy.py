"""The privacy that a run at work has spent so far, by the account of its own strategy, from the rows on disk."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fedgraft.core.errors import UserError
from fedgraft.watch.run import WatchedRun

_STATE = "strategy state/"
_EVALUATION = "evaluation: "


def spent_so_far(run: WatchedRun) -> dict[str, Any] | None:
    """As in summary.json after the run's rounds until now; None if its strategy promises nothing, or none is known."""
    if run.config is None or not run.config.strategy or not run.history.training:
        return None
    from fedgraft.config.notation import parse_terms
    from fedgraft.config.registry import STRATEGIES
    from fedgraft.strategies.privacy import Participation

    try:
        components = [STRATEGIES.load(term.name).make(term.options) for term in parse_terms(run.config.strategy)]
        promise = next(filter(None, (component.privacy() for component in components)), None)
        values = None if promise is None else _values(run.path / "checkpoints")
    except UserError:
        return None
    if promise is None or values is None:
        return None
    out: dict[tuple[str | None, int], set[int]] = defaultdict(set)
    for entry in run.history.left_out:
        if entry.site.isdecimal() and not entry.reason.startswith(_EVALUATION):
            out[entry.fold, entry.round].add(int(entry.site))
    rounds = [
        Participation(sorted({*row["sites"], *out[fold, at]}), row["sites"])
        for fold, rows in run.history.training.items()
        for at, row in sorted(rows.items())
    ]
    return promise.spent(rounds, values)


def _values(folder: Path) -> int | None:
    """How many values an update has, by the newest checkpoint without the strategy's state; None if there is none."""
    try:
        newest = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            return None
        with safe_open(newest, framework="numpy") as file:
            names = [name for name in file.keys() if not name.startswith(_STATE)]  # noqa: SIM118
            shapes = [file.get_slice(name).get_shape() for name in names]
    except (OSError, SafetensorError):
        return None
    return sum(int(math.prod(shape)) for shape in shapes)
