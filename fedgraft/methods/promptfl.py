"""PromptFL (Guo et al., IEEE TMC 2023): one learnt context, shared by all sites and averaged."""

import torch
from torch import Tensor, nn

from fedgraft.methods.method import Method
from fedgraft.methods.prompts import ClassContextOptions, PromptAdapter, initial_class_context


class PromptFL(PromptAdapter):
    """A context (1, n_ctx, width) before every class name, or one for each class of the run."""

    options: ClassContextOptions

    @property
    def class_specific(self) -> bool:
        """Whether each class has a context of its own."""
        return self.options.class_context

    def build(self, generator: torch.Generator) -> None:
        """The shared context."""
        self.context = nn.Parameter(initial_class_context(self.vocabulary, self.options, generator))

    def prompts(self) -> Tensor:
        """The context."""
        return self.context


METHOD = Method(
    "promptfl",
    "one shared context, averaged",
    PromptFL,
    options=ClassContextOptions,
    paper="Guo et al., IEEE TMC 2023",
    shared="the context",
)
