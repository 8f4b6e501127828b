"""PromptFL (Guo et al., IEEE TMC 2023): one learnt context, shared by all sites and averaged."""

from typing import cast

import torch
from torch import Tensor, nn

from fedgraft.adapters.base import Adapter, Method
from fedgraft.adapters.context import ContextOptions, initial_context


class PromptFL(Adapter):
    """A context (1, n_ctx, width) before every class name."""

    def build(self, generator: torch.Generator) -> None:
        """The shared context."""
        self.context = nn.Parameter(initial_context(self.vocabulary, cast(ContextOptions, self.options), generator))

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """Features of [context; class name]."""
        return self.vocabulary.backbone.text.encode_prompts(self.context, self.vocabulary.tokens(classes))[0]


METHOD = Method("promptfl", "one shared context, averaged", PromptFL, ContextOptions)
