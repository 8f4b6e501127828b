"""Bulyan (El Mhamdi et al., ICML 2018), as Flower computes it: Krum's selection, then the values nearest its median.

With n answers and f malicious sites, the n - 2 f answers with the lowest Krum scores are selected at once; for each
coordinate, the n - 4 f values nearest their median are averaged.
"""

from collections.abc import Sequence

import numpy as np
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights

from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Outcome, Round, Rule, State, StrategyComponent, apply_update, updates
from fedgraft.strategies.krum import KrumOptions, selected


def bulyan(answers: Sequence[Answer], previous: Arrays, malicious: int) -> Arrays:
    """The mean of the values nearest the selection's median."""
    names = sorted(previous)
    count = len(answers) - 2 * malicious
    chosen = sorted(selected(answers, previous, malicious, count))
    changes = [[change[name] for name in names] for change in updates([answers[i] for i in chosen], previous)]
    middle = [np.median(np.stack(values), axis=0) for values in zip(*changes, strict=True)]
    means = aggregate_n_closest_weights(middle, changes, count - 2 * malicious)
    return apply_update(previous, dict(zip(names, means, strict=True)))


class Bulyan(Rule):
    """`bulyan` as a rule."""

    options: KrumOptions

    def min_answers(self) -> int:
        """4 f + 3."""
        return 4 * self.options.malicious + 3

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The mean of the central values."""
        return Outcome(bulyan(answers, now.previous, self.options.malicious))


STRATEGY = StrategyComponent(
    "bulyan", "Krum's selection, then the values nearest its median", Bulyan, options=KrumOptions
)
