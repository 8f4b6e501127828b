"""What runs share: images of the built-in sources, read once, and copies of runs on the way."""

import shutil
from functools import cache
from pathlib import Path

from fedgraft.core.observer import Observer
from fedgraft.data.examples import Examples
from fedgraft.data.sources.source import open_source
from fedgraft.methods.plan import Plan

_opened = cache(open_source)


def open_once(plan: Plan) -> Examples:
    """A plan's examples, for `prepare` and `simulate_on`; only for sources that no test changes."""
    assert not plan.config.data_options
    return _opened(plan.config.data, plan.config.seed)


class HalfwayCopy(Observer):
    """Copies a run as it is on disk when the evaluation of its second round is reported."""

    def __init__(self, run: Path, copy: Path) -> None:
        self.run, self.copy = run, copy

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        if server_round == 2:
            shutil.copytree(self.run, self.copy)
