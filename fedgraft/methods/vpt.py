"""VPT (Jia et al., ECCV 2022), averaged: visual prompts alone, and the hand-written templates for the classes.

`depth=1` is VPT-Shallow, more layers are VPT-Deep. Prompts are drawn from Normal(0, 0.02^2), as published code for CLIP
has them; Jia et al. draw them uniformly, within bounds from the sizes of patch and token.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgraft.backbones.abilities import Needs
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import INITIAL_STD
from fedgraft.methods.visual_prompts import (
    CACHES,
    DEPTH_HELP,
    VisualPromptAdapter,
    VisualPromptOptions,
    image_width,
    resolved_depth,
)


class VptOptions(VisualPromptOptions):
    """Number and depth of the prompts."""

    n_visual: int = Field(4, ge=1, description="visual prompts before a layer", examples=[8])
    depth: int = Field(0, ge=0, description=DEPTH_HELP, examples=[1])


class Vpt(VisualPromptAdapter):
    """Visual prompts (depth, n_visual, image width), shared."""

    options: VptOptions

    @classmethod
    def needs(cls, options: VisualPromptOptions) -> Needs:
        """Prompts at that depth."""
        assert isinstance(options, VptOptions)
        return Needs(visual_prompts=options.n_visual, visual_depth=options.depth or 2, cut=True)

    def build(self, generator: torch.Generator) -> None:
        """The prompts."""
        backbone = self.vocabulary.backbone
        shape = (resolved_depth(backbone, self.options.depth, "image"), self.options.n_visual, image_width(backbone))
        self.visual = nn.Parameter(INITIAL_STD * torch.randn(*shape, generator=generator))

    def visual_prompts(self) -> Tensor:
        """The prompts."""
        return self.visual

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The hand-written templates, computed once."""
        return self.vocabulary.zero_shot[list(classes)]


METHOD = Method(
    "vpt",
    "visual prompts, shallow or deep, averaged",
    Vpt,
    options=VptOptions,
    paper="Jia et al., ECCV 2022",
    shared="the visual prompts",
    towers=("image",),
    caches=CACHES,
)
