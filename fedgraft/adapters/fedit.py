"""FedIT (Zhang et al., ICASSP 2024): plain federated averaging of low-rank adapters.

A <- sum_k p_k A_k and B <- sum_k p_k B_k with p_k site k's share of the examples. The product of the means is not the
mean of the products, sum_k p_k B_k A_k; how far off it is in each round stands in metrics.jsonl as `product_error`.
"""

from fedgraft.adapters.base import Method
from fedgraft.adapters.lora import CACHES, LoraAdapter, OneRankOptions


class FedIT(LoraAdapter):
    """A and B shared."""


METHOD = Method(
    "fedit",
    "low-rank adapters, A and B averaged",
    FedIT,
    OneRankOptions,
    strategy="fedgraft.strategies.fedit:FedIT",
    caches=CACHES,
)
