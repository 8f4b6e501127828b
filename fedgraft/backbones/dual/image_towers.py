"""Image towers of dual encoders: any model as a whole, and CLIP's, which can be taken apart at its layers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.abilities import ImageAbilities
from fedgraft.backbones.clip.family import clip_linear_maps
from fedgraft.backbones.clip.image_tower import ClipImageTower
from fedgraft.backbones.deltas import Deltas, LinearMap
from fedgraft.backbones.vision_tower import PromptedTower, VisionTower, tower_of_clip

WHOLE = ImageAbilities()
CLIP_VISION = ImageAbilities(
    cuts=True, prompts=True, deep_prompts=True, patches=True, exits=True, low_rank=True, prunes=True, merges=True
)


class ImageTower(ABC):
    """A frozen image tower; reads the modules' own weights and holds no copy of them."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, dim) of any norm from pixels (B, 3, height, width)."""

    @abstractmethod
    def encoder(self, weights: Mapping[str, Tensor], prompts: Tensor | None) -> nn.Module:
        """`Backbone.image_encoder`."""


class LayeredImageTower(ImageTower):
    """One whose layers can be told apart.

    Attributes:
        states_shape: (tokens, width) of a layer's input.
        map_names: see `Backbone.map_names`.
    """

    states_shape: tuple[int, int]
    map_names: Mapping[str, str] = {}

    @abstractmethod
    def states(self, pixels: Tensor, layer: int) -> Tensor:
        """The input of a layer, (B, tokens, width) in float32, without gradients."""

    @abstractmethod
    def patch_features(self, pixels: Tensor) -> Tensor:
        """Unit-norm features of the image and of every patch, (B, 1 + patches, dim) in float32, without gradients."""

    @abstractmethod
    def features(self, states: Tensor, layer: int, deltas: Deltas, prompts: Tensor | None = None) -> Tensor:
        """Unit-norm features (B, dim) from the input of a layer; see `Backbone.finish_images`."""

    @abstractmethod
    def linear_maps(self) -> dict[str, LinearMap]:
        """`Backbone.linear_maps` of the image tower."""


class PooledImageModel(nn.Module, ImageTower):
    """What a model pools, and a projection behind it.

    Args:
        model: of Hugging Face, whose output has `pooler_output`.
        projection: from what is pooled to the joint space; None if it is that already.
    """

    def __init__(self, model: Any, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.projection = model, projection

    def embed(self, pixels: Tensor) -> Tensor:
        """The projection of what is pooled."""
        pooled: Tensor = self.model(pixel_values=pixels).pooler_output
        return pooled if self.projection is None else self.projection(pooled)

    def forward(self, pixels: Tensor) -> Tensor:
        """The same with unit norm, in float32."""
        return F.normalize(self.embed(pixels).float(), dim=-1)

    def encoder(self, weights: Mapping[str, Tensor], prompts: Tensor | None) -> nn.Module:
        """A copy with attention written out."""
        copy = deepcopy(self).float().cpu().eval().requires_grad_(False)
        copy.model.set_attn_implementation("eager")
        return copy


class ClipVisionTower(ClipImageTower, LayeredImageTower):
    """The image half of a model with CLIP's vision model, such as `ChineseCLIPModel`."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._model = model

    def embed(self, pixels: Tensor) -> Tensor:
        """The projected class token."""
        embedded: Tensor = self._projection(self._tower(pixel_values=pixels).pooler_output)
        return embedded

    def linear_maps(self) -> dict[str, LinearMap]:
        """The maps of attention and MLP in every layer."""
        return clip_linear_maps(self._model, "image")

    def encoder(self, weights: Mapping[str, Tensor], prompts: Tensor | None) -> nn.Module:
        """A `VisionTower`, or one that puts the prompts before its layers."""
        tower = self.pruned(weights)
        return tower if prompts is None else PromptedTower(tower, prompts).eval().requires_grad_(False)

    def pruned(self, weights: Mapping[str, Tensor]) -> VisionTower:
        """`Backbone.vision_tower`."""
        return tower_of_clip(self._model, weights)
