"""FFA-LoRA (Sun et al., ICLR 2024): A keeps its initial value, the same at all sites; only B is trained and averaged.

With one A everywhere the mean is exact: (sum_k p_k B_k) A = sum_k p_k B_k A. Every site draws A from the run's seed, so
it never travels.
"""

import torch

from fedgraft.core.randomness import derived_seed
from fedgraft.methods.lora import CACHES, LoraAdapter
from fedgraft.methods.lora_options import DoraOptions
from fedgraft.methods.method import Method


class FFALora(LoraAdapter):
    """A frozen, B shared."""

    frozen = frozenset({"lora_A"})

    def draws(self, generator: torch.Generator) -> torch.Generator:
        """From the run's seed alone, whatever the site."""
        return torch.Generator().manual_seed(derived_seed(self.adapter_context.seed, "frozen A"))


METHOD = Method(
    "ffa-lora",
    "low-rank adapters, A frozen, B averaged",
    FFALora,
    options=DoraOptions,
    paper="Sun et al., ICLR 2024",
    shared="B",
    towers=("text", "image"),
    caches=CACHES,
)
