"""FedSA-LoRA (Guo et al., ICLR 2025): A learns what the sites have in common and is averaged; B stays at the site.

W + (alpha / rank) B_k A at site k, A <- sum_k p_k A_k.
"""

from fedgraft.methods.lora import CACHES, LoraAdapter, OneRankOptions
from fedgraft.methods.method import Method


class FedSALora(LoraAdapter):
    """A shared, B personal."""

    kept = frozenset({"lora_B"})


METHOD = Method(
    "fedsa-lora",
    "low-rank adapters, A averaged, B personal",
    FedSALora,
    options=OneRankOptions,
    shares="A",
    caches=CACHES,
)
