"""Learnt tokens in the image tower (Jia et al., VPT, ECCV 2022): what methods with visual prompts share.

n tokens stand behind class token and patches before each of `depth` layers; those before a later layer replace what has
become of the ones before. Everything below the first layer, the patch embedding, is frozen and computed once for each
image; the layers above it run in every step.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.deltas import Tower
from fedgraft.backbones.kept_images import parted
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.backbones.representation import Representation
from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import Adapter

CACHES = "the input of the first layer of the image tower; all layers run in every step"
CACHES_FINAL = "the input of the first layer of the image tower and the final feature; all layers run in every step"
PUBLISHED_DEPTH = 9
"""How many layers MaPLe and its successors prompt in towers of twelve (Khattak et al. 2023)."""
DEPTH_HELP = f"layers with prompts, from the first on; 0 for {PUBLISHED_DEPTH}, or all of a tower with fewer"


class VisualPromptOptions(Options):
    """How images are kept."""

    cache: Literal["float32", "float16"] = Field(
        "float32", description="precision of the cached states; float16 halves the disk", examples=["float16"]
    )


def number_of_layers(backbone: Backbone, tower: Tower) -> int:
    """The layers of a tower."""
    return 1 + max(found.layer for found in backbone.linear_maps(tower).values())


def resolved_depth(backbone: Backbone, depth: int, *towers: Tower) -> int:
    """How many layers of each tower get prompts; 0 stands for `PUBLISHED_DEPTH`, or the layers of a smaller tower."""
    return depth or min(PUBLISHED_DEPTH, *(number_of_layers(backbone, tower) for tower in towers))


def image_width(backbone: Backbone) -> int:
    """The size of a token of the image tower."""
    return backbone.image_shape(Representation(layer=0))[-1]


class VisualPromptAdapter(Adapter):
    """A method with visual prompts from the first layer on."""

    options: VisualPromptOptions
    keeps_final: ClassVar[bool] = False
    """Whether the frozen tower's feature of each image is kept beside the input of the first layer."""

    @abstractmethod
    def visual_prompts(self) -> Tensor:
        """The prompts of the classifier, (depth, n, image width)."""

    @classmethod
    def needs(cls, options: VisualPromptOptions) -> Needs:
        """An image tower whose first layer's input can be cached, and that takes prompts."""
        return Needs(visual_prompts=1, visual_depth=1, cut=True)

    @classmethod
    def representation(cls, backbone: Backbone, options: VisualPromptOptions) -> Representation:
        """The input of the first layer, and the final feature if the method needs it."""
        return Representation(layer=0, final=cls.keeps_final, dtype=options.cache)

    def image_features(self, images: Tensor) -> Tensor:
        """Features after all layers, with the prompts in them."""
        return self.prompted(images, self.visual_prompts())

    def prompted(self, images: Tensor, prompts: Tensor | None) -> Tensor:
        """Unit-norm features (B, dim) with prompts (depth, n, image width), or without any."""
        backbone = self.vocabulary.backbone
        form = self.representation(backbone, self.options)
        states, _ = parted(backbone, images, form)
        return backbone.finish_images(states, form.represented, prompts=None if prompts is None else prompts[None])

    def frozen_features(self, images: Tensor) -> Tensor:
        """Unit-norm features (B, dim) of the frozen tower, where they are kept."""
        backbone = self.vocabulary.backbone
        _, final = parted(backbone, images, self.representation(backbone, self.options))
        assert final is not None, "keeps_final says so"
        return final

    @torch.no_grad()
    def image_encoder(self) -> nn.Module:
        """The image tower with the prompts in it, for exports."""
        return self.vocabulary.backbone.image_encoder(prompts=self.visual_prompts().detach().cpu())

    def vision_tower(self) -> PrunableTower:
        """Raises UserError: a tower that can be pruned takes no prompts."""
        raise UserError("An image tower with visual prompts cannot be pruned; export it dense.")
