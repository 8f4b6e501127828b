"""Krum and Multi-Krum (Blanchard et al., NeurIPS 2017), selected by Flower: the sites that lie closest together.

Flower computes distances as |x|^2 + |y|^2 - 2 x.y, which suffers from cancellation where parameters differ by little,
so it is given the updates, in float64.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Outcome, Round, Rule, State, StrategyComponent, apply_update, updates


class KrumOptions(Options):
    """The attack to withstand."""

    malicious: int = Field(1, ge=1, description="sites that may answer anything", examples=[2])


def selected(answers: Sequence[Answer], previous: Arrays, malicious: int, count: int) -> list[int]:
    """Positions of the answers with the lowest scores, best first.

    The score of an answer is the sum of squared distances to its n - malicious - 2 nearest neighbours.
    """
    records = [
        RecordDict({"update": ArrayRecord({name: Array(update[name]) for name in sorted(update)})})
        for update in updates(answers, previous)
    ]
    position = {id(record): index for index, record in enumerate(records)}
    return [position[id(record)] for record in select_multikrum(records, malicious, count)]


def multi_krum(answers: Sequence[Answer], previous: Arrays, malicious: int, count: int) -> Arrays:
    """The mean of the `count` answers with the lowest scores, each counting once."""
    chosen = sorted(selected(answers, previous, malicious, count))
    changes = updates([answers[index] for index in chosen], previous)
    return apply_update(previous, {name: np.mean([change[name] for change in changes], axis=0) for name in previous})


class Krum(Rule):
    """The one answer with the lowest score."""

    options: KrumOptions

    def min_answers(self) -> int:
        """2 f + 3: the paper's condition 2 f + 2 < n."""
        return 2 * self.options.malicious + 3

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The best answer."""
        return Outcome(multi_krum(answers, now.previous, self.options.malicious, 1))


class MultiKrum(Krum):
    """The mean of all but `malicious` answers."""

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The mean of the n - f best answers."""
        malicious = self.options.malicious
        return Outcome(multi_krum(answers, now.previous, malicious, len(answers) - malicious))


KRUM = StrategyComponent("krum", "the one site that lies closest to the others", Krum, options=KrumOptions)
MULTI_KRUM = StrategyComponent("multi-krum", "the mean of all but the outermost sites", MultiKrum, options=KrumOptions)
