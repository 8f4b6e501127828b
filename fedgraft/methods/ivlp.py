"""IVLP, independent vision-language prompting (Khattak et al., MaPLe, CVPR 2023), averaged: prompts in both towers.

Nothing ties the prompts of one tower to those of the other. The context begins as the words of `ctx_init`, all other
prompts are drawn from Normal(0, 0.02^2).
"""

import torch
from torch import Tensor, nn

from fedgraft.methods.dual_prompts import DualPromptAdapter, DualPromptOptions
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import INITIAL_STD, initial_context
from fedgraft.methods.visual_prompts import CACHES, image_width, resolved_depth


class Ivlp(DualPromptAdapter):
    """context (1, n, width), deep (1, depth - 1, n, width) and visual (depth, n, image width), all shared."""

    options: DualPromptOptions

    def build(self, generator: torch.Generator) -> None:
        """The prompts of both towers."""
        backbone = self.vocabulary.backbone
        depth = resolved_depth(backbone, self.options.depth, "text", "image")
        self.context = nn.Parameter(initial_context(self.vocabulary, self.options, generator))
        length, width = self.context.shape[1:]
        if depth > 1:
            self.deep = nn.Parameter(INITIAL_STD * torch.randn(1, depth - 1, length, width, generator=generator))
        visual = torch.randn(depth, length, image_width(backbone), generator=generator)
        self.visual = nn.Parameter(INITIAL_STD * visual)

    def text_prompts(self) -> tuple[Tensor, Tensor | None]:
        """The context and the deep prompts."""
        return self.context, getattr(self, "deep", None)

    def visual_prompts(self) -> Tensor:
        """The visual prompts."""
        return self.visual


METHOD = Method(
    "ivlp",
    "prompts in both towers, independent of each other, averaged",
    Ivlp,
    options=DualPromptOptions,
    paper="Khattak et al., CVPR 2023",
    shared="the prompts of both towers",
    towers=("text", "image"),
    caches=CACHES,
)
