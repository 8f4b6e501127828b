"""FedTPG (Qiu et al., ICLR 2024): a shared network that writes the context from the names of the classes.

With T (C, dim) the frozen features of the class names and Q (n_ctx, width) learnt queries, the context is

    F(a) + a,  a = attention(norm(Q), norm(T), norm(T))

with F a gated two-layer perceptron, GEGLU. So a site that has never seen a class still gets a context for it. The
context depends on the set of classes, not on their order: a site trains with that of its softmax, and each scope is
classified with that of its candidates. Sites count alike in the average, whatever their number of examples.
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.backbones.abilities import Needs
from fedgraft.config.options import Options
from fedgraft.methods.adapter import Adapter, Batch
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import INITIAL_STD
from fedgraft.strategies.weighted_average import EqualAverage

HEADS, EXPANSION = 4, 4


class FedTPGOptions(Options):
    """Length of the context."""

    n_ctx: int = Field(4, ge=1, description="context vectors that are written", examples=[2])


class FedTPG(Adapter):
    """Queries, attention and perceptron, all shared."""

    options: FedTPGOptions

    @classmethod
    def needs(cls, options: FedTPGOptions) -> Needs:
        """A context before the class name."""
        return Needs(placement="before", context=options.n_ctx)

    def build(self, generator: torch.Generator) -> None:
        """The network, drawn as torch draws its layers; queries from Normal(0, 0.02^2)."""
        self.vocabulary.require_room(self.options.n_ctx)
        width, dim = self.vocabulary.backbone.text.width, self.vocabulary.backbone.dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.attention = nn.MultiheadAttention(width, HEADS, kdim=dim, vdim=dim, batch_first=True)
            self.norm_queries, self.norm_names = nn.LayerNorm(width), nn.LayerNorm(dim)
            self.norm = nn.LayerNorm(width)
            self.gated = nn.Linear(width, 2 * EXPANSION * width)
            self.out = nn.Linear(EXPANSION * width, width)
        self.attention.in_proj_bias.register_hook(_without_keys)  # type: ignore[no-untyped-call]
        self.queries = nn.Parameter(INITIAL_STD * torch.randn(self.options.n_ctx, width, generator=generator))
        self._names: dict[tuple[int, ...], Tensor] = {}

    def context(self, classes: tuple[int, ...]) -> Tensor:
        """The context (1, n_ctx, width) that the network writes for a set of classes."""
        names = self.norm_names(self._name_features(classes))[None]
        attended, _ = self.attention(self.norm_queries(self.queries)[None], names, names, need_weights=False)
        value, gate = self.gated(self.norm(attended)).chunk(2, dim=-1)
        written: Tensor = self.out(value * F.gelu(gate)) + attended
        return written

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The class names behind the context that is written for them."""
        return self.all_class_features([self], classes)[0]

    @classmethod
    def all_class_features(cls, adapters: Sequence[Self], classes: tuple[int, ...]) -> list[Tensor]:
        """One pass of the text tower over all sites' contexts."""
        vocabulary = adapters[0].vocabulary
        contexts = torch.cat([adapter.context(classes) for adapter in adapters])
        return list(vocabulary.backbone.text.encode_prompts(contexts, vocabulary.tokens(classes)))

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """One pass of the text tower over all sites' contexts."""
        return [
            adapter.cross_entropy(batch.images, features, batch.labels)
            for adapter, batch, features in zip(
                adapters, batches, cls.all_class_features(adapters, classes), strict=True
            )
        ]

    def sites_per_pass(self, classes: tuple[int, ...]) -> int:
        """As many sites as keep one pass in the processor's cache."""
        return self.vocabulary.sites_per_pass(self.vocabulary.tokens(classes).ids.numel())

    @torch.no_grad()
    def _name_features(self, classes: tuple[int, ...]) -> Tensor:
        """The frozen features of the class names alone, (C, dim), computed once."""
        if classes not in self._names:
            names = [self.vocabulary.class_names[index] for index in classes]
            self._names[classes] = self.vocabulary.backbone.text.encode_texts(names)
        return self._names[classes]


def _without_keys(gradient: Tensor) -> Tensor:
    """The gradient of the biases of queries, keys and values, exactly zero for the keys' as it is but for rounding.

    A softmax ignores what all keys have in common, and an optimizer such as Adam would make steps of the rounding.
    """
    of_queries, of_keys, of_values = gradient.chunk(3)
    return torch.cat([of_queries, torch.zeros_like(of_keys), of_values])


METHOD = Method(
    "fedtpg",
    "a shared network that writes the context from the class names",
    FedTPG,
    options=FedTPGOptions,
    rule=EqualAverage(),
    paper="Qiu et al., ICLR 2024",
    shared="the network",
)
