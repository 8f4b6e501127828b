"""The coordinate-wise trimmed mean (Yin et al., ICML 2018), computed by Flower: extreme values are cut off."""

from collections.abc import Sequence
from itertools import count

import numpy as np
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Outcome, Round, Rule, State, StrategyComponent


class TrimmedMeanOptions(Options):
    """How much is trimmed."""

    fraction: float = Field(
        0.2, gt=0, lt=0.5, description="fraction of the sites cut off at either end", examples=[0.3]
    )


def trimmed_sites(fraction: float, sites: int) -> int:
    """How many values are cut off at either end: floor(fraction x sites), 29 for 0.29 of 100 sites."""
    return int(round(fraction * sites, 9))


def trimmed_mean(answers: Sequence[Answer], fraction: float) -> Arrays:
    """The mean of each coordinate without its `trimmed_sites` largest and smallest values."""
    sites = len(answers)
    share = (trimmed_sites(fraction, sites) + 0.25) / sites  # Flower takes the whole part of share x sites
    return {
        name: trim_mean(np.stack([a.arrays[name] for a in answers]).astype(np.float64), share).astype(array.dtype)
        for name, array in answers[0].arrays.items()
    }


class TrimmedMean(Rule):
    """`trimmed_mean` as a rule."""

    options: TrimmedMeanOptions

    def min_answers(self) -> int:
        """As many as it takes to cut one value at either end."""
        return next(sites for sites in count(3) if trimmed_sites(self.options.fraction, sites) >= 1)

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The trimmed mean."""
        return Outcome(trimmed_mean(answers, self.options.fraction))


STRATEGY = StrategyComponent("trimmed-mean", "the mean without extreme values", TrimmedMean, options=TrimmedMeanOptions)
