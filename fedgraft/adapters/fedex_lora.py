"""FedEx-LoRA (Singhal et al., ACL 2025): A and B averaged, and what that leaves out goes into the frozen weight.

A <- sum_k p_k A_k, B <- sum_k p_k B_k and W <- W + (alpha / rank) (sum_k p_k B_k A_k - B A), so the sites together
go on from exactly the mean of their products. The authors' code takes unweighted means; here p_k is site k's share of
the examples, as in every other method, and equal shares give their rule.
"""

from fedgraft.adapters.base import Method
from fedgraft.adapters.lora import CACHES, OneRankOptions
from fedgraft.adapters.merging import MergingAdapter


class FedExLora(MergingAdapter):
    """A and B shared; the residuals of all rounds merged."""


METHOD = Method(
    "fedex-lora",
    "low-rank adapters, A and B averaged, the exact residual merged",
    FedExLora,
    OneRankOptions,
    strategy="fedgraft.strategies.fedex_lora:FedExLora",
    keeps_its_rule="its server also merges what the mean of its factors leaves out",
    caches=CACHES,
)
