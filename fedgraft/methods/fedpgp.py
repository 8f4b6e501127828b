"""FedPGP (Cui et al., ICML 2024): a shared prompt plus a low-rank personal one, with a contrastive loss.

Site i's prompt is sigma + U_i V_i; sigma is shared and averaged, U_i and V_i stay at the site. The loss is

    CE(x, t_p) + mu * mean_c -log( e^{cos(t_0, t_s)/tau} / (e^{cos(t_0, t_s)/tau} + e^{cos(t_s, t_p)/tau}) )

with t_s, t_p and t_0 the text features of sigma, of sigma + U V and of a frozen anchor. It pulls the shared prompt
towards what the backbone knows and pushes the personal one away from it. With N prompts, the classifier is the
normalized mean of their features, and the contrastive term covers all N x C rows.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.methods.method import Method
from fedgraft.methods.prompts import INITIAL_STD, ContextOptions, PromptAdapter, initial_context


class FedPGPOptions(ContextOptions):
    """The hyperparameters of the paper and its code."""

    prompts: int = Field(1, ge=1, description="number of prompts N", examples=[2])
    rank: int = Field(8, ge=1, description="bottleneck b of U V", examples=[4])
    mu: float = Field(0.5, ge=0, description="weight of the contrastive term", examples=[1.0])
    tau: float = Field(0.5, gt=0, description="temperature of the contrastive term", examples=[0.1])
    anchor: Literal["template", "tokens"] = Field(
        "template", description="hand-written templates, or the authors' literal X tokens", examples=["tokens"]
    )
    init: Literal["random", "zero"] = Field("random", description="U V random as published, or 0", examples=["zero"])


class FedPGP(PromptAdapter):
    """sigma (N, n_ctx, width) shared; U (N, n_ctx, rank) and V (N, rank, width) personal."""

    options: FedPGPOptions
    personal_names = frozenset({"U", "V"})

    def build(self, generator: torch.Generator) -> None:
        """sigma, U and V from Normal(0, 0.02^2)."""
        options = self.options
        sigma = initial_context(self.vocabulary, options, generator, options.prompts)
        count, length, width = sigma.shape
        left = INITIAL_STD * torch.randn(count, length, options.rank, generator=generator)
        right = INITIAL_STD * torch.randn(count, options.rank, width, generator=generator)
        self.sigma = nn.Parameter(sigma)
        self.U = nn.Parameter(torch.zeros_like(left) if options.init == "zero" else left)
        self.V = nn.Parameter(right)
        self._anchor: dict[tuple[int, ...], Tensor] = {}

    def prompts(self) -> Tensor:
        """The personal prompts."""
        return self.sigma + self.U @ self.V

    def training_prompts(self) -> Tensor:
        """The personal prompts, then the shared ones."""
        return torch.cat([self.prompts(), self.sigma])

    def loss_of(self, encoded: Tensor, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy of the personal prompt plus mu times the contrastive term."""
        options = self.options
        personal, common = encoded.chunk(2)
        to_anchor = (common * self.anchor(classes)).sum(-1)
        to_personal = (common * personal).sum(-1)
        contrast = F.softplus((to_personal - to_anchor) / options.tau).mean()
        return self.cross_entropy(images, self.features_of(personal), labels) + options.mu * contrast

    @torch.no_grad()
    def anchor(self, classes: tuple[int, ...]) -> Tensor:
        """The frozen features t_0, (C, dim)."""
        if classes not in self._anchor:
            if self.options.anchor == "template":
                self._anchor[classes] = self.vocabulary.zero_shot[list(classes)]
            else:
                tokens = self.vocabulary.backbone.text.embed_words(" ".join(["X"] * self.sigma.shape[1]))
                self._anchor[classes] = self.encode(tokens[None], classes)[0]
        return self._anchor[classes]


METHOD = Method(
    "fedpgp",
    "shared prompt plus low-rank personal prompt, with an anchor",
    FedPGP,
    options=FedPGPOptions,
    paper="Cui et al., ICML 2024",
    shared="the prompt",
    personal="the low-rank factors U and V",
)
