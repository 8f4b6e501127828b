"""HetLoRA (Cho et al., EMNLP 2024): sites of different ranks, which prune their own, and a mean weighted by change.

A site of rank r trains the first r rows of A and columns of B. With T those from floor(gamma r) on, its loss is

    CE + lambda sum over maps |B_T| |A_T|

and if that sum is smaller after a round's training than before, the site's rank falls to floor(gamma r) for good. The
server pads the factors with zeros to the largest rank and averages them with weights |B_k A_k| / sum_j |B_j A_j|, in
the Frobenius norm over all maps; a site receives the first rows and columns that its rank allows. Every site scales its
change by alpha over the largest rank, so that the same factors are the same change everywhere.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.flower.messages import Arrays
from fedgraft.methods.adapter import Batch
from fedgraft.methods.lora import CACHES, LoraAdapter
from fedgraft.methods.lora_options import LoraOptions
from fedgraft.methods.method import Method
from fedgraft.strategies.answers import Answer, LeftOut
from fedgraft.strategies.components import Outcome, Round, State
from fedgraft.strategies.low_rank import (
    A,
    B,
    LowRankRule,
    Products,
    checked_factors,
    maps_of,
    no_factors,
    padded,
    product,
)


class HetLoraOptions(LoraOptions):
    """How a site prunes its rank."""

    gamma: float = Field(
        0.99, gt=0, lt=1, description="share of the rank that a site keeps when it prunes", examples=[0.5]
    )
    decay: float = Field(5e-3, ge=0, description="lambda, the weight of the directions to prune", examples=[0.5])


class HetLora(LoraAdapter):
    """A and B of the largest rank, of which the directions beyond the site's own rank are zero and stay so."""

    options: HetLoraOptions
    personal_names = frozenset({"pruned"})

    def build(self, generator: torch.Generator) -> None:
        """The factors, and how many directions the site has pruned from its rank."""
        super().build(generator)
        self.personal_names = frozenset({"pruned"})
        self.pruned = nn.Parameter(torch.zeros(()), requires_grad=False)
        self._before = torch.zeros(())
        self._clear_pruned()

    def largest_rank(self) -> int:
        """Of all sites, which is what the factors are padded to."""
        return self.options.rank_of(None)

    @property
    def own_rank(self) -> int:
        """The site's rank; for the server, the largest."""
        return max(1, self.options.rank_of(self.adapter_context.site) - int(self.pruned))

    @property
    def kept_rank(self) -> int:
        """The rank after the next pruning."""
        return max(1, math.floor(self.options.gamma * self.own_rank))

    def pruning_norm(self) -> Tensor:
        """The sum over maps of |B_T| |A_T|."""
        last = slice(self.kept_rank, self.own_rank)
        norms = [own.lora_B[:, last].norm() * own.lora_A[last].norm() for own in self.factors.values()]
        return torch.stack(norms).sum()

    @torch.no_grad()
    def on_training_begin(self) -> None:
        """Measure the directions that may be pruned."""
        self._before = self.pruning_norm()

    @torch.no_grad()
    def on_training_end(self) -> None:
        """Prune them if they have become smaller."""
        if self.pruning_norm() < self._before:
            self.pruned.fill_(int(self.pruned) + self.own_rank - self.kept_rank)
            self._clear_pruned()

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy plus lambda times `pruning_norm`."""
        return super().loss(images, labels, classes) + self.options.decay * self.pruning_norm()

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """One pass of the text tower over all sites."""
        plain = super().losses(adapters, batches, classes)
        return [own + site.options.decay * site.pruning_norm() for site, own in zip(adapters, plain, strict=True)]

    def shared(self) -> dict[str, Tensor]:
        """The directions within the site's rank."""
        rank = self.own_rank
        return {name: value[:rank] if name.endswith(A) else value[:, :rank] for name, value in super().shared().items()}

    def server_state(self) -> dict[str, Tensor]:
        """Factors of the largest rank."""
        return super().shared()

    def load(self, values: dict[str, Tensor]) -> None:
        """Overwrite some parameters, factors of a smaller rank padded, and cut what is beyond the site's rank."""
        super().load({**values, **padded_tensors(values, self.rank)})
        self._clear_pruned()

    @torch.no_grad()
    def _clear_pruned(self) -> None:
        for own in self.factors.values():
            own.lora_A[self.own_rank :] = 0
            own.lora_B[:, self.own_rank :] = 0


def padded_tensors(values: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The factors among some tensors, with zeros up to a rank."""
    rows = {name: F.pad(v, (0, 0, 0, rank - len(v))) for name, v in values.items() if name.endswith(A)}
    return rows | {name: F.pad(v, (0, rank - v.shape[1])) for name, v in values.items() if name.endswith(B)}


class WeightedByChange(LowRankRule):
    """The mean of the padded factors, weighted by the size of each site's change."""

    def next(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """Factors of the largest rank; where no site changed anything, the plain mean."""
        largest = len(previous[maps_of(previous)[0] + A])
        factors = [padded(answer.arrays, largest) for answer in answers]
        sizes = [math.sqrt(sum(np.square(product(own, name)).sum() for name in maps_of(own))) for own in factors]
        weights = np.asarray(sizes) / sum(sizes) if sum(sizes) else np.full(len(sizes), 1 / len(sizes))
        return {
            name: np.einsum("k,k...->...", weights, np.stack([own[name] for own in factors])).astype(np.float32)
            for name in sorted(previous)
        }

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """`next`, with the errors of `LowRankRule` in units of the largest rank, by which every site scales."""
        largest = len(now.previous[maps_of(now.previous)[0] + A])
        even = [replace(answer, arrays=padded(answer.arrays, largest)) for answer in answers]
        return super().aggregate(even, now, state)

    def check_answers(
        self, answers: Sequence[Answer], previous: Arrays, server_round: int
    ) -> tuple[list[Answer], list[LeftOut]]:
        """Accept any rank up to the largest."""
        shapes = {name: (len(previous[name + B]), previous[name + A].shape[1]) for name in maps_of(previous)}
        return checked_factors(answers, shapes, len(previous[next(iter(shapes)) + A]))

    def start(self, answer: Answer, previous: Arrays) -> Arrays:
        """Nothing: the whole of the factors is the update."""
        return no_factors(answer)

    def effective_update(self, aggregated: Arrays, previous: Arrays) -> Products:
        """The product of the means."""
        return {name: product(aggregated, name) for name in maps_of(aggregated)}


METHOD = Method(
    "hetlora",
    "low-rank adapters whose sites prune their own ranks, weighted by the size of the change",
    HetLora,
    options=HetLoraOptions,
    rule=WeightedByChange(),
    paper="Cho et al., EMNLP 2024",
    shared="A and B up to the site's rank",
    personal="the site's rank",
    towers=("text", "image"),
    keeps_its_rule="its sites answer with factors of ranks of their own",
    caches=CACHES,
)
