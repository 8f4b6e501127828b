"""The coordinate-wise median of the sites' parameters (Yin et al., ICML 2018); every site counts once."""

from collections.abc import Sequence

import numpy as np

from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Outcome, Round, Rule, State, StrategyComponent


def median(answers: Sequence[Answer]) -> Arrays:
    """The median of each coordinate; for an even number of sites, the mean of the middle two values."""
    return {
        name: np.median(np.stack([answer.arrays[name] for answer in answers]).astype(np.float64), axis=0).astype(
            array.dtype
        )
        for name, array in answers[0].arrays.items()
    }


class Median(Rule):
    """`median` as a rule."""

    def min_answers(self) -> int:
        """Two answers have no middle value."""
        return 3

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The median."""
        return Outcome(median(answers))


STRATEGY = StrategyComponent("median", "the coordinate-wise median of the sites' values", Median)
