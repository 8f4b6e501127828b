"""The coordinate-wise trimmed mean (Yin et al., ICML 2018), computed by Flower: the ends of every value are cut off."""

from collections.abc import Sequence
from itertools import count

import numpy as np
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from pydantic import Field

from fedgraft.messages import Arrays
from fedgraft.options import Options
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.parts import Outcome, Round, Rule, State, StrategyPart


class TrimmedMeanOptions(Options):
    """How much is cut."""

    fraction: float = Field(0.2, gt=0, lt=0.5, description="of the sites, cut off at either end")


def trimmed_mean(answers: Sequence[Answer], fraction: float) -> Arrays:
    """The mean of every value without its largest and its smallest, int(fraction x sites) of each."""
    return {
        name: trim_mean(np.stack([a.arrays[name] for a in answers]).astype(np.float64), fraction).astype(array.dtype)
        for name, array in answers[0].arrays.items()
    }


class TrimmedMean(Rule):
    """`trimmed_mean` as a rule."""

    options: TrimmedMeanOptions

    def least(self) -> int:
        """As many as it takes to cut one at either end."""
        return next(sites for sites in count(3) if int(self.options.fraction * sites) >= 1)

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The trimmed mean."""
        return Outcome(trimmed_mean(answers, self.options.fraction))


STRATEGY = StrategyPart("trimmed-mean", "the mean without the ends of every value", TrimmedMean, TrimmedMeanOptions)
