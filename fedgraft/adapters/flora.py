"""FLoRA (Wang et al., NeurIPS 2024): the sites' factors stacked, which is exact, and merged; ranks may differ.

A = [p_1 A_1; p_2 A_2; ...] and B = [B_1, B_2, ...] have the product sum_k p_k B_k A_k, and W <- W + its scaled sum.
Every round a site begins with a new A, drawn from the seed, its number and the round, and with B zero.
"""

import torch
from torch import Tensor

from fedgraft.adapters.base import Method
from fedgraft.adapters.lora import CACHES, LoraOptions
from fedgraft.adapters.merging import MergingAdapter
from fedgraft.randomness import derived_seed


class Flora(MergingAdapter):
    """A and B trained for one round; the products of all rounds merged."""

    def draws(self, generator: torch.Generator) -> torch.Generator:
        """Anew in every round."""
        seat = self.seat
        place = "server" if seat.site is None else str(seat.site)
        return torch.Generator().manual_seed(derived_seed(seat.seed, "A of a round", seat.fold, place, seat.round))

    def server_state(self) -> dict[str, Tensor]:
        """What is merged alone."""
        return {name: value for name, value in super().server_state().items() if name.endswith(".merged")}


METHOD = Method(
    "flora",
    "low-rank adapters of any ranks, stacked and merged",
    Flora,
    LoraOptions,
    strategy="fedgraft.strategies.flora:Flora",
    keeps_its_rule="its sites answer with other parameters than they get",
    caches=CACHES,
)
