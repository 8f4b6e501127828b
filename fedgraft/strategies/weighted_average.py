"""Federated averaging (McMahan et al. 2017): the mean of the sites' parameters, weighted by their examples."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Outcome, Round, Rule, State, StrategyComponent


def weighted_average(answers: Sequence[Answer]) -> Arrays:
    """The mean weighted by `num_examples`, summed in the given order in float64."""
    total = sum(answer.num_examples for answer in answers)
    return {
        name: sum(
            (answer.num_examples / total * answer.arrays[name].astype(np.float64) for answer in answers[1:]),
            start=answers[0].num_examples / total * answers[0].arrays[name].astype(np.float64),
        ).astype(array.dtype)
        for name, array in answers[0].arrays.items()
    }


class WeightedAverage(Rule):
    """`weighted_average` as a rule."""

    is_weighted_mean = True

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The weighted mean."""
        return Outcome(weighted_average(answers))


class EqualAverage(Rule):
    """The mean in which all sites count alike, as some methods' authors have it."""

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The plain mean."""
        return Outcome(weighted_average([replace(answer, num_examples=1) for answer in answers]))


STRATEGY = StrategyComponent(
    "fedavg", "the mean weighted by examples, the default rule of most methods", WeightedAverage
)
