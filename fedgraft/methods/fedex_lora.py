"""FedEx-LoRA (Singhal et al., ACL 2025): A and B are averaged, and the residual is merged into the frozen weight.

A <- sum_k p_k A_k, B <- sum_k p_k B_k and W <- W + (alpha / rank) (sum_k p_k B_k A_k - B A), so all sites continue from
exactly the mean of their products. p_k is site k's share of the examples, as in every other method, or with
`weights=equal` 1 / K, as in the authors' code.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from fedgraft.flower.messages import Arrays
from fedgraft.methods.lora import CACHES
from fedgraft.methods.lora_options import OneRankOptions
from fedgraft.methods.merging_lora import MergingAdapter
from fedgraft.methods.method import Method
from fedgraft.strategies.answers import Answer, LeftOut, checked
from fedgraft.strategies.components import Outcome, Round, State
from fedgraft.strategies.low_rank import MERGED, LowRankRule, Products, maps_of, mean_products, product
from fedgraft.strategies.weighted_average import weighted_average


class FedExLoraOptions(OneRankOptions):
    """How the sites are weighted."""

    weights: Literal["examples", "equal"] = Field(
        "examples", description="sites count by their examples, or all the same", examples=["equal"]
    )


class FedExLora(MergingAdapter):
    """A and B shared; the residuals of all rounds merged."""

    options: FedExLoraOptions


def averaged_with_residual(answers: Sequence[Answer], merged: Arrays) -> Arrays:
    """Means of A and B, and `merged` (out, in) of each map plus sum_k p_k B_k A_k / r - mean(B) mean(A) / r."""
    mean = weighted_average(answers)
    products = mean_products(answers)
    residuals = {
        name + MERGED: (merged[name + MERGED] + (products[name] - product(mean, name))).astype(np.float32)
        for name in products
    }
    return {**mean, **residuals}


class ResidualRule(LowRankRule):
    """`averaged_with_residual` as a rule; the residuals of all rounds travel down, only A and B up."""

    options: FedExLoraOptions

    def next(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """Means and residuals."""
        return averaged_with_residual(answers, previous)

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """Means and residuals, and their errors, with all sites alike if that is asked for."""
        alike = self.options.weights == "equal"
        return super().aggregate([replace(a, num_examples=1) for a in answers] if alike else answers, now, state)

    def check_answers(
        self, answers: Sequence[Answer], previous: Arrays, server_round: int
    ) -> tuple[list[Answer], list[LeftOut]]:
        """Compare answers with the factors that were sent."""
        return checked(answers, {name: array for name, array in previous.items() if not name.endswith(MERGED)})

    def effective_update(self, aggregated: Arrays, previous: Arrays) -> Products:
        """The product of the means and this round's residual."""
        return {
            name: product(aggregated, name) + (aggregated[name + MERGED].astype(np.float64) - previous[name + MERGED])
            for name in maps_of(aggregated)
        }


METHOD = Method(
    "fedex-lora",
    "low-rank adapters, A and B averaged, the exact residual merged",
    FedExLora,
    options=FedExLoraOptions,
    rule=ResidualRule,
    paper="Singhal et al., ACL 2025",
    shared="A and B",
    towers=("text", "image"),
    keeps_its_rule="its server also merges the residual of averaging the factors",
    caches=CACHES,
)
