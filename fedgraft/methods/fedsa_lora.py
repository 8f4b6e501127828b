"""FedSA-LoRA (Guo et al., ICLR 2025): A learns what the sites have in common and is averaged; B stays at the site.

W + (alpha / rank) B_k A at site k, A <- sum_k p_k A_k.
"""

from fedgraft.methods.lora import CACHES, LoraAdapter
from fedgraft.methods.lora_options import DoraOptions
from fedgraft.methods.method import Method


class FedSALora(LoraAdapter):
    """A shared; B, and magnitudes where there are any, personal."""

    kept = frozenset({"lora_B", "lora_magnitude_vector"})


METHOD = Method(
    "fedsa-lora",
    "low-rank adapters, A averaged, B personal",
    FedSALora,
    options=DoraOptions,
    paper="Guo et al., ICLR 2025",
    shared="A",
    personal="B",
    towers=("text", "image"),
    caches=CACHES,
)
