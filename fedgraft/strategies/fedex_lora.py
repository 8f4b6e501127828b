"""FedEx-LoRA (Singhal et al., ACL 2025): means of A and B, and the residual of their product, summed over rounds."""

from collections.abc import Sequence

import numpy as np

from fedgraft.messages import Arrays
from fedgraft.strategies.answers import Answer, LeftOut, checked
from fedgraft.strategies.low_rank import MERGED, LowRankStrategy, Products, maps_of, mean_products, product
from fedgraft.strategies.weighted_average import weighted_average


def averaged_with_residual(answers: Sequence[Answer], merged: Arrays) -> Arrays:
    """Means of A and B, and `merged` (out, in) of each map plus sum_k p_k B_k A_k / r - mean(B) mean(A) / r."""
    mean = weighted_average(answers)
    products = mean_products(answers)
    residuals = {
        name + MERGED: (merged[name + MERGED] + (products[name] - product(mean, name))).astype(np.float32)
        for name in products
    }
    return {**mean, **residuals}


class FedExLora(LowRankStrategy):
    """`averaged_with_residual` as a strategy; the residuals of all rounds travel down, only A and B up."""

    def aggregate(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """Means and residuals."""
        return averaged_with_residual(answers, previous)

    def check(
        self, answers: Sequence[Answer], previous: Arrays, sizes: bool = True
    ) -> tuple[list[Answer], list[LeftOut]]:
        """Compared with the factors that were sent."""
        return checked(answers, {name: array for name, array in previous.items() if not name.endswith(MERGED)}, sizes)

    def passed_on(self, aggregated: Arrays, previous: Arrays) -> Products:
        """The product of the means and this round's residual."""
        return {
            name: product(aggregated, name) + (aggregated[name + MERGED].astype(np.float64) - previous[name + MERGED])
            for name in maps_of(aggregated)
        }
