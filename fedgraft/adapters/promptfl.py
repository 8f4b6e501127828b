"""PromptFL (Guo et al., IEEE TMC 2023): one learnt context, shared by all sites and averaged."""

from typing import cast

import torch
from torch import Tensor, nn

from fedgraft.adapters.base import Method
from fedgraft.adapters.context import ContextOptions, PromptAdapter, initial_context


class PromptFL(PromptAdapter):
    """A context (1, n_ctx, width) before every class name."""

    def build(self, generator: torch.Generator) -> None:
        """The shared context."""
        self.context = nn.Parameter(initial_context(self.vocabulary, cast(ContextOptions, self.options), generator))

    def prompts(self) -> Tensor:
        """The context."""
        return self.context


METHOD = Method("promptfl", "one shared context, averaged", PromptFL, ContextOptions)
