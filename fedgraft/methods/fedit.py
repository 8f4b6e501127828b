"""FedIT (Zhang et al., ICASSP 2024): plain federated averaging of low-rank adapters.

A <- sum_k p_k A_k and B <- sum_k p_k B_k with p_k site k's share of the examples. The product of the means is not the
mean of the products, sum_k p_k B_k A_k; metrics.jsonl records the error of each round as `product_error`.
"""

from collections.abc import Sequence

from fedgraft.flower.messages import Arrays
from fedgraft.methods.lora import CACHES, LoraAdapter
from fedgraft.methods.lora_options import DoraOptions
from fedgraft.methods.method import Method
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.low_rank import LowRankRule, Products, maps_of, product
from fedgraft.strategies.weighted_average import weighted_average


class FedIT(LoraAdapter):
    """A and B shared."""


class MeasuredAverage(LowRankRule):
    """`weighted_average` with its error measured."""

    is_weighted_mean = True

    def next(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """The weighted mean."""
        return weighted_average(answers)

    def effective_update(self, aggregated: Arrays, previous: Arrays) -> Products:
        """The product of the means."""
        return {name: product(aggregated, name) for name in maps_of(aggregated)}


METHOD = Method(
    "fedit",
    "low-rank adapters, A and B averaged",
    FedIT,
    options=DoraOptions,
    rule=MeasuredAverage(),
    paper="Zhang et al., ICASSP 2024",
    shared="A and B",
    towers=("text", "image"),
    caches=CACHES,
)
