"""MaPLe (Khattak et al., CVPR 2023), averaged: visual prompts that are linear functions of the text prompts.

Before layer j of the image tower stand F_j(P_j), with P_j the prompts before layer j of the text tower and F_j a linear
map of their width to the image tower's. The context P_0 begins as the words of `ctx_init`, all other prompts are drawn
from Normal(0, 0.02^2), and the maps as torch draws linear layers. Prompts and maps are shared.
"""

import torch
from torch import Tensor, nn

from fedgraft.methods.dual_prompts import DualPromptAdapter, DualPromptOptions
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import INITIAL_STD, initial_context
from fedgraft.methods.visual_prompts import CACHES, image_width, resolved_depth


class Maple(DualPromptAdapter):
    """context (1, n, width), deep (1, depth - 1, n, width) and the maps (depth, image width, width), all shared."""

    options: DualPromptOptions

    def build(self, generator: torch.Generator) -> None:
        """The text prompts and the maps, uniform within 1 / sqrt(width)."""
        backbone = self.vocabulary.backbone
        depth, wide = resolved_depth(backbone, self.options.depth, "text", "image"), image_width(backbone)
        self.context = nn.Parameter(initial_context(self.vocabulary, self.options, generator))
        length, width = self.context.shape[1:]
        if depth > 1:
            self.deep = nn.Parameter(INITIAL_STD * torch.randn(1, depth - 1, length, width, generator=generator))
        bound = width**-0.5
        self.coupling = nn.Parameter(bound * (2 * torch.rand(depth, wide, width, generator=generator) - 1))
        self.offset = nn.Parameter(bound * (2 * torch.rand(depth, 1, wide, generator=generator) - 1))

    def text_prompts(self) -> tuple[Tensor, Tensor | None]:
        """The context and the deep prompts."""
        return self.context, getattr(self, "deep", None)

    def visual_prompts(self) -> Tensor:
        """The text prompts of each layer through the layer's map."""
        context, deep = self.text_prompts()
        prompts = context if deep is None else torch.cat([context, deep[0]])
        return prompts @ self.coupling.mT + self.offset


METHOD = Method(
    "maple",
    "prompts in both towers, the visual ones mapped from the text's, averaged",
    Maple,
    options=DualPromptOptions,
    paper="Khattak et al., CVPR 2023",
    shared="the text prompts and the maps",
    towers=("text", "image"),
    caches=CACHES,
)
