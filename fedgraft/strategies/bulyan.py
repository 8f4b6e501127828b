"""Bulyan (El Mhamdi et al., ICML 2018): Krum's choice again and again, then the values nearest the median.

With n answers and f malicious sites, Krum chooses one answer, which is set aside; it then chooses among those that
remain, until n - 2 f are chosen. For each coordinate, the n - 4 f values nearest the median of the chosen are averaged.
Krum among m answers counts the distances to the m - f - 2 nearest others. With n = 4 f + 3 and f = 1 none are left for
the last choice, where the single nearest one counts instead. Two answers that are each other's nearest then score the
same, and the one that lies closer to all that remain is chosen, so that the sites' numbers decide nothing.
"""

from collections.abc import Sequence

import numpy as np
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from numpy.typing import NDArray

from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import (
    Outcome,
    Round,
    Rule,
    State,
    StrategyComponent,
    Update,
    apply_update,
    updates,
)
from fedgraft.strategies.krum import KrumOptions


def chosen_one_by_one(changes: Sequence[Update], malicious: int, count: int) -> list[int]:
    """Positions of the updates that Krum chooses one after another, each among those not chosen yet."""
    distances = _squared_distances(changes)
    remaining = list(range(len(changes)))
    chosen: list[int] = []
    while len(chosen) < count:
        neighbours = max(1, len(remaining) - malicious - 2)
        among = np.sort(distances[np.ix_(remaining, remaining)], axis=1)
        best = np.lexsort((among.sum(1), among[:, 1 : 1 + neighbours].sum(1)))[0]
        chosen.append(remaining.pop(int(best)))
    return chosen


def bulyan(answers: Sequence[Answer], previous: Arrays, malicious: int) -> Arrays:
    """The mean of the values nearest the selection's median."""
    names, count = sorted(previous), len(answers) - 2 * malicious
    all_changes = updates(answers, previous)
    chosen = sorted(chosen_one_by_one(all_changes, malicious, count))
    changes = [[all_changes[index][name] for name in names] for index in chosen]
    middle = [np.median(np.stack(values), axis=0) for values in zip(*changes, strict=True)]
    means = aggregate_n_closest_weights(middle, changes, count - 2 * malicious)
    return apply_update(previous, dict(zip(names, means, strict=True)))


def _squared_distances(changes: Sequence[Update]) -> NDArray[np.float64]:
    """Between all pairs of updates, (n, n); differences first, since squares of their own would cancel."""
    flat = np.stack([np.concatenate([change[name].ravel() for name in sorted(change)]) for change in changes])
    with np.errstate(over="ignore"):  # an update without bounds is infinitely far from all others
        return np.stack([np.square(flat - own).sum(1) for own in flat])


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
    "bulyan", "Krum's choices one by one, then the values nearest their median", Bulyan, options=KrumOptions
)
