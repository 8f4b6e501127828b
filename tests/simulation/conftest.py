"""Images of the built-in sources, read once for all runs."""

from functools import cache

from fedgraft.data.examples import Examples
from fedgraft.data.sources.source import open_source
from fedgraft.methods.plan import Plan

_opened = cache(open_source)


def open_once(plan: Plan) -> Examples:
    """A plan's examples, for `prepare` and `simulate_on`; only for sources that no test changes."""
    assert not plan.config.data_options
    return _opened(plan.config.data, plan.config.seed)
