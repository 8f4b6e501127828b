"""PromptFolio (Pan et al., NeurIPS 2024): a portfolio of a shared and a personal context.

    CE(x, (1 - theta) t_G + theta t_L)

with t_G and t_L the unit-norm text features of the shared and of the personal context. The mixture is normalized here,
as every classifier is. theta is that of the authors' example; another benchmark (FLIP) takes 0.2.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.methods.method import Method
from fedgraft.methods.prompts import ContextOptions, PromptAdapter, initial_context


class PromptFolioOptions(ContextOptions):
    """How much of the classifier is personal."""

    theta: float = Field(0.4, ge=0, le=1, description="weight of the personal context's features", examples=[0.2])


class PromptFolio(PromptAdapter):
    """A context (1, n_ctx, width) that is shared, and one of the same length that stays."""

    options: PromptFolioOptions
    personal_names = frozenset({"own"})

    def build(self, generator: torch.Generator) -> None:
        """Both contexts, drawn on their own."""
        self.context = nn.Parameter(initial_context(self.vocabulary, self.options, generator))
        self.own = nn.Parameter(initial_context(self.vocabulary, self.options, generator))

    def prompts(self) -> Tensor:
        """The shared context, then the personal one."""
        return torch.cat([self.context, self.own])

    def impersonal(self, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """The shared context in place of the personal one, so that it alone classifies."""
        return {"own": shared["context"]}

    def features_of(self, encoded: Tensor) -> Tensor:
        """The weighted mean of both."""
        return F.normalize(torch.lerp(encoded[0], encoded[1], self.options.theta), dim=-1)


METHOD = Method(
    "promptfolio",
    "a shared and a personal context, mixed in the classifier",
    PromptFolio,
    options=PromptFolioOptions,
    paper="Pan et al., NeurIPS 2024",
    shared="the shared context",
    personal="a context of the same length",
)
