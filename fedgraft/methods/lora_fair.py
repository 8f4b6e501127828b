"""LoRA-FAIR (Bian et al., ICCV 2025): the mean of B is corrected, so that its product comes near the mean product.

With A and B the weighted means and D = sum_k p_k B_k A_k, the server minimizes over C (out, rank), for each map,

    1 - cos(D, (B + C) A) + lambda |C|^2

by gradient steps from C = 0, and sends A and B + C. The cosine is between the matrices as vectors. Products of the size
out x in are formed once for each map: a step needs only D A^T and A A^T.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedgraft.flower.messages import Arrays
from fedgraft.methods.fedit import MeasuredAverage
from fedgraft.methods.lora import CACHES, LoraAdapter
from fedgraft.methods.lora_options import OneRankOptions
from fedgraft.methods.method import Method
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.low_rank import A, B, mean_products
from fedgraft.strategies.weighted_average import weighted_average

Matrix = NDArray[np.float64]


class LoraFairOptions(OneRankOptions):
    """How the server corrects the mean of B."""

    regularization: float = Field(0.01, ge=0, description="lambda, the weight of the correction's size", examples=[0.1])
    correction_lr: float = Field(0.01, gt=0, description="learning rate of the correction", examples=[0.02])
    correction_steps: int = Field(1000, ge=1, description="gradient steps of the correction", examples=[10])


class LoraFair(LoraAdapter):
    """A and B shared."""

    options: LoraFairOptions


def corrected(left: Matrix, right: Matrix, target: Matrix, options: LoraFairOptions) -> Matrix:
    """B + C for the means B (out, rank) and A (rank, in), and D (out, in); B itself where a product is zero."""
    length = np.linalg.norm(target)
    if not length:
        return left
    towards, gram = target @ right.T / length, right @ right.T
    correction = np.zeros_like(left)
    for _ in range(options.correction_steps):
        now = left + correction
        spread = now @ gram
        size = np.sqrt((spread * now).sum())
        if not size:
            return left
        cosine = (towards * now).sum() / size
        slope = (cosine * spread / size - towards) / size + 2 * options.regularization * correction
        correction -= options.correction_lr * slope
    return left + correction


class CorrectingRule(MeasuredAverage):
    """`corrected` for every map."""

    is_weighted_mean = False
    options: LoraFairOptions

    def next(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """The mean of A, and the corrected mean of B."""
        mean, products = weighted_average(answers), mean_products(answers)
        for name, target in products.items():
            left, right = mean[name + B].astype(np.float64), mean[name + A].astype(np.float64)
            mean[name + B] = corrected(left, right, target, self.options).astype(np.float32)
        return mean


METHOD = Method(
    "lora-fair",
    "low-rank adapters, A and B averaged, B corrected towards the mean product",
    LoraFair,
    options=LoraFairOptions,
    rule=CorrectingRule,
    paper="Bian et al., ICCV 2025",
    shared="A and B",
    towers=("text", "image"),
    keeps_its_rule="its server corrects the mean of B",
    caches=CACHES,
)
