"""FedIT (Zhang et al., ICASSP 2024): the weighted mean of A and of B, and how far their product is off the mean one."""

from collections.abc import Sequence

from fedgraft.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.low_rank import LowRankStrategy, Products, maps_of, product
from fedgraft.strategies.weighted_average import weighted_average


class FedIT(LowRankStrategy):
    """`weighted_average` with its error measured."""

    def aggregate(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """The weighted mean."""
        return weighted_average(answers)

    def passed_on(self, aggregated: Arrays, previous: Arrays) -> Products:
        """The product of the means."""
        return {name: product(aggregated, name) for name in maps_of(aggregated)}
