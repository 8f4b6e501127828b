"""FedPHA (Fang et al., ICML 2025): a shared context of one length, and a personal one whose length a site may choose.

    CE(x, t_L) + CE(x, t_G) + MSE(t_L, t_P) + mean_c max(0, alpha - |t_L - t_G|)

t_G and t_L are the text features of the shared and the personal context, t_P those of the personal context projected on
the right singular vectors of the shared one without its leading ones: of r, the last r - floor(r (1 - ratio)) are kept,
as in the authors' code, and gradients pass through the decomposition. The classifier is t_L.
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.backbones.abilities import Needs
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import Batch
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import ContextOptions, PromptAdapter, initial_context


class FedPHAOptions(ContextOptions):
    """The hyperparameters of the paper and its code."""

    own_n_ctx: int = Field(0, ge=0, description="vectors of the personal context; 0 for as many as n_ctx", examples=[4])
    ratio: float = Field(0.8, gt=0, le=1, description="which part of the singular vectors is kept", examples=[0.5])
    alpha: float = Field(1.0, ge=0, description="distance up to which both features are pushed apart", examples=[0.0])


class FedPHA(PromptAdapter):
    """A shared context (1, n_ctx, width) and a personal one (1, own_n_ctx, width)."""

    options: FedPHAOptions
    personal_names = frozenset({"own"})

    @classmethod
    def needs(cls, options: ContextOptions) -> Needs:
        """The longer of both contexts at its place."""
        assert isinstance(options, FedPHAOptions)
        longest = max(options.n_ctx, options.own_n_ctx)
        return Needs(placement=options.placement, context=0 if options.ctx_init else longest)

    def build(self, generator: torch.Generator) -> None:
        """Both contexts, drawn on their own."""
        options = self.options
        longer = options.model_copy(update={"n_ctx": options.own_n_ctx or options.n_ctx})
        self.context = nn.Parameter(initial_context(self.vocabulary, options, generator))
        self.own = nn.Parameter(initial_context(self.vocabulary, longer, generator))

    def prompts(self) -> Tensor:
        """The personal context."""
        return self.own

    def training_prompts(self) -> Tensor:
        """The personal context and its projection; the shared one may be of another length."""
        return torch.cat([self.own, self.projected()])

    def projected(self) -> Tensor:
        """The personal context on the kept singular vectors of the shared one, (1, own_n_ctx, width)."""
        right: Tensor = torch.linalg.svd(self.context[0], full_matrices=False)[2]
        kept = right[int(len(right) * (1 - self.options.ratio)) :]
        projected: Tensor = self.own @ kept.mT @ kept
        return projected

    def impersonal(self, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """The shared context in place of the personal one; raises UserError if it is of another length."""
        if shared["context"].shape != self.own.shape:
            raise UserError(
                f"The method 'fedpha' classifies with the personal context, here of {self.own.shape[1]} vectors, where "
                f"the shared one has {shared['context'].shape[1]}; give the number of a site."
            )
        return {"own": shared["context"]}

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The four terms."""
        return self.losses([self], [Batch(images, labels)], classes)[0]

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """Two passes of the text tower over all sites' prompts, one for each length."""
        common = adapters[0].encode(torch.cat([adapter.context for adapter in adapters]), classes)
        personal = adapters[0].encode(torch.cat([adapter.training_prompts() for adapter in adapters]), classes)
        return [
            adapter.terms(shared, own, batch)
            for adapter, shared, own, batch in zip(
                adapters, common, personal.chunk(len(adapters)), batches, strict=True
            )
        ]

    def terms(self, shared: Tensor, own: Tensor, batch: Batch) -> Tensor:
        """The loss from the features of the shared context (C, dim), and of the personal and projected (2, C, dim)."""
        local, projected = own
        task = self.cross_entropy(batch.images, local, batch.labels)
        common = self.cross_entropy(batch.images, shared, batch.labels)
        apart = F.relu(self.options.alpha - (local - shared).norm(dim=-1)).mean()
        return task + common + F.mse_loss(local, projected) + apart


METHOD = Method(
    "fedpha",
    "a shared context and a personal one of any length, kept together and apart",
    FedPHA,
    options=FedPHAOptions,
    paper="Fang et al., ICML 2025",
    shared="the shared context",
    personal="a context of any length",
)
