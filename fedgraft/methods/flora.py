"""FLoRA (Wang et al., NeurIPS 2024): the sites' factors stacked, which is exact, and merged; ranks may differ.

A = [p_1 A_1; p_2 A_2; ...] and B = [B_1, B_2, ...] have the product sum_k p_k B_k A_k, which is scaled and added to W.
In every round a site begins with a new A, drawn from the seed, its number and the round, and with B zero.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedgraft.core.randomness import derived_seed
from fedgraft.flower.messages import Arrays
from fedgraft.methods.lora import CACHES
from fedgraft.methods.lora_options import LoraOptions
from fedgraft.methods.merging_lora import MergingAdapter
from fedgraft.methods.method import Method
from fedgraft.strategies.answers import Answer, LeftOut
from fedgraft.strategies.low_rank import (
    MERGED,
    A,
    B,
    LowRankRule,
    Products,
    checked_factors,
    maps_of,
    no_factors,
    stacked,
)


class Flora(MergingAdapter):
    """A and B trained for one round; the products of all rounds merged."""

    def draws(self, generator: torch.Generator) -> torch.Generator:
        """A new generator in every round."""
        context = self.adapter_context
        place = "server" if context.site is None else str(context.site)
        seed = derived_seed(context.seed, "A of a round", context.fold, place, context.round)
        return torch.Generator().manual_seed(seed)

    def server_state(self) -> dict[str, Tensor]:
        """Only what is merged."""
        return {name: value for name, value in super().server_state().items() if name.endswith(".merged")}


class StackingRule(LowRankRule):
    """Adds the stack's product to what is merged, (out, in) for each map, which is all that travels down."""

    def next(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """What is merged after the round."""
        stack = stacked(answers)
        merged = {
            name: previous[name + MERGED] + stack[name + B].astype(np.float64) @ stack[name + A]
            for name in maps_of(previous)
        }
        return {name + MERGED: value.astype(np.float32) for name, value in merged.items()}

    def check_answers(
        self, answers: Sequence[Answer], previous: Arrays, server_round: int
    ) -> tuple[list[Answer], list[LeftOut]]:
        """Accept any rank that fits the maps."""
        return checked_factors(answers, {name: previous[name + MERGED].shape for name in maps_of(previous)})

    def start(self, answer: Answer, previous: Arrays) -> Arrays:
        """Nothing: the whole of the factors is the update."""
        return no_factors(answer)

    def effective_update(self, aggregated: Arrays, previous: Arrays) -> Products:
        """What was merged in this round."""
        return {
            name: aggregated[name + MERGED].astype(np.float64) - previous[name + MERGED] for name in maps_of(previous)
        }


METHOD = Method(
    "flora",
    "low-rank adapters of any ranks, stacked and merged",
    Flora,
    options=LoraOptions,
    rule=StackingRule(),
    paper="Wang et al., NeurIPS 2024",
    shared="A and B up, the merged change down",
    towers=("text", "image"),
    keeps_its_rule="its sites answer with other parameters than they receive",
    caches=CACHES,
)
