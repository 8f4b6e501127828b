"""pFedMoAP (Luo et al., ICLR 2025): each site's own prompt and others' from the server's pool, mixed for every image.

    s (weight cos(x, t) + x~ . gate(x~, [t~, t~_1, ..., t~_(K-1)]))

are the logits, with s the logit scale, t the text features of the site's prompt, t_k those of the K - 1 prompts of
other sites that are nearest to it (Euclidean), and ~ every d/128-th of d features. The gate is attention with 8 heads,
in which the image asks the prompts of a class; it stays at the site. The prompts' mean, weighted by examples, is what
every site trains from in the next round, and the pool keeps each site's latest prompt, which it is tested with. A site
receives its own and those K - 1 of the pool; `selection=random` draws them in every round, as the authors' code does
whatever its option says.

As in the authors' code, the products in the gate are scaled by 10, and what it returns is not normalized. Where ours
departs: their first round has no gate, because the pool is empty; ours begins with a prompt drawn for each site, so
that the gate learns from the start. Only queries have a bias: those of keys add the same to all prompts, those of
values and output the same to all classes, which a softmax ignores. Gate and prompt have one learning rate, theirs have
two. Before the first round the nearest are taken in any case, of prompts that are all random.
"""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedgraft.flower.messages import Arrays
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import ContextOptions, PromptAdapter, initial_context
from fedgraft.strategies.answers import Answer, LeftOut, checked
from fedgraft.strategies.components import Outcome, Round, Rule, Shapes, State
from fedgraft.strategies.weighted_average import weighted_average

_AT_ONCE = 2**22
"""How many mixed features are computed at once in an evaluation."""


class PFedMoAPOptions(ContextOptions):
    """The mixture of prompts."""

    experts: int = Field(10, ge=2, description="prompts in the mixture, the site's own among them", examples=[2])
    weight: float = Field(0.5, ge=0, description="lambda, of the cosine to the site's own prompt", examples=[1.0])
    gate_dim: int = Field(128, ge=1, description="features that the gate sees, at most", examples=[16])
    heads: int = Field(8, ge=1, description="heads of the gate", examples=[4])
    scaling: float = Field(10.0, gt=0, description="of the products in the gate", examples=[1.0])
    selection: Literal["nearest", "random"] = Field(
        "nearest", description="the others' prompts that a site receives", examples=["random"]
    )

    @model_validator(mode="after")
    def _wide_enough(self) -> Self:
        if self.gate_dim < self.heads:
            raise ValueError(f"gate_dim needs at least one feature for each of {self.heads} heads")
        return self


class Gate(nn.Module):
    """Attention in which an image asks the prompts of each class."""

    def __init__(self, dim: int, options: PFedMoAPOptions) -> None:
        super().__init__()
        self.heads, self.scaling = min(options.heads, dim), options.scaling
        self.width = min(options.gate_dim, dim) // self.heads * self.heads
        self._stride = dim // self.width
        self.queries = nn.Linear(self.width, self.width)
        self.keys = nn.Linear(self.width, self.width, bias=False)
        self.values = nn.Linear(self.width, self.width, bias=False)
        self.out = nn.Linear(self.width, self.width, bias=False)

    def reduced(self, features: Tensor) -> Tensor:
        """Features (..., dim) as the gate sees them, (..., width)."""
        return features[..., :: self._stride][..., : self.width]

    def forward(self, images: Tensor, prompts: Tensor) -> Tensor:
        """How near an image is to what it takes of the prompts, (B, C), from (B, dim) and (K, C, dim)."""
        seen, known = self.reduced(images), self.reduced(prompts)
        asked = self.queries(seen).unflatten(-1, (self.heads, -1))
        keys = self.keys(known).unflatten(-1, (self.heads, -1))
        values = self.values(known).unflatten(-1, (self.heads, -1))
        weights = (self.scaling * torch.einsum("bhd,kchd->bchk", asked, keys)).softmax(-1)
        mixed = self.out(torch.einsum("bchk,kchd->bchd", weights, values).flatten(-2))
        return torch.einsum("bd,bcd->bc", seen, mixed)


class PFedMoAP(PromptAdapter):
    """A prompt (1, n_ctx, width) that is shared, a pool of sites' prompts, and the site's gate.

    The server's pool is (sites, n_ctx, width), one row for each site. A site's is (K, n_ctx, width): its own latest
    prompt, and those of the others that it receives.
    """

    options: PFedMoAPOptions
    loss_of_features = False

    def build(self, generator: torch.Generator) -> None:
        """Prompt and pool, each drawn on its own, and the gate as torch draws its layers."""
        where = self.adapter_context
        known = where.sites if where.site is None else min(self.options.experts, where.sites)
        drawn = initial_context(self.vocabulary, self.options, generator, 1 + known)
        self.context, self.pool = nn.Parameter(drawn[:1]), nn.Parameter(drawn[1:], requires_grad=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.gate = Gate(self.vocabulary.backbone.dim, self.options)
        self.personal_names = frozenset(f"gate.{name}" for name, _ in self.gate.named_parameters())
        self._known: dict[tuple[int, ...], Tensor] = {}

    # --- the prompts ------------------------------------------------------------------------------

    def prompts(self) -> Tensor:
        """The site's latest prompt; the shared one for a model of all sites."""
        return self.context if self.adapter_context.site is None else self.pool[:1]

    def training_prompts(self) -> Tensor:
        """The shared prompt, from which every round begins."""
        return self.context

    @torch.no_grad()
    def neighbours_features(self, classes: tuple[int, ...]) -> Tensor:
        """Features (K - 1, C, dim) of the neighbours' prompts, computed once for all steps of a round."""
        if classes not in self._known:
            others = self.pool[1 : self.options.experts]
            none = self.pool.new_zeros(0, len(classes), self.vocabulary.backbone.dim)
            self._known[classes] = self.encode(others, classes) if len(others) else none
        return self._known[classes]

    # --- the classifier ---------------------------------------------------------------------------

    def mixed(self, images: Tensor, own: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The logits over s, (B, C), from the features (C, dim) of the site's own prompt."""
        prompts = torch.cat([own[None], self.neighbours_features(classes)])
        gated: Tensor = self.gate(images, prompts)
        return self.options.weight * images @ own.mT + gated

    def loss_of(self, encoded: Tensor, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy of the logits."""
        return self.cosine_loss(self.mixed(images, encoded[0], classes), labels)

    def scores(self, images: Tensor, class_features: Tensor, classes: tuple[int, ...]) -> Tensor:
        """`mixed` in parts that limit memory."""
        at_once = max(1, _AT_ONCE // (len(classes) * self.gate.width))
        return torch.cat([self.mixed(part, class_features, classes) for part in torch.split(images, at_once)])

    # --- what travels -----------------------------------------------------------------------------

    def shared(self) -> dict[str, Tensor]:
        """The prompt."""
        return {name: value for name, value in super().shared().items() if name != "pool"}

    def server_state(self) -> dict[str, Tensor]:
        """The prompt, and the whole pool or the site's part of it."""
        return super().shared()

    def load(self, values: dict[str, Tensor]) -> None:
        """Overwrite some parameters; the neighbours may be others."""
        super().load(values)
        self._known = {}


class PromptPool(Rule):
    """The weighted mean of the prompts, beside the latest prompt of each site."""

    options: PFedMoAPOptions
    sends_each_its_own = True

    def check_answers(
        self, answers: Sequence[Answer], previous: Arrays, server_round: int
    ) -> tuple[list[Answer], list[LeftOut]]:
        """Compare answers with the shared prompt."""
        return checked(answers, {"context": previous["context"]})

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """Prompts of sites that did not answer stay in the pool; whom each site receives is drawn if it is random."""
        pool = now.previous["pool"].copy()
        for answer in answers:
            if answer.site < len(pool):
                pool[answer.site] = answer.arrays["context"][0]
        arrays = {**weighted_average(answers), "pool": pool}
        if self.options.selection == "nearest":
            return Outcome(arrays)
        ranks = [now.noise(len(pool), f"prompts for site {site}".encode()) for site in range(len(pool))]
        chosen = [_others(rank, site)[: self._count(len(pool))] for site, rank in enumerate(ranks)]
        return Outcome(arrays, {"chosen": np.asarray(chosen, np.int64)})

    def memory(self, shared: Shapes) -> Shapes:
        """The sites whose prompts each site receives, if they are drawn."""
        sites = shared["pool"][0]
        return {"chosen": (sites, self._count(sites))} if self.options.selection == "random" else {}

    def common(self, shared: Arrays) -> Arrays:
        """The shared prompt."""
        return {"context": shared["context"]}

    def own(self, site: int, shared: Arrays, state: State) -> Arrays:
        """The site's latest prompt, then those of the others that were drawn, or the nearest ones, nearest first."""
        pool = shared["pool"]
        latest = pool[site] if site < len(pool) else shared["context"][0]
        if "chosen" in state and site < len(pool):
            others = np.take(pool, state["chosen"][site], axis=0, mode="clip")
        else:
            distances = np.square((pool - latest).astype(np.float64)).sum(axis=(1, 2))
            others = pool[_others(distances, site)[: self._count(len(pool))]]
        return {"pool": np.concatenate([latest[None], others])}

    def _count(self, sites: int) -> int:
        """How many others' prompts a site receives."""
        return min(self.options.experts, sites) - 1


def _others(ranks: NDArray[np.float64], site: int) -> list[int]:
    """All other sites, lowest rank first."""
    return [int(other) for other in np.argsort(ranks, kind="stable") if other != site]


METHOD = Method(
    "pfedmoap",
    "each site's own prompt and its neighbours', mixed by a gate for every image",
    PFedMoAP,
    options=PFedMoAPOptions,
    rule=PromptPool,
    paper="Luo et al., ICLR 2025",
    shared="the prompt, which other sites receive as it is",
    personal="the gate",
    keeps_its_rule="its server keeps the latest prompt of each site",
    takes_no_export="a gate mixes several prompts of a class for every image",
)
